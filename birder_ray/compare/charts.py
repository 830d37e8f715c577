"""The charts of a comparison, as `page.figures` has them. A name stands above its bar or point, so that long ones have
room on a phone, too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from birder_ray.compare.comparison import ClassShift, Flip, Shift
from birder_ray.page.figures import BLUE, GREY, ORANGE, as_json, blank, shown

_LONGEST, _ROW_PX = 40, 38


def pairs(flips: Sequence[Flip], short: Mapping[str, str]) -> str:
    """Samples by kind of flip, the most frequent at the top. `short`: what a class is called here, if not its name."""
    figure = blank("samples", None, height=72 + _ROW_PX * len(flips))
    figure.add_bar(
        x=[each.count for each in flips],
        y=[*range(len(flips))],
        width=0.4,
        customdata=[f"{shown(each.before)} → {shown(each.after)}" for each in flips],
        orientation="h",
        marker_color=BLUE,
        hovertemplate="%{customdata}: %{x:,}<extra></extra>",
    )
    names = [[shown(short.get(name, name), _LONGEST // 2) for name in (each.before, each.after)] for each in flips]
    return as_json(_rows(figure, [" → ".join(each) for each in names]))


def shifts(classes: Sequence[ClassShift], short: Mapping[str, str]) -> str:
    """Changes of classes' shares in percentage points, with their intervals: hollow where the interval holds 0."""
    figure = blank("change of the share, percentage points", None, height=100 + _ROW_PX * len(classes))
    for name, colour, symbol, sign in (("gained", BLUE, "circle", 1), ("lost", ORANGE, "square", -1)):
        rows = [(at, each) for at, each in enumerate(classes) if each.net * sign > 0]
        if not rows:
            continue
        points = [100 * each.shift for _, each in rows]
        figure.add_scatter(
            x=[round(point, 6) for point in points],
            y=[at for at, _ in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [round(100 * each.high - point, 6) for point, (_, each) in zip(points, rows, strict=True)],
                "arrayminus": [round(point - 100 * each.low, 6) for point, (_, each) in zip(points, rows, strict=True)],
                "thickness": 2,
            },
            mode="markers",
            name=name,
            marker={
                "color": colour,
                "size": 11,
                "line": {"color": colour, "width": 2},
                "symbol": [f"{symbol}-open" if each.low <= 0 <= each.high else symbol for _, each in rows],
            },
            line_color=colour,
            customdata=[f"{shown(each.name)}: {each.a:,} to {each.b:,}" for _, each in rows],
            hovertemplate="%{customdata}<br>%{x:+.3g} points<extra></extra>",
        )
    figure.add_vline(0, line_color=GREY[0], line_width=1)
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "itemclick": False, "itemdoubleclick": False}
    figure.update_layout(showlegend=True, legend=legend, margin_t=36)
    return as_json(_rows(figure, [shown(short.get(each.name, each.name), _LONGEST) for each in classes]))


def probabilities(found: Shift, same: Shift | None) -> str:
    """Samples by the change of their top probability, all and those that flipped; the vertical axis is logarithmic."""
    figure = blank("change of the top probability, B less A", "samples", height=320)
    bins = len(found.histogram)
    middles = [round(-1 + (at + 0.5) * 2 / bins, 4) for at in range(bins)]
    flipped = flips_of(found, same)
    hatched = {"shape": "/", "fillmode": "overlay", "fgcolor": "#1c1f23", "size": 6}
    told: list[tuple[str, Sequence[int], dict[str, Any]]] = [("all samples", found.histogram, {"color": BLUE})]
    if any(flipped):
        told.append(("flipped", flipped, {"color": ORANGE, "pattern": hatched}))
    for name, counts, marker in told:
        hover = f"around %{{x:+.3f}}: %{{y:,}} {name}<extra></extra>"
        figure.add_bar(x=middles, y=counts, width=2 / bins, name=name, marker=marker, hovertemplate=hover)
    top = math.log10(max(found.histogram)) + 0.15
    figure.update_yaxes(type="log", dtick=1, range=[-0.3, top]).update_xaxes(range=[-1, 1])
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemclick": False, "itemdoubleclick": False}
    return as_json(figure.update_layout(barmode="overlay", bargap=0, showlegend=len(told) > 1, legend=legend))


def flips_of(found: Shift, same: Shift | None) -> list[int]:
    """Of a histogram of all samples and one of those that have not flipped, that of those that have."""
    still = same.histogram if same else [0] * len(found.histogram)
    return [every - one for every, one in zip(found.histogram, still, strict=True)]


def _rows(figure: Any, names: Sequence[str]) -> Any:
    """One row for each of `names`, from the top down, with the name above it at the left."""
    for at, name in enumerate(names):
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=at - 0.48, yref="y", yanchor="middle", text=name, showarrow=False
        )
    figure.update_layout(margin_l=16)
    return figure.update_yaxes(range=[len(names) - 0.6, -0.8], showticklabels=False, showgrid=False)
