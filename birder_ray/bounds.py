"""Bounds of where and when a taxon occurs: a box of degrees and a season, and which photos are within them."""

from datetime import date

import numpy as np
import pyarrow as pa

BOUNDS = ("west", "south", "east", "north", "from", "to")
ANYWHERE, ALWAYS = (-180.0, 360.0, -90.0, 90.0), (0.0, 0.0, 9999.0)
"""As `box` and `season` have no bounds."""


def box(west: str, south: str, east: str, north: str) -> tuple[float, ...]:
    """West, width, south and north in degrees, from the cells of a row; empty ones are no bound.

    Where west is greater than east, it crosses the antimeridian. Raises ValueError for what is no box.
    """
    left, right = _degrees("west", west, 180, -180), _degrees("east", east, 180, 180)
    bottom, top = _degrees("south", south, 90, -90), _degrees("north", north, 90, 90)
    if bottom > top:
        raise ValueError(f"south {south} is north of {north}")
    width = right - left
    return left, width + 360 if width < 0 else width, bottom, top


def season(first: str, last: str) -> tuple[float, ...]:
    """1 of dates and 0 of every year, and the first and last day, as `_dated` or `_yearly`; empty cells are no bound.

    Where the first month and day are after the last, it goes over new year. Raises ValueError for what is no season.
    """
    if not first and not last:
        return ALWAYS
    parse, least, most = (_dated, -np.inf, np.inf)
    if all(len(text) in (0, len("MM-DD")) for text in (first, last)):
        parse, least, most = (_yearly, *ALWAYS[1:])
    try:
        start, end = parse(first) if first else least, parse(last) if last else most
    except ValueError:
        raise ValueError(
            f"the season is {first or 'open'} to {last or 'open'}; give MM-DD or YYYY-MM-DD twice"
        ) from None
    if parse is _dated and start > end:
        raise ValueError(f"the season begins on {first}, after it ends on {last}")
    return float(parse is _dated), start, end


def in_boxes(boxes: np.ndarray, where: pa.Table) -> np.ndarray:
    """(x, n) whether the places of `where`, of n rows, are in each of (x, 4) boxes; an unknown place may be in any."""
    latitude, longitude = (where[name].to_numpy() for name in ("latitude", "longitude"))
    west, width, south, north = boxes.T[:, :, None]
    inside: np.ndarray = (_eastward(longitude - west) <= width) & (latitude >= south) & (latitude <= north)
    return inside | np.isnan(latitude) | np.isnan(longitude)


def in_seasons(seasons: np.ndarray, where: pa.Table) -> np.ndarray:
    """(s, n) whether the dates of `where`, of n rows, are in each of (s, 3) seasons; an unknown date may be in any."""
    of_year, of_all = _days(where["date"])
    dated, first, last = seasons.T[:, :, None]
    day = np.where(dated > 0, of_all, of_year)
    after, before = day >= first, day <= last
    inside: np.ndarray = np.where(first <= last, after & before, after | before)
    return inside | np.isnan(of_all)


def _degrees(bound: str, text: str, most: float, otherwise: float) -> float:
    try:
        value = float(text or otherwise)
    except ValueError:
        value = np.inf
    if not abs(value) <= most:  # NaN too
        raise ValueError(f"{bound} is {text}; give degrees from -{most} to {most}, or nothing")
    return value


def _yearly(text: str) -> float:
    """Month and day as 1231."""
    if not text.replace("-", "").isdecimal():  # W01-1 is a week and its day
        raise ValueError(text)
    day = date.fromisoformat(f"2024-{text}")  # a leap year
    return 100.0 * day.month + day.day


def _dated(text: str) -> float:
    """Days since 1970."""
    return float((date.fromisoformat(text) - date(1970, 1, 1)).days)


def _days(dates: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) as `_yearly` and as `_dated`, both NaN of no date."""
    days = dates.to_numpy().astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    of_year = 100.0 * (months.astype(np.int64) % 12 + 1) + (days - months).astype(np.int64) + 1
    missing = np.isnat(days)
    return np.where(missing, np.nan, of_year), np.where(missing, np.nan, days.astype(np.int64).astype(float))


def _eastward(degrees: np.ndarray) -> np.ndarray:
    """Differences of longitudes, from -360 to 360, as from 0 to below 360."""
    degrees += 360 * (degrees < 0)
    degrees -= 360 * (degrees >= 360)
    return degrees
