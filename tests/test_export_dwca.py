"""Darwin Core Archives: held against the schemas of their documents, Darwin Core's terms, and python-dwca-reader."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import xmlschema
import yaml
from dwca.darwincore.terms import TERMS
from dwca.read import DwCAReader

from birder_ray.errors import ConfigError
from birder_ray.export import Options, export
from birder_ray.export.archive import DC, DWC, constants
from birder_ray.export.metadata import Metadata
from birder_ray.export.taxa import ABOVE, of_rollup
from birder_ray.rollup import rollup
from tests.exported import BAD, HOSTILE, METADATA, SCORED, SPECIES, expected, made, name_of, renamed

SCHEMAS = Path(__file__).parent / "schemas"
META, EML = (xmlschema.XMLSchema(str(SCHEMAS / name)) for name in ("dwc_text.xsd", "eml.xsd"))
KNOWN = {*TERMS, *(f"{DC}{name}" for name in ("type", "format", "identifier", "license", "rightsHolder", "creator"))}
IDENTIFICATION, MULTIMEDIA = f"{DWC}Identification", "http://rs.gbif.org/terms/1.0/Multimedia"
RANKS = {"kingdom", "phylum", "class", "order", "family", "genus", "species"}


@pytest.fixture
def folder(tmp_path):
    return made(tmp_path)


def archive(folder, tmp_path: Path, **told) -> Path:
    files = {"metadata": str(tmp_path / "metadata.yaml"), "taxonomy": str(tmp_path / "taxa.csv")}
    out = tmp_path / "out.zip"
    export(folder.url, "dwca", str(out), Options(**{**files, **told}), overwrite=True)
    return out


def check(path: Path) -> list[dict]:
    """The occurrences, each with its identifications and media, of an archive that is right in every way."""
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        META.validate(io.BytesIO(packed.read("meta.xml")))
        EML.validate(io.BytesIO(packed.read("eml.xml")))
        named = re.findall(r"<location>(.*?)</location>", packed.read("meta.xml").decode())
        assert sorted(packed.namelist()) == sorted(["meta.xml", "eml.xml", *named])
        for name in named:
            text = packed.read(name).decode()
            assert text.endswith("\n") and len({line.count("\t") for line in text[:-1].split("\n")}) == 1, name
    rows = []
    with DwCAReader(str(path)) as reader:
        assert reader.descriptor.core.type == f"{DWC}Occurrence" and reader.metadata is not None
        for table in (reader.descriptor.core, *reader.descriptor.extensions):
            assert {field["term"] for field in table.fields} <= KNOWN
            assert table.lines_to_ignore == 1 and table.file_encoding == "UTF-8"
        pointed = set()
        for file in reader.extension_files:
            together = [sample for sample, _ in groupby(line.split("\t")[0] for line in file)]
            assert len(set(together)) == len(together), "those of an occurrence stand together"
            pointed.update(together)
        for line in reader:
            row = short(line.data)
            row["identifications"] = [short(each.data) for each in line.extensions if each.rowtype == IDENTIFICATION]
            row["media"] = [short(each.data) for each in line.extensions if each.rowtype == MULTIMEDIA]
            rows.append(row)
    ids = [row["occurrenceID"] for row in rows]
    assert all(ids) and len(set(ids)) == len(ids) > 0 and pointed <= set(ids)
    numbers = [each["identificationID"] for row in rows for each in row["identifications"]]
    assert len(set(numbers)) == len(numbers)
    for row in rows:
        assert row["basisOfRecord"] == "MachineObservation" and row["occurrenceStatus"] == "present"
        assert row["identifications"], "GBIF wants all identifications, with that of the occurrence"
        first = row["identifications"][0]
        assert all(row[name] == first[name] for name in ("scientificName", "taxonRank", *ABOVE))
        for each in (row, *row["identifications"]):
            assert each["scientificName"] and each["taxonRank"] in RANKS
            assert each["identificationVerificationStatus"] == "unverified" and "sha256" in each["identifiedBy"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", each["dateIdentified"])
        assert bool(row.get("decimalLatitude")) == bool(row.get("decimalLongitude")) == bool(row.get("geodeticDatum"))
    return rows


def short(data: dict[str, str]) -> dict[str, str]:
    return {term.rpartition("/")[2]: value for term, value in data.items()}


def test_an_occurrence_per_photo_and_all_its_names(folder, tmp_path):
    rows = check(archive(folder, tmp_path, photos=str(tmp_path / "photos.csv")))
    assert [row["occurrenceID"] for row in rows] == [sample for sample, _ in expected()]
    for row, (sample, index) in zip(rows, expected(), strict=True):
        first = name_of(index)
        assert row["scientificName"] == SPECIES[first] and row["taxonRank"] == (
            "class" if first == "ibis" else "species"
        )
        assert (row["kingdom"], row["class"], row["phylum"]) == ("Animalia", "Aves", "")
        assert row["genus"] == {"heron": "Ardea", "stork": "Ciconia", "ibis": ""}[first]
        probability = re.fullmatch(r"probability (.*), class 1 of the 3 likeliest", row["identificationRemarks"])[1]
        assert float(probability) == pytest.approx(0.5 + index % 40 / 100)
        assert {each["scientificName"] for each in row["identifications"]} == set(SPECIES.values())
        assert row["license"] == "http://creativecommons.org/licenses/by/4.0/legalcode"
        if sample.startswith("a.tar"):
            assert row["eventDate"] == f"2025-05-{index + 1:02d}" and float(row["decimalLatitude"]) == 44 + index / 8
        else:
            assert (row["eventDate"], row["geodeticDatum"]) == ("2025-06-01" if index == 0 else "", "")


def test_what_is_no_occurrence_is_counted(folder, tmp_path):
    told = Options(
        metadata=str(tmp_path / "metadata.yaml"),
        taxonomy=str(tmp_path / "taxa.csv"),
        person=("IBIS",),
        blank=("Ciconiidae",),
        min_probability=0.6,
    )
    done = export(folder.url, "dwca", str(tmp_path / "out.zip"), told)
    herons = [index for _, index in expected() if index % 3 == 0]
    probable = [index for index in herons if 0.5 + index % 40 / 100 >= 0.6 - 1e-6]
    assert done.made.counts["occurrences"] == len(probable) == len(check(tmp_path / "out.zip"))
    storks, ibises = (sum(index % 3 == rest for _, index in expected()) for rest in (1, 2))
    left = {"blank": storks, "person": ibises, "below the probability": len(herons) - len(probable), "quarantined": BAD}
    assert done.made.left_out == left and sum(left.values()) + len(probable) == SCORED + BAD
    assert any("no eventDate" in note and "--photos" in note for note in done.made.notes)


def test_it_takes_the_lowest_certain_taxon(folder, tmp_path):
    rollup(folder.url, taxonomy=str(tmp_path / "taxa.csv"), confidence=0.605)
    rows = check(archive(folder, tmp_path))
    by_id = {row["occurrenceID"]: row for row in rows}
    certain = 0
    for sample, index in expected():
        top = 0.5 + index % 40 / 100
        if top + 0.08 < 0.605:  # not even of the class
            assert sample not in by_id
        elif top >= 0.605 and name_of(index) != "ibis":
            row = by_id[sample]
            assert (row["scientificName"], row["taxonRank"]) == (SPECIES[name_of(index)], "species")
            assert row["family"] and " or more, sum over" in row["identificationRemarks"]
            assert row["identificationRemarks"].endswith("which had to reach 0.605")
            certain += 1
        else:
            row = by_id[sample]
            # Its kingdom is as certain as its class; the family is not
            assert (row["scientificName"], row["taxonRank"], row["kingdom"]) == ("Aves", "class", "Animalia")
            assert row["class"] == "Aves" and row["family"] == row["genus"] == ""
        if sample in by_id:
            assert len(by_id[sample]["identifications"]) == 4
    assert certain and len(rows) > certain
    alone = archive(folder, tmp_path, taxonomy=None)
    assert all(len(row["identifications"]) == 1 for row in check(alone))
    assert len(check(archive(folder, tmp_path, rollup=False))) == SCORED


def test_a_higher_taxon_is_told_only_where_it_must_hold_the_lower_one():
    """The likeliest genus (0.3) need not be of the likeliest family (0.45)."""
    import pyarrow as pa

    table = pa.table(
        {
            "rollup_rank": ["genus", "genus", None],
            "rollup_taxon": ["Ardea", "Ardea", None],
            "rollup_probability": pa.array([0.3, 0.6, None], pa.float32()),
            "family": ["Ciconiidae", "Ardeidae", "Ardeidae"],
            "family_probability": pa.array([0.45, 0.6, 0.2], pa.float32()),
            "genus": ["Ardea", "Ardea", "Ardea"],
            "genus_probability": pa.array([0.3, 0.6, 0.1], pa.float32()),
        }
    )
    found = of_rollup(table)
    assert found["family"].to_pylist() == [None, "Ardeidae", None]
    assert found["genus"].to_pylist() == ["Ardea", "Ardea", None]
    assert found["scientificName"].to_pylist() == ["Ardea", "Ardea", None]


def test_media_have_urls(folder, tmp_path):
    renamed(folder, ["https://photos.example.org/1.jpg?size=l", "ü & b.JPG"])
    out = archive(folder, tmp_path, media_url="https://traps.example.org/2025/")
    first, second, *others = check(out)
    assert first["media"][0]["identifier"] == "https://photos.example.org/1.jpg?size=l"
    told = {"identifier": "https://traps.example.org/2025/%C3%BC%20%26%20b.JPG", "format": "image/jpeg"}
    assert second["media"] == [{**told, "type": "StillImage"}]
    assert all(len(row["media"]) == 1 for row in others)
    alone, *others = check(archive(folder, tmp_path))
    assert len(alone["media"]) == 1 and not any(row["media"] for row in others)


def test_no_name_breaks_a_line(folder, tmp_path):
    renamed(folder, HOSTILE)
    rows = check(archive(folder, tmp_path))
    assert [row["occurrenceID"] for row in rows[: len(HOSTILE)]] == [
        re.sub(r"[\t\r\n]+", " ", name) for name in HOSTILE
    ]


def test_the_metadata_are_in_it(folder, tmp_path):
    told = yaml.safe_load(METADATA)
    told |= {"publisher": "Trust", "published": "2025-12-31", "id": "doi:10.1/x", "language": "ro"}
    told |= {"occurrence": {"countryCode": "RO", "samplingProtocol": "camera <trap>"}, "licence": "CC0-1.0"}
    told |= {"contacts": [{"position": "Keeper", "email": "k@example.org"}], "media": {"license": "https://x.org/l"}}
    (tmp_path / "metadata.yaml").write_text(json.dumps(told))  # JSON is YAML, too
    out = archive(folder, tmp_path, media_url="https://x.org")
    row = check(out)[0]
    assert (row["countryCode"], row["samplingProtocol"]) == ("RO", "camera <trap>")
    assert row["license"].endswith("/zero/1.0/legalcode") and row["media"][0]["license"] == "https://x.org/l"
    with zipfile.ZipFile(out) as packed:
        dataset = EML.to_dict(io.BytesIO(packed.read("eml.xml")))["dataset"]
    assert dataset["abstract"]["para"] == ["Photos of 40 camera traps.", "One paragraph more."]
    assert dataset["pubDate"] == "2025-12-31" and dataset["contact"][0]["positionName"] == ["Keeper"]
    assert dataset["creator"][0]["individualName"] == [{"givenName": "Ada", "surName": "Byron"}]


def test_what_metadata_say_is_taken_as_it_is_written(folder, tmp_path):
    """YAML would have Norway for `false`, and an octal number."""
    more = 'occurrence: {countryCode: NO, institutionCode: 0123, locality: "bell\\a", samplingEffort: 1.50}\n'
    (tmp_path / "metadata.yaml").write_text(f'{METADATA}{more}published: 2025-12-31\nid: "b\\a"\n')
    row = check(archive(folder, tmp_path))[0]
    told = [row[term] for term in ("countryCode", "institutionCode", "locality", "samplingEffort")]
    assert told == ["NO", "0123", "bell\\x07", "1.50"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": None}, "GBIF demands title"),
        ({"creators": [], "licence": ""}, "GBIF demands creators, licence"),
        ({"licence": "CC-BY-SA-4.0"}, "licence CC-BY-SA-4.0: GBIF takes CC0-1.0, CC-BY-4.0, CC-BY-NC-4.0"),
        ({"creators": [{"given_name": "Ada"}]}, "creators: each has .* surname, organization or position"),
        ({"creators": [{"surname": "Byron", "mail": "x"}]}, "creators: each has"),
        ({"contacts": [{"surname": "Byron", "orcid": "1"}]}, "contacts: orcid 1"),
        ({"published": "soon"}, "published soon: write it as"),
        ({"colour": "red"}, "colour: not known; it may have .*title"),
        ({"occurrence": {"eventDate": "2025"}}, "occurrence: eventDate: not known; it may have .*countryCode"),
        ({"media": {"identifier": "x"}}, "media: identifier: not known"),
        ({"occurrence": ["RO"]}, "occurrence is a mapping"),
        ({"description": ["7"]}, "description is to be a text"),
        ({"licence": ["CC-BY-4.0"]}, "licence is to be a text"),
        ({"title": " "}, "GBIF demands title"),
        ({"creators": [{"surname": ""}]}, "creators: each has"),
        ({"occurrence": {"country": None}}, "occurrence is a mapping of terms to texts"),
    ],
)
def test_metadata_that_will_not_do(folder, tmp_path, change, said):
    (tmp_path / "metadata.yaml").write_text(yaml.safe_dump({**yaml.safe_load(METADATA), **change}))
    with pytest.raises(ConfigError, match=rf"metadata\.yaml: {said}"):
        archive(folder, tmp_path)
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"metadata": None}, "needs --metadata FILE"),
        ({"metadata": "/nowhere.yaml"}, r"/nowhere\.yaml: no such metadata file"),
        ({"taxonomy": None}, "give --taxonomy FILE .* or run birder-ray rollup first"),
        ({"person": ["owl"]}, "--person owl: no class or taxon"),
        ({"min_probability": 0.99}, "not one sample is an occurrence .*below the probability"),
        ({"min_probability": 2}, "--min-probability 2"),
    ],
)
def test_what_lacks_is_named(folder, tmp_path, told, said):
    with pytest.raises(ConfigError, match=said):
        archive(folder, tmp_path, **told)


def test_a_signed_metadata_file_is_named_without_its_signature():
    url = "https://bucket.example/m.yaml?X-Amz-Signature=secret"
    told = Metadata("t", "d", [{"surname": "s"}], "CC0-1.0", [{"surname": "s"}], occurrence={"colour": "red"})
    with pytest.raises(ConfigError, match=r"m\.yaml.*: occurrence: colour: not known") as raised:
        constants(told, url)
    assert "secret" not in str(raised.value)


def swapped(name: str, old: str, new: str) -> Callable[[dict[str, str]], None]:
    def change(files: dict[str, str]) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    "fault",
    [
        swapped("meta.xml", "terms/scientificName", "terms/scientificNames"),
        swapped("meta.xml", '<id index="0" />', ""),
        swapped("meta.xml", '<coreid index="0" />', ""),
        swapped("meta.xml", "<files>", "<file>"),
        swapped("meta.xml", "identification.txt", "identifications.txt"),
        swapped("meta.xml", "MachineObservation", "Photo"),
        swapped("meta.xml", 'index="1" term', 'index="2" term'),
        swapped("occurrence.txt", "a.tar/1\t", "a.tar/0\t"),
        swapped("occurrence.txt", "a.tar/1\t", "a.tar/1\t\t"),
        swapped("occurrence.txt", "\tspecies\t", "\tspecis\t"),
        swapped("occurrence.txt", "Ardea cinerea", ""),
        swapped("identification.txt", "a.tar/1\t", "a.tar/99\t"),
        swapped("identification.txt", "/2\t", "/1\t"),
        swapped("eml.xml", "<language>en</language>", ""),
        swapped("eml.xml", "Herons &amp; storks of the delta", " "),
        swapped("eml.xml", "licenses/by/4.0", "licenses/by-sa/4.0"),
        swapped("eml.xml", "<pubDate>20", "<pubDate>"),
        lambda files: files.pop("eml.xml"),
        lambda files: files.update(more="x"),
    ],
    ids=lambda fault: "",
)
def test_the_check_finds_faults(folder, tmp_path, fault):
    out = archive(folder, tmp_path)
    check(out)
    with zipfile.ZipFile(out) as packed:
        files = {name: packed.read(name).decode() for name in packed.namelist()}
    before = dict(files)
    fault(files)
    assert files != before
    with zipfile.ZipFile(out, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    with pytest.raises(Exception):  # noqa: B017 - of the schema, of the reader, or an assertion
        check(out)


def test_terms_are_those_of_the_standards():
    from birder_ray.export import archive as files

    assert {f"{space}{name}" for name, space in files._TOLD.items() if space == DWC} <= set(TERMS)
    assert all(term in KNOWN for file in (files.OCCURRENCE, files.IDENTIFICATION) for term in file.terms)
