"""The files of a Darwin Core Archive: which terms their columns are, meta.xml, and the zip that holds them."""

import shutil
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from birder_ray.errors import ConfigError
from birder_ray.export.eml import document
from birder_ray.export.metadata import LICENCES, Metadata
from birder_ray.export.taxa import ABOVE
from birder_ray.export.text import header
from birder_ray.storage import redact

DWC, DC = "http://rs.tdwg.org/dwc/terms/", "http://purl.org/dc/terms/"
_TEXT = "http://rs.tdwg.org/dwc/text/"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in the zip: the same content gives the same bytes."""

_IDENTIFIED = ("dateIdentified", "identificationRemarks")
DATED = ("eventDate", "decimalLatitude", "decimalLongitude", "geodeticDatum")

_TOLD = {
    **dict.fromkeys(
        (
            "collectionCode", "coordinateUncertaintyInMeters", "country", "countryCode", "dataGeneralizations",
            "datasetName", "habitat", "informationWithheld", "institutionCode", "institutionID", "locality",
            "ownerInstitutionCode", "recordedBy", "samplingEffort", "samplingProtocol", "stateProvince",
        ),
        DWC,
    ),
    **dict.fromkeys(("accessRights", "bibliographicCitation", "language", "license", "rightsHolder"), DC),
}  # fmt: skip
"""Terms that metadata may give to all occurrences."""

_TOLD_OF_MEDIA = dict.fromkeys(("contributor", "creator", "license", "publisher", "rightsHolder"), DC)


@dataclass(frozen=True)
class File:
    """A table of the archive.

    Args:
        file: its name. row_type: of its rows. terms: of its columns, the first of which is the occurrence's id.
        same: values that are the same in all rows, by term.
    """

    file: str
    row_type: str
    terms: tuple[str, ...]
    same: Mapping[str, str]

    def header(self, more: Sequence[str] = ()) -> bytes:
        return header([term.rpartition("/")[2] for term in (*self.terms, *more)], "\t", "\n")


def _terms(*names: str) -> tuple[str, ...]:
    return tuple(f"{DWC}{name}" for name in names)


_TAXON = ("scientificName", "taxonRank", *ABOVE)
_STATUS = {f"{DWC}identificationVerificationStatus": "unverified"}
OCCURRENCE = File(
    "occurrence.txt",
    f"{DWC}Occurrence",
    _terms("occurrenceID", *_TAXON, *_IDENTIFIED),
    {f"{DWC}basisOfRecord": "MachineObservation", f"{DWC}occurrenceStatus": "present", **_STATUS},
)
IDENTIFICATION = File(
    "identification.txt",
    f"{DWC}Identification",
    _terms("occurrenceID", "identificationID", *_TAXON, *_IDENTIFIED),
    _STATUS,
)
MULTIMEDIA = File(
    "multimedia.txt",
    "http://rs.gbif.org/terms/1.0/Multimedia",
    (f"{DWC}occurrenceID", f"{DC}identifier", f"{DC}format"),
    {f"{DC}type": "StillImage"},
)


def constants(told: Metadata, file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Values, by term, that `told` gives to all occurrences and to all media. Raises ConfigError for other terms."""
    found: list[dict[str, str]] = []
    for what, values, known in (("occurrence", told.occurrence, _TOLD), ("media", told.media, _TOLD_OF_MEDIA)):
        if unknown := sorted(set(values or {}) - set(known)):
            raise ConfigError(
                f"{redact(file)}: {what}: {', '.join(unknown)}: not known; it may have {', '.join(sorted(known))}"
            )
        found.append({f"{known[name]}{name}": value for name, value in (values or {}).items()})
    found[0].setdefault(f"{DC}license", LICENCES[told.licence][1])
    return found[0], found[1]


def meta(told: tuple[dict[str, str], dict[str, str]], by: str, dated: bool, media: int) -> bytes:
    """meta.xml.

    Args:
        told: of `constants`. by: who identified all. dated: whether occurrences have DATED. media: rows of it; a table
            without any is left out.
    """
    identified = {f"{DWC}identifiedBy": by}
    root = ET.Element("archive", {"xmlns": _TEXT, "metadata": "eml.xml"})
    _table(root, "core", OCCURRENCE, _terms(*DATED) if dated else (), identified | told[0])
    _table(root, "extension", IDENTIFICATION, (), identified)
    if media:
        _table(root, "extension", MULTIMEDIA, (), told[1])
    return document(root)


def _table(root: ET.Element, role: str, file: File, more: tuple[str, ...], told: Mapping[str, str]) -> None:
    form = {"encoding": "UTF-8", "fieldsTerminatedBy": "\\t", "linesTerminatedBy": "\\n", "fieldsEnclosedBy": ""}
    table = ET.SubElement(root, role, {**form, "ignoreHeaderLines": "1", "rowType": file.row_type})
    ET.SubElement(ET.SubElement(table, "files"), "location").text = file.file
    ET.SubElement(table, "id" if role == "core" else "coreid", {"index": "0"})
    for index, term in enumerate((*file.terms, *more)):
        if index or role == "core":
            ET.SubElement(table, "field", {"index": str(index), "term": term})
    for term, value in {**file.same, **told}.items():
        ET.SubElement(table, "field", {"default": value, "term": term})


def pack(path: Path, folder: Path, meta_xml: bytes, eml_xml: bytes) -> None:
    """Put the tables in `folder` that meta.xml names, and the two documents, into a zip at `path`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as packed:
        for name, data in (("meta.xml", meta_xml), ("eml.xml", eml_xml)):
            packed.writestr(_entry(name), data)
        for file in (OCCURRENCE, IDENTIFICATION, MULTIMEDIA):
            if f">{file.file}<".encode() in meta_xml:
                with (
                    packed.open(_entry(file.file), "w", force_zip64=True) as target,
                    open(folder / file.file, "rb") as text,
                ):
                    shutil.copyfileobj(text, target, 2**20)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
    return entry
