"""One HTML file from sections. Whatever others wrote (names, messages, URLs) goes through `text`."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from birder_ray.errors import ConfigError, printable
from birder_ray.folder import Folder

# What could end a script element, or a line of JavaScript, inside JSON
_JSON_ESCAPES = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Section:
    """A part of the page. `body`: HTML."""

    id: str
    title: str
    body: str


def text(value: object) -> str:
    """`value` as HTML text or attribute, what a terminal or a browser would obey written out."""
    return escape(printable(str(value)))


def number(value: float) -> str:
    """A number for people: 1,234 or 0.0123."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, one: str, more: str = "") -> str:
    """`count` with its noun: 1 run, 2 runs."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def paragraph(content: str, kind: str = "") -> str:
    """A paragraph of HTML."""
    return f'<p class="{kind}">{content}</p>\n' if kind else f"<p>{content}</p>\n"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand to the right. The first cell of a row is its heading."""
    rows = list(rows)
    numeric = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(head))]

    def cell(at: int, value: Any) -> str:
        tag, scope = ("th", ' scope="row"') if at == 0 and not numeric[0] else ("td", "")
        kind = ' class="n"' if numeric[at] else ""
        shown = number(value) if isinstance(value, int | float) else text(value)
        return f"<{tag}{scope}{kind}>{shown}</{tag}>"

    top = "".join(
        f'<th scope="col"{" class=n" if numeric[at] else ""}>{text(name)}</th>' for at, name in enumerate(head)
    )
    lines = "\n".join(f"<tr>{''.join(cell(at, value) for at, value in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{top}</tr></thead><tbody>\n{lines}\n</tbody></table></div>\n"
    )


def details(summary: str, content: str) -> str:
    """`content`, HTML, that is unfolded on demand."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>\n"


def figure(id_: str, data: str, caption: str, alternative: str, role: str = "img") -> str:
    """A chart.

    Args:
        data: of Plotly, JSON. caption: what it shows and says, in words. alternative: its numbers, HTML.
    """
    return (
        f'<figure><div id="{id_}" data-figure="{id_}-data" role="{role}" aria-label="{text(caption)}"></div>\n'
        f'<script type="application/json" id="{id_}-data">{data.translate(_JSON_ESCAPES)}</script>\n'
        f"<figcaption>{text(caption)}</figcaption>{alternative}</figure>\n"
    )


def tiles(facts: Iterable[tuple[str, object]]) -> str:
    """The most important facts, large."""
    inner = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="tiles">{inner}</dl>\n'


def needs(what: str, **packages: str) -> None:
    """Raises ConfigError where `what` lacks one of `packages`, whose modules are given by their names."""
    for package, module in {"plotly": "plotly", **packages}.items():
        if find_spec(module) is None:
            raise ConfigError(f"{what} needs {package.replace('_', '-')}: pip install 'birder-ray[findings]'")


def save(page: bytes, file: str) -> None:
    """Write a page to a local file, whole or not at all. Raises OSError."""
    path = Path(file)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    Folder(str(path.parent)).write(path.name, page)


def render(
    title: str, where: str, made: str, note: str, sections: Sequence[Section], more: Sequence[str] = ()
) -> bytes:
    """The page, in UTF-8.

    Args:
        title: the command that makes it. where: what it is about. made: from what it is made. note: HTML above all
            sections. more: scripts that run when the charts stand.
    """
    from plotly.offline import get_plotlyjs

    scripts = (get_plotlyjs(), read(__package__, "page.js"), *more)
    allowed = " ".join(f"'sha256-{_digest(each)}'" for each in scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )
    page = Template(read(__package__, "page.html")).substitute(
        title=text(title),
        where=text(where),
        made=text(made),
        policy=policy,
        style=read(__package__, "page.css"),
        nav="\n".join(f'<li><a href="#{each.id}">{text(each.title)}</a></li>' for each in sections),
        body=note + "\n".join(_section(each) for each in sections),
        scripts="\n".join(f"<script>{each}</script>" for each in scripts),
    )
    return page.encode()


def _section(section: Section) -> str:
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
        f'<h2 id="{section.id}-title">{text(section.title)}</h2>\n{section.body}</section>'
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def read(package: str, name: str) -> str:
    """A text file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")
