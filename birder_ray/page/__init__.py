"""HTML pages of one file, with charts: what `report` and `compare` have in common."""

from birder_ray.page.page import (
    Section,
    details,
    figure,
    needs,
    number,
    paragraph,
    plural,
    read,
    render,
    save,
    table,
    text,
    tiles,
)

__all__ = [
    "Section",
    "details",
    "figure",
    "needs",
    "number",
    "paragraph",
    "plural",
    "read",
    "render",
    "save",
    "table",
    "text",
    "tiles",
]
