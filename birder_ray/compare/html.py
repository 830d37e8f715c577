"""The page about a comparison."""

from birder_ray.compare.comparison import Comparison
from birder_ray.compare.gate import Limits, checks
from birder_ray.compare.sections import note, sections
from birder_ray.errors import ConfigError
from birder_ray.page import needs, render, save


def write_html(comparison: Comparison, limits: Limits, file: str) -> None:
    """Write one self-contained HTML page to a local file. The same comparison gives the same bytes.

    Raises:
        ConfigError: plotly is missing, or `file` cannot be written.
    """
    needs("--html")
    checked = checks(comparison, limits)
    where = f"{comparison.a.url} → {comparison.b.url}"
    made = "the tables and commit records of both destinations"
    page = render("birder-ray compare", where, made, note(comparison, checked), sections(comparison, checked))
    try:
        save(page, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error}; give --html another path") from None
