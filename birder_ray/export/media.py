"""Where the photos are published, for a Darwin Core Archive."""

import mimetypes
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

_WEB = r"^https?://"


def pictures(samples: pa.ChunkedArray, base: str | None) -> pa.Table:
    """`occurrenceID`, `identifier` and `format` of those whose URL is known.

    Args:
        samples: their names; one that is a URL is its own. base: URL below which the others are published; None: they
            are not.
    """
    on_web = pc.match_substring_regex(samples, _WEB)
    if base is None:
        samples = samples.filter(on_web)
    names = samples.to_pylist()
    urls = [name if name.startswith(("http://", "https://")) else _below(base or "", name) for name in names]
    kinds = [mimetypes.guess_type(name.rpartition("/")[2])[0] for name in names]
    told = {"occurrenceID": names, "identifier": urls, "format": kinds}
    return pa.table({name: pa.array(values, pa.string()) for name, values in told.items()})


def _below(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{quote(name)}"
