"""`report`: one self-contained HTML page about a destination, from its files alone; it needs neither Ray nor torch."""

from collections.abc import Mapping
from typing import Any

from birder_ray.errors import ConfigError
from birder_ray.page import needs, read, render, save
from birder_ray.report.facts import gather
from birder_ray.report.sections import note, sections
from birder_ray.report.thumbnails import thumbnails as read_thumbnails
from birder_ray.scores import Scores

NAME = "report.html"


def report(
    url: str,
    options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    *,
    to: str | None = None,
    thumbnails: int = 48,
    points: int = 5000,
) -> str:
    """Write `report.html` of a destination, finished or not. The same destination gives the same bytes.

    Args:
        url: of the destination. options: fsspec options for it. source_options: those of the source, for the pictures.
        to: local path to write instead. thumbnails: how many images are read from the source again, and shown.
        points: embeddings on the map.

    Returns:
        Where it is.

    Raises:
        ConfigError: too few thumbnails or points are asked for, no run has begun there, a part of it is damaged, a
            package is missing, or `to` cannot be written.
    """
    if thumbnails < 0 or points < 1:
        raise ConfigError(f"thumbnails {thumbnails}, points {points}: give at least 0 and 1")
    needs("a report", scikit_learn="sklearn")
    scores = Scores(url, options)
    facts = gather(scores, thumbnails, points)
    images = facts.predicted.images if facts.predicted else set()
    pictures = read_thumbnails(scores.manifest, images, source_options)
    made = "the tables and commit records of the destination"
    page = render(
        "birder-ray report", facts.where, made, note(facts), sections(facts, pictures), [read(__package__, "map.js")]
    )
    where = to or f"{scores.where}/{NAME}"
    try:
        if to is None:
            scores.write(NAME, page, "text/html; charset=utf-8")
        else:
            save(page, to)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{where}: cannot be written: {error}; give --to another path") from None
    return where
