"""What all charts have in common: Plotly figures as JSON. Colours are those of Okabe and Ito, which colour-blind people
tell apart; where a chart has several, shapes differ too. What depends on light or dark, and fonts, page.js fills in.

Plotly takes text for a kind of HTML, so every name goes through `shown`.
"""

from html import escape
from typing import TYPE_CHECKING, Any

from birder_ray.errors import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
GROUPS = [
    (BLUE, "circle"), (ORANGE, "square"), (GREEN, "diamond"), ("#CC79A7", "cross"), ("#D55E00", "triangle-up"),
    ("#56B4E9", "star"),
]  # fmt: skip
GREY = ("#8a8a8a", "circle-open")
LONGEST = 32
"""Characters of a name beside an axis."""


def shown(text: str, longest: int | None = None) -> str:
    """`text` as Plotly shows it literally; its middle left out where it is longer than `longest` characters."""
    text = printable(text).replace("\n", " ")
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-(longest // 2) :]}"
    return escape(text, quote=False)


def blank(x: str | None, y: str | None, height: int) -> "Figure":
    """A figure without traces; `x`, `y`: titles of its axes."""
    from plotly.graph_objects import Figure

    margin = {"l": 56, "r": 16, "t": 16, "b": 48}
    figure = Figure().update_layout(template="none", height=height, margin=margin, showlegend=False, dragmode=False)
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hoverlabel_align="left")
    figure.update_xaxes(title_text=x, automargin=True, zeroline=False)
    return figure.update_yaxes(title_text=y, automargin=True, zeroline=False)


def as_json(figure: Any) -> str:
    """As `page.figure` takes it."""
    text: str = figure.to_json()
    return text
