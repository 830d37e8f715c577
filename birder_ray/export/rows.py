"""What is exported: the scored samples of a destination, unit by unit, with all that is known of them."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray.classes import RANKS
from birder_ray.errors import ConfigError
from birder_ray.lineages import lineages, plain
from birder_ray.photos import Photos
from birder_ray.record import Record
from birder_ray.schema import ERRORS, PREDICTIONS, ROLLUP, ROLLUP_ABOUT, WHOLE_SHARD
from birder_ray.scores import Scores
from birder_ray.source.fetch import prefetch

BLANK, PERSON, VEHICLE = "blank", "person", "vehicle"
_SIDE_BY_SIDE = 4
_AGAIN = "run birder-ray rollup again, or give --no-rollup"


@dataclass(frozen=True)
class Options:
    """What users say about an export. A format takes some of them.

    Args:
        taxonomy: CSV or Parquet file with `class_name` and a column per rank, where the class names carry none.
        rollup: use `rollup/`, where it is there.
        photos: CSV or Parquet file with date, latitude and longitude by sample. sample_column: of it.
        memory: that the join with it may take.
        blank, person, vehicle: names of classes, or of taxa, that stand for these and not for an animal.
        min_probability: below which nothing is an occurrence. metadata: YAML file about the data set.
        media_url: below which the photos are published. escape_formulas: what a spreadsheet would execute.
    """

    taxonomy: str | None = None
    rollup: bool = True
    photos: str | None = None
    sample_column: str = "sample"
    memory: str = "1GB"
    blank: Sequence[str] = ()
    person: Sequence[str] = ()
    vehicle: Sequence[str] = ()
    min_probability: float = 0.0
    metadata: str | None = None
    media_url: str | None = None
    escape_formulas: bool = False


@dataclass(frozen=True)
class Made:
    """What a format says of what it wrote.

    Args:
        counts: of what there is in it. left_out: of samples that are not, by reason. notes: for the reader.
    """

    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unit:
    """The rows of a unit, all tables in the order of `predictions`; None where there is no such table."""

    record: Record
    predictions: pa.Table
    rollup: pa.Table | None
    photos: pa.Table | None


class Rows:
    """The samples of a destination.

    Args:
        photos: open, of the same `scores`.

    Raises:
        ConfigError: a file of `told` is not what it should be, a name in it is no class, or `rollup/` does not fit.
    """

    def __init__(self, scores: Scores, told: Options, photos: Photos | None = None):
        scores.needs(PREDICTIONS)
        self.scores, self.told, self.photos = scores, told, photos
        known = told.taxonomy or set(RANKS).intersection(scores.classes.column_names)
        self.classes = lineages(scores.classes, told.taxonomy) if known else scores.classes
        self.ranks = [rank for rank in RANKS if rank in self.classes.column_names]
        self.kinds = _kinds(self.classes, told)
        self.top = min(scores.recipe.facts["tables"][PREDICTIONS]["top_k"], self.classes.num_rows)
        self.rolled_up = self._rolled_up() if told.rollup else None

    @property
    def model(self) -> dict[str, Any]:
        """`name` (without its folder), `network` and `weights_sha256`."""
        told = self.scores.manifest["model"]
        return {**told, "name": told["name"].rstrip("/").rpartition("/")[2]}

    @property
    def finished(self) -> str:
        """When the run came to its end, else when it began; UTC, ISO 8601."""
        return str(self.scores.manifest["finished"] or self.scores.manifest["created"])

    def names(self) -> list[str]:
        """Of the classes, by index; none is blank, and no two are the same."""
        taken: set[str] = set()
        found = []
        for index, name in enumerate(self.classes["class_name"].to_pylist()):
            name = name if name and name.strip() else f"class {index}"
            while name in taken:
                name = f"{name} ({index})"
            taken.add(name)
            found.append(name)
        return found

    def units(self, columns: Sequence[str]) -> Iterator[Unit]:
        """All that have samples, in order; a few of them in memory at a time.

        Args:
            columns: of `predictions`.

        Raises:
            ConfigError: a part is missing, damaged, or not of the same predictions as the others.
        """
        asked = {PREDICTIONS: columns}
        if self.photos:
            found = ((record, rows, dated) for record, (rows,), dated in self.photos.recorded(asked))
        else:
            found = ((record, rows, None) for record, (rows,) in self.scores.recorded(asked))
        return prefetch(lambda each: Unit(each[0], each[1], self._rollup(each[0]), each[2]), found, _SIDE_BY_SIDE)

    def quarantined(self) -> Iterator[pa.Table]:
        """The rows of `errors` that are samples, and not shards that could not be read to their end."""
        for rows in self.scores.stream(ERRORS, ["sample", "index", "error_type", "message"]):
            yield rows.filter(pc.not_equal(rows["index"], WHOLE_SHARD))

    def _rolled_up(self) -> dict[str, Any] | None:
        """What `rollup/` says of itself; None where there is none."""
        try:
            about = self.scores.folder.read_json(ROLLUP_ABOUT)
        except FileNotFoundError:
            if self.scores.folder.names(ROLLUP):
                raise ConfigError(f"{self.scores.where}/{ROLLUP}: was not brought to its end; {_AGAIN}") from None
            return None
        except ValueError:
            raise ConfigError(f"{self.scores.where}/{ROLLUP_ABOUT}: damaged; {_AGAIN}") from None
        if about["recipe"] != self.scores.recipe.key:
            raise ConfigError(f"{self.scores.where}/{ROLLUP}: is of another recipe; {_AGAIN}")
        return dict(about)

    def _rollup(self, record: Record) -> pa.Table | None:
        if self.rolled_up is None:
            return None
        name = f"{ROLLUP}/{record.unit}.parquet"
        try:
            file = pq.ParquetFile(io.BytesIO(self.scores.folder.read(name)))
            of = (file.schema_arrow.metadata or {}).get(b"birder_ray.predictions", b"").decode()
            if of == record.parts[PREDICTIONS].sha256:
                return file.read()
            problem = "is of earlier predictions"
        except FileNotFoundError:
            problem = "missing"
        except (pa.ArrowException, OSError) as error:
            problem = f"cannot be read: {error}"
        raise ConfigError(f"{self.scores.where}/{name}: {problem}; {_AGAIN}")


def _kinds(classes: pa.Table, told: Options) -> np.ndarray:
    """(classes,) what each stands for: BLANK, PERSON, VEHICLE, or "" for an animal."""
    columns = [classes[name].to_pylist() for name in ("class_name", *RANKS) if name in classes.column_names]
    own = [{plain(name) for name in row if name} for row in zip(*columns, strict=True)]
    found = np.full(len(own), "", object)
    for kind, names in ((BLANK, told.blank), (PERSON, told.person), (VEHICLE, told.vehicle)):
        for name in names:
            at = [index for index, each in enumerate(own) if plain(name) in each]
            if not at:
                raise ConfigError(
                    f"--{kind} {name}: no class or taxon of the model is called so; classes.parquet has all"
                )
            found[at] = kind
    return found
