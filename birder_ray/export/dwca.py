"""Darwin Core Archive: an occurrence per photo, and an identification per name that the network gave it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.errors import ConfigError
from birder_ray.export import archive, media
from birder_ray.export.archive import DATED, IDENTIFICATION, OCCURRENCE
from birder_ray.export.eml import eml
from birder_ray.export.metadata import read_metadata
from birder_ray.export.rows import Made, Rows, Unit
from birder_ray.export.taxa import ABOVE, chosen, of_classes, of_rollup
from birder_ray.export.text import tabs

_TAXON = ["scientificName", "taxonRank", *ABOVE]


def write(rows: Rows, path: Path) -> Made:
    """Write the archive to `path`.

    Raises:
        ConfigError: there is no metadata, no taxon of any class, or not one occurrence.
    """
    if rows.told.metadata is None:
        raise ConfigError(
            "a Darwin Core Archive needs --metadata FILE: YAML with title, description, creators, licence"
        )
    told = read_metadata(rows.told.metadata)
    constants = archive.constants(told, rows.told.metadata)
    if not rows.ranks and rows.rolled_up is None:
        raise ConfigError(
            "no taxon of these classes is known: give --taxonomy FILE (CSV or Parquet with class_name and ranks), or "
            "run birder-ray rollup first"
        )
    with TemporaryDirectory(prefix="birder-ray-") as folder:
        made = _Archive(rows, Path(folder))
        made.fill()
        how = eml(told, f"birder-ray-{rows.scores.recipe.key}", rows.finished[:10], _how(rows))
        archive.pack(path, Path(folder), archive.meta(constants, _by(rows), rows.photos is not None, made.media), how)
    return made.told()


class _Archive:
    """Fills the files of an archive.

    Args:
        folder: for them.
    """

    def __init__(self, rows: Rows, folder: Path):
        self.rows, self.folder = rows, folder
        self.lineages = of_classes(rows.classes, rows.ranks)
        self.counts = Counter({"occurrences": 0, "identifications": 0})
        self.left_out: Counter[str] = Counter()
        self.undated = self.media = 0

    def fill(self) -> None:
        """Write the files. Raises ConfigError where there is not one occurrence."""
        with (
            open(self.folder / OCCURRENCE.file, "wb") as occurrences,
            open(self.folder / IDENTIFICATION.file, "wb") as identifications,
            open(self.folder / archive.MULTIMEDIA.file, "wb") as pictures,
        ):
            occurrences.write(OCCURRENCE.header(DATED if self.rows.photos else ()))
            identifications.write(IDENTIFICATION.header())
            pictures.write(archive.MULTIMEDIA.header())
            for unit in self.rows.units(["sample", "top_indices", "top_probabilities"]):
                first, kept = self._occurrences(unit)
                occurrences.write(tabs(first))
                self.counts["occurrences"] += first.num_rows
                names = self._identifications(unit, kept)
                identifications.write(tabs(names))
                self.counts["identifications"] += names.num_rows
                shown = media.pictures(first["occurrenceID"], self.rows.told.media_url)
                pictures.write(tabs(shown))
                self.media += shown.num_rows
        for table in self.rows.quarantined():
            self.left_out["quarantined"] += table.num_rows
        if not self.counts["occurrences"]:
            why = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items() if count)
            raise ConfigError(f"{self.rows.scores.where}: not one sample is an occurrence ({why or 'there is none'})")

    def told(self) -> Made:
        counts = dict(self.counts) | ({"media": self.media} if self.media else {})
        notes = []
        if self.undated:
            remedy = "--photos has none for them" if self.rows.photos else "give --photos FILE"
            notes.append(f"{self.undated:,} occurrences have no eventDate, which GBIF demands: {remedy}")
        if not self.rows.ranks:
            notes.append("identifications are those of the rollup alone: give --taxonomy FILE for the top classes, too")
        return Made(counts, {reason: count for reason, count in self.left_out.items() if count}, notes)

    def _occurrences(self, unit: Unit) -> tuple[pa.Table, pa.Array]:
        """Those of a unit, and which of its rows they are."""
        indices = pc.list_element(unit.predictions["top_indices"], 0).to_numpy()
        if unit.rollup is None:
            taxa = chosen(self.lineages, indices)
            taxa = taxa.append_column("probability", pc.list_element(unit.predictions["top_probabilities"], 0))
        else:
            taxa = of_rollup(unit.rollup)
        kinds = self.rows.kinds[indices]
        named = pc.is_valid(taxa["scientificName"]).to_numpy()
        probable = pc.fill_null(pc.greater_equal(taxa["probability"], self.rows.told.min_probability), False).to_numpy()
        nameless = "with no certain taxon" if self.rows.rolled_up else "of classes without a taxon"
        reasons = np.select([kinds != "", ~named, ~probable], [kinds, nameless, "below the probability"], "")
        self.left_out.update(reason for reason in reasons if reason)
        kept = pa.array(np.flatnonzero(reasons == ""))
        taxa = taxa.take(kept)
        columns = {"occurrenceID": unit.predictions["sample"].take(kept)}
        columns |= {name: taxa[name] for name in _TAXON}
        columns["dateIdentified"] = pa.repeat(_day(unit), len(kept))
        columns["identificationRemarks"] = self._remarks(taxa["probability"], 0)
        if unit.photos is not None:
            dated = unit.photos.take(kept).rename_columns(["eventDate", "decimalLatitude", "decimalLongitude"])
            placed = pc.is_valid(dated["decimalLatitude"])
            columns |= {name: dated[name] for name in dated.column_names}
            columns["geodeticDatum"] = pc.if_else(placed, "EPSG:4326", pa.scalar(None, pa.string()))
            self.undated += dated["eventDate"].null_count
        else:
            self.undated += len(kept)
        return pa.table(columns), kept

    def _identifications(self, unit: Unit, kept: pa.Array) -> pa.Table:
        """All of each occurrence, the one that it bears itself first."""
        found = list(self._named(unit, kept))
        table = pa.concat_tables(found)
        order = np.argsort(np.concatenate([each["row"].to_numpy() for each in found]), kind="stable")
        table = table.take(pa.array(order))
        return table.filter(pc.is_valid(table["scientificName"])).drop_columns("row")

    def _named(self, unit: Unit, kept: pa.Array) -> Iterator[pa.Table]:
        predictions = unit.predictions.take(kept)
        if unit.rollup is not None:
            taxa = of_rollup(unit.rollup.take(kept))
            yield self._table(unit, predictions, taxa, taxa["probability"], 0)
        for place in range(self.rows.top if self.rows.ranks else 0):
            taxa = chosen(self.lineages, pc.list_element(predictions["top_indices"], place).to_numpy())
            probabilities = pc.list_element(predictions["top_probabilities"], place)
            yield self._table(unit, predictions, taxa, probabilities, place + 1)

    def _table(
        self, unit: Unit, predictions: pa.Table, taxa: pa.Table, probabilities: pa.Array, place: int
    ) -> pa.Table:
        n, sample = len(predictions), predictions["sample"]
        columns = {"occurrenceID": sample}
        columns["identificationID"] = pc.binary_join_element_wise(sample, f"#{self.rows.scores.recipe.key}/{place}", "")
        columns |= {name: taxa[name] for name in _TAXON}
        columns["dateIdentified"] = pa.repeat(_day(unit), n)
        columns["identificationRemarks"] = self._remarks(probabilities, place)
        columns["row"] = pa.array(np.arange(n))
        return pa.table(columns)

    def _remarks(self, probabilities: pa.ChunkedArray, place: int) -> pa.ChunkedArray:
        about = self.rows.rolled_up
        if place or about is None:
            after = f", class {place or 1} of the {self.rows.top} likeliest"
        else:
            bound = "" if about["exact"] else " or more"
            after = f"{bound}, sum over the classes of the taxon, which had to reach {about['confidence']:g}"
        return pc.binary_join_element_wise("probability ", probabilities.cast(pa.string()), after, "")


def _day(unit: Unit) -> pa.Scalar:
    """On which the unit was scored."""
    return pa.scalar(unit.record.finished[:10] or None, pa.string())


def _by(rows: Rows) -> str:
    model = rows.model
    return f"{model['name']} (network {model['network']}, weights sha256 {model['weights_sha256']})"


def _how(rows: Rows) -> str:
    version, recipe = rows.scores.manifest["versions"]["birder-ray"], rows.scores.recipe.key
    return (
        f"Names were given to single photos by a neural network, {_by(rows)}, with birder-ray {version}, recipe "
        f"{recipe}. No person has verified them. One occurrence is one photo: several photos may show the same animal, "
        "and one photo several."
    )
