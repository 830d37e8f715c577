"""MegaDetector, COCO and Hugging Face exports: read by what their users read them with, or held against the format."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from birder_ray.classes import classes_table
from birder_ray.commit import Ledger
from birder_ray.export import Options, export
from birder_ray.folder import Folder
from birder_ray.parts import encode
from birder_ray.rollup import rollup
from tests.built import NAMES, build
from tests.exported import BAD, SCORED, SHARDS, expected, made, name_of

FORMAT = jsonschema.Draft202012Validator(json.loads((Path(__file__).parent / "schemas/megadetector.json").read_text()))


@pytest.fixture
def folder(tmp_path) -> Folder:
    return made(tmp_path)


def megadetector(folder: Folder, tmp_path: Path, **told) -> dict:
    out = tmp_path / "md.json"
    export(folder.url, "megadetector", str(out), Options(**told), overwrite=True)
    return json.loads(out.read_text())


def check(found: dict) -> None:
    """What a JSON schema cannot say."""
    FORMAT.validate(found)
    files = [image["file"] for image in found["images"]]
    assert len(set(files)) == len(files)
    if "classification_category_descriptions" in found:
        assert found["classification_category_descriptions"].keys() == found["classification_categories"].keys()
    for image in found["images"]:
        for detection in image["detections"] or ():
            assert detection["category"] in found["detection_categories"] and isinstance(detection["conf"], float)
            pairs = detection["classifications"]
            assert {category for category, _ in pairs} <= found["classification_categories"].keys()
            assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)


def test_megadetector_has_scored_and_quarantined_samples(folder, tmp_path):
    found = megadetector(folder, tmp_path, taxonomy=str(tmp_path / "taxa.csv"))
    check(found)
    *scored, one, two = found["images"]
    assert [image["file"] for image in scored] == [sample for sample, _ in expected()]
    for image, (_, index) in zip(scored, expected(), strict=True):
        (detection,) = image["detections"]
        assert (detection["category"], detection["bbox"]) == ("1", [0, 0, 1, 1])
        assert detection["conf"] == detection["classifications"][0][1] == pytest.approx(0.5 + index % 40 / 100)
        assert found["classification_categories"][detection["classifications"][0][0]] == name_of(index)
    assert [one["file"], two["file"]] == ["a.tar/3", "b.tar/3"] and one["failure"] == "EmptyFile: no bytes"
    described = found["classification_category_descriptions"]
    assert list(described.values()) == [
        "0;aves;;ardeidae;ardea;cinerea;ardea cinerea",
        "1;aves;;ciconiidae;ciconia;ciconia;ciconia ciconia",
        "2;aves;;;;;ibis",
    ]


def test_megadetector_knows_blanks_and_people(folder, tmp_path):
    found = megadetector(folder, tmp_path, blank=["heron"], person=["stork"], vehicle=["ibis"])
    check(found)
    for image, (_, index) in zip(found["images"], expected(), strict=False):
        kinds = [found["detection_categories"][each["category"]] for each in image["detections"]]
        assert kinds == {"heron": [], "stork": ["person"], "ibis": ["vehicle"]}[name_of(index)]


def test_classes_of_one_name_and_tautonyms_are_told_apart(folder, tmp_path):
    folder.write("classes.parquet", encode(classes_table(["fox (2)", "fox", "fox"]), {}))
    found = megadetector(folder, tmp_path)
    assert list(found["classification_categories"].values()) == ["fox (2)", "fox", "fox (2) (2)"]
    folder.write("classes.parquet", encode(classes_table(["heron", "stork", "ibis"]), {}))
    (tmp_path / "low.csv").write_text("class_name,genus,species\nheron,vulpes,vulpes\nstork,meles,meles meles\n")
    found = megadetector(folder, tmp_path, taxonomy=str(tmp_path / "low.csv"))
    described = found["classification_category_descriptions"]
    assert [described["0"], described["1"]] == ["0;;;;vulpes;vulpes;vulpes vulpes", "1;;;;meles;meles;meles meles"]


def test_the_check_finds_faults(folder, tmp_path):
    def at(value, *path):
        for key in path:
            value = value[key]
        return value

    for *path, key, new in (
        ("info", "format_version", 1.6),
        ("info", "format_version", "1.5"),
        ("info", "detector", ""),
        ("images", 0, "detections", None),
        ("images", 0, "failure", "it did"),
        ("images", -1, "detections", []),
        ("images", 0, "detections", 0, "conf", 1),
        ("images", 0, "detections", 0, "conf", 1.5),
        ("images", 0, "detections", 0, "category", "4"),
        ("images", 0, "detections", 0, "bbox", [0, 0, 1]),
        ("images", 0, "detections", 0, "classifications", [["7", 0.5]]),
        ("images", 0, "detections", 0, "classifications", [["1", 0.5], ["0", 0.6]]),
        ("images", 1, "file", "a.tar/0"),
        ("classification_categories", "0", " "),
        ("classification_categories", "x", "owl"),
    ):
        found = megadetector(folder, tmp_path)
        check(found)
        at(found, *path)[key] = new
        with pytest.raises((AssertionError, jsonschema.ValidationError)):
            check(found)


@pytest.mark.skipif(importlib.util.find_spec("megadetector") is None, reason="megadetector is not installed")
def test_its_own_validator_agrees(folder, tmp_path):
    from megadetector.data_management.integrity_check_json_db import IntegrityCheckOptions, integrity_check_json_db
    from megadetector.postprocessing.validate_batch_results import validate_batch_results

    found = validate_batch_results(megadetector(folder, tmp_path))["validation_results"]
    assert found["errors"] == found["warnings"] == []
    export(folder.url, "coco", str(tmp_path / "coco.json"))
    told = IntegrityCheckOptions()
    told.bRequireLocation = False
    _, _, problems = integrity_check_json_db(str(tmp_path / "coco.json"), told)
    assert not any(problems.values())


def test_pycocotools_reads_coco(folder, tmp_path):
    from pycocotools.coco import COCO

    told = Options(taxonomy=str(tmp_path / "taxa.csv"), photos=str(tmp_path / "photos.csv"), blank=("ibis",))
    done = export(folder.url, "coco", str(tmp_path / "coco.json"), told)
    assert done.made.counts == {"images": SCORED, "annotations": SCORED} and done.made.left_out == {"quarantined": BAD}
    coco = COCO(str(tmp_path / "coco.json"))
    assert coco.getImgIds() == [sample for sample, _ in expected()]
    names = {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())}
    assert names == {0: "empty", 1: "heron", 2: "stork", 3: "ibis"}
    assert coco.loadCats([1])[0]["species"] == "Ardea cinerea" and coco.loadCats([1])[0]["supercategory"] == "Aves"
    for sample, index in expected():
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[sample]))
        assert names[annotation["category_id"]] == name_of(index).replace("ibis", "empty")
        assert annotation["score"] == pytest.approx(0.5 + index % 40 / 100, abs=1e-6) and "bbox" not in annotation
        (image,) = coco.loadImgs([sample])
        dated = {"date_captured": f"2025-05-{index + 1:02d}", "latitude": 44 + index / 8, "longitude": -index}
        dated = dated if sample.startswith("a.tar") else {"date_captured": "2025-06-01"} if index == 0 else {}
        assert image == {"id": sample, "file_name": sample, **dated}
    assert set(coco.getImgIds(catIds=[1])) == {sample for sample, index in expected() if index % 3 == 0}


@pytest.fixture
def datasets(monkeypatch, tmp_path) -> ModuleType:
    """The package, with its cache in a folder of the test, and off line."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_datasets_reads_a_folder(folder, tmp_path, datasets):
    rollup(folder.url, taxonomy=str(tmp_path / "taxa.csv"))
    out = str(tmp_path / "hub")
    done = export(folder.url, "huggingface", out, Options(metadata=str(tmp_path / "metadata.yaml")))
    assert done.made.counts["samples"] == SCORED and not done.made.notes
    configs = datasets.get_dataset_config_names(out)
    assert configs == ["predictions", "embeddings", "features", "rollup", "errors", "classes"]
    loaded = {name: datasets.load_dataset(out, name, split="train") for name in configs}
    samples = [sample for sample, _ in expected()]
    for name in configs[:4]:
        assert loaded[name]["sample"][:] == samples
    predictions = loaded["predictions"]
    assert predictions.features["prediction"].names == NAMES
    assert predictions["prediction"][:] == [index % 3 for _, index in expected()]
    assert loaded["errors"].num_rows == BAD + 1 and loaded["classes"]["class_name"][:] == NAMES
    assert datasets.load_dataset(out, split="train").num_rows == SCORED  # predictions are the default


def test_its_parts_are_those_that_were_committed(folder, tmp_path):
    export(folder.url, "huggingface", str(tmp_path / "hub"))
    out = Folder(str(tmp_path / "hub" / "data"))
    names = {f"{table}/{unit}.parquet" for unit in Ledger(folder).units() for table in ("predictions", "features")}
    for name in [*names, "classes.parquet", "manifest.json"]:
        assert out.read(name) == folder.read(name)


def test_the_card_says_what_the_hub_wants_to_know(folder, tmp_path):
    from huggingface_hub import DatasetCard

    out = tmp_path / "hub"
    done = export(folder.url, "huggingface", str(out))
    assert "licence" in done.made.notes[0] and DatasetCard.load(out / "README.md").data.license is None
    export(folder.url, "huggingface", str(out), Options(metadata=str(tmp_path / "metadata.yaml")), overwrite=True)
    card = DatasetCard.load(out / "README.md")
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en"])
    assert card.data.pretty_name == "Herons & storks of the delta" and "0" * 64 in card.text
    for config in card.data.configs:
        (files,) = config["data_files"]
        assert list(out.glob(files["path"]))


@pytest.mark.parametrize("names", [[*NAMES[:2], NAMES[0]], [f"c{n}" for n in range(1001)], ["a", "", "b"]])
def test_names_that_make_no_class_label_stay_text(tmp_path, datasets, names):
    place = Folder(str(tmp_path / "scores"))
    build(place, SHARDS)
    place.write("classes.parquet", encode(classes_table(names), {}))
    export(place.url, "huggingface", str(tmp_path / "hub"))
    found = datasets.load_dataset(str(tmp_path / "hub"), "predictions", split="train")
    assert found.features["prediction"].dtype == "string" and found.num_rows == SCORED
    found = megadetector(place, tmp_path)
    check(found)
    assert len(set(found["classification_categories"].values())) == len(names)
