"""`evaluate`: every number against scikit-learn and torchmetrics, labels from everywhere, and what it refuses."""

import csv
import json
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.evaluate import evaluate, lines
from birder_ray.evaluate.accuracy import Counts, scalars
from birder_ray.evaluate.labels import class_by_label
from birder_ray.folder import Folder
from birder_ray.verify import verify
from tests.graded import graded

CLASSES = 12
NAMES = [f"bird_{n}" for n in range(CLASSES)]
SHARDS = {"a.tar": 1500, "b.tar": 1250, "c.tar": 700}
NEAR = 1e-9
CLOSE = {"rel": 0, "abs": NEAR}


@dataclass
class Reference:
    """Rows in the order of the tables: labels (n,), float32 probabilities (n, classes), sample ids."""

    labels: np.ndarray
    probabilities: np.ndarray
    samples: list[str]

    @property
    def top(self) -> np.ndarray:
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Class 11 is never a label, class 10 hardly ever predicted; probabilities are sharper than they are right."""
    dice, rows = np.random.default_rng(7), sum(SHARDS.values())
    labels = dice.integers(0, CLASSES - 1, rows)
    logits = dice.normal(0, 1.5, (rows, CLASSES))
    logits[np.arange(rows), labels] += 2
    logits[:, 10] -= 4
    grown = np.exp(logits)
    samples = [f"{shard}/{index}.jpg" for shard, size in SHARDS.items() for index in range(size)]
    return Reference(labels, (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32), samples)


def destination(path: Path, reference: Reference, labels, names=NAMES, k=5, bad=None) -> Folder:
    starts = dict(zip(SHARDS, np.cumsum([0, *SHARDS.values()]), strict=False))
    top = reference.top[:, :k]
    probabilities = np.take_along_axis(reference.probabilities, top, axis=1)

    def rows(shard, start, stop):
        at = slice(starts[shard] + start, starts[shard] + stop)
        return labels[at], top[at], probabilities[at]

    folder = Folder(str(path))
    graded(folder, names, SHARDS, rows, bad=bad)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference) -> Folder:
    return destination(tmp_path_factory.mktemp("run"), reference, [NAMES[n] for n in reference.labels])


@pytest.fixture(scope="module")
def plain(tmp_path_factory, reference) -> Folder:
    """Without labels of its own; sample 3 of b.tar is quarantined."""
    made = tmp_path_factory.mktemp("plain") / "out"
    return destination(made, reference, [None] * len(reference.labels), bad={"b.tar": 3})


def table(folder: Folder, name: str) -> pa.Table:
    return pq.read_table(f"{folder.path}/evaluation/{name}.parquet")


def write_csv(path: Path, rows, header=("sample", "label")) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def values(evaluation) -> dict[str, float]:
    return {name: each.value for name, each in evaluation.metrics.items()}


def test_all_is_equal_to_scikit_learn_and_torchmetrics(folder, reference):
    found = evaluate(folder.url, bootstrap=0)
    y, p = reference.labels, reference.top[:, 0]
    labels, wide = torch.tensor(y), torch.tensor(reference.probabilities.astype(np.float64))
    assert values(found) == {
        "top1": pytest.approx(metrics.accuracy_score(y, p), **CLOSE),
        "top5": pytest.approx(metrics.top_k_accuracy_score(y, wide.numpy(), k=5, labels=range(CLASSES)), **CLOSE),
        "macro_f1": pytest.approx(metrics.f1_score(y, p, average="macro"), **CLOSE),
        "micro_f1": pytest.approx(metrics.f1_score(y, p, average="micro"), **CLOSE),
        "balanced_accuracy": pytest.approx(metrics.recall_score(y, p, average="macro", labels=range(11)), **CLOSE),
        "ece": pytest.approx(float(_ce_compute(wide.max(1).values, torch.tensor(y == p), 15)), **CLOSE),
        "aurc": pytest.approx(risk_by_hand(reference), **CLOSE),
    }
    single = float(multiclass_calibration_error(wide, labels, CLASSES, 15, "l1"))  # the same, in float32
    assert found.metrics["ece"].value == pytest.approx(single, rel=0, abs=1e-6)
    assert found.metrics["top1"].low is None
    assert (found.evaluated, found.scored, found.matching, found.classes) == (len(y), len(y), "name", CLASSES)
    per_class = table(folder, "classes")
    wanted = metrics.precision_recall_fscore_support(y, p, labels=range(CLASSES), zero_division=np.nan)
    for column, numbers in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        if column == "f1":
            numbers = np.nan_to_num(numbers)
        got = per_class[column].to_numpy().astype(np.float64)
        assert got == pytest.approx(np.asarray(numbers, np.float64), nan_ok=True, **CLOSE), column
    top5 = multiclass_accuracy(wide, labels, CLASSES, average="none", top_k=5).numpy()[:11]
    assert per_class["top5_recall"].to_numpy()[:11] == pytest.approx(top5, rel=0, abs=1e-6)  # torchmetrics: float32
    assert per_class["predicted"].to_pylist() == np.bincount(p, minlength=CLASSES).tolist()


def risk_by_hand(reference: Reference) -> float:
    """Each image's share of errors among those at least as sure, by thousandths."""
    step = np.floor(reference.confidence * 1000)
    wrong = reference.top[:, 0] != reference.labels
    return float(np.mean([wrong[step >= each].mean() for each in step]))


def test_the_tables_hold_what_scikit_learn_counts(folder, reference):
    evaluate(folder.url, bootstrap=0)
    y, p = reference.labels, reference.top[:, 0]
    matrix = metrics.confusion_matrix(y, p, labels=range(CLASSES))
    pairs = table(folder, "confusions").to_pylist()
    assert [each["count"] for each in pairs] == sorted((each["count"] for each in pairs), reverse=True)
    assert sum(each["count"] for each in pairs) == (y != p).sum()
    for each in pairs:
        label, prediction = NAMES.index(each["label"]), NAMES.index(each["prediction"])
        assert label != prediction and each["count"] == matrix[label, prediction]
        assert each["share_of_label"] == pytest.approx(matrix[label, prediction] / matrix[label].sum(), **CLOSE)
    assert np.count_nonzero(matrix) - np.count_nonzero(np.diag(matrix)) == len(pairs)
    for each in table(folder, "calibration").to_pylist():
        inside = (reference.confidence >= each["lower"]) & (reference.confidence < each["upper"])
        assert each["count"] == inside.sum()
        if inside.any():
            assert each["accuracy"] == pytest.approx((y == p)[inside].mean(), **CLOSE)
            assert each["confidence"] == pytest.approx(reference.confidence[inside].mean(), **CLOSE)
        else:
            assert each["accuracy"] is each["confidence"] is None
    curve = table(folder, "coverage").to_pylist()
    assert curve[0]["coverage"] == 1.0 and 500 < len(curve) <= 1000
    for each in curve[::37]:
        kept = reference.confidence >= each["threshold"]
        assert (each["kept"], each["coverage"]) == (kept.sum(), pytest.approx(kept.mean(), **CLOSE))
        assert each["accuracy"] == pytest.approx((y == p)[kept].mean(), **CLOSE)


def test_labels_may_come_from_files_and_be_names_or_indices(tmp_path, folder, plain, reference):
    wanted = evaluate(folder.url, bootstrap=0)
    here = destination(tmp_path / "out", reference, [str(n) for n in reference.labels])
    assert evaluate(here.url, bootstrap=0).matching == "index"
    shuffled = np.random.default_rng(0).permutation(len(reference.labels))
    rows = [(reference.samples[n], int(reference.labels[n])) for n in shuffled]
    files = {
        "name": write_csv(tmp_path / "n.csv", [(sample, NAMES[n]) for sample, n in rows]),
        "index": write_csv(tmp_path / "i.csv", rows),
        "scientific name": write_csv(tmp_path / "s.csv", [(s, NAMES[n].upper().replace("_", " ")) for s, n in rows]),
    }
    quarantined = reference.samples.index("b.tar/3.jpg")
    keep = np.arange(len(reference.labels)) != quarantined
    accuracy = metrics.accuracy_score(reference.labels[keep], reference.top[keep, 0])
    found = {way: evaluate(plain.url, file, bootstrap=0) for way, file in files.items()}
    path = tmp_path / "i.parquet"
    pq.write_table(pa.table({"id": [sample for sample, _ in rows], "class": [n for _, n in rows]}), path)
    found["index "] = evaluate(plain.url, str(path), sample_column="id", label_column="class", bootstrap=0)
    for way, each in found.items():
        assert each.matching == way.strip()
        assert (each.evaluated, each.unscored, each.quarantined) == (wanted.evaluated - 1, 1, 1)
        assert values(each) == values(found["name"])
        assert each.metrics["top1"].value == pytest.approx(accuracy, **CLOSE)
        assert len(each.labels_sha256) == 64


def test_scientific_names_of_taxonomic_class_names(tmp_path, reference):
    names = [f"{n:05}_Animalia_Chordata_Aves_Ordo_Familia_Genus_species-{chr(97 + n)}" for n in range(CLASSES)]
    labels = [f"genus species-{chr(97 + n)}" for n in reference.labels]
    found = evaluate(destination(tmp_path, reference, labels, names).url, bootstrap=0)
    assert found.matching == "scientific name" and found.evaluated == len(labels)
    accuracy = metrics.accuracy_score(reference.labels, reference.top[:, 0])
    assert found.metrics["top1"].value == pytest.approx(accuracy, **CLOSE)


def test_missing_and_unknown_labels_are_counted_and_left_out(tmp_path, reference):
    labels = [NAMES[n] for n in reference.labels]
    labels[:3], labels[3:8], labels[8:10] = [None, "", None], ["dodo"] * 5, ["moa"] * 2
    found = evaluate(destination(tmp_path, reference, labels).url, bootstrap=0)
    assert (found.unlabelled, found.unknown, found.evaluated) == (3, 7, len(labels) - 10)
    assert list(found.unknown_labels.items()) == [("dodo", 5), ("moa", 2)]
    y, p = reference.labels[10:], reference.top[10:, 0]
    assert found.metrics["macro_f1"].value == pytest.approx(metrics.f1_score(y, p, average="macro"), **CLOSE)
    shown = "\n".join(lines(found))
    assert "7: dodo (5), moa (2)" in shown and f"{found.metrics['top1'].value:.4f}" in shown


def test_a_file_may_label_some_of_the_samples_and_others_besides(tmp_path, plain, reference):
    rows = [(reference.samples[n], NAMES[reference.labels[n]]) for n in range(1000)]
    file = write_csv(
        tmp_path / "l.csv", [*rows, rows[0], ("b.tar/3.jpg", "bird_1"), ("z.tar/0.jpg", "bird_1"), ("y", "")]
    )
    found = evaluate(plain.url, file, bootstrap=0)
    assert (found.evaluated, found.unlabelled) == (1000, len(reference.labels) - 1 - 1000)
    assert (found.unscored, found.quarantined) == (2, 1)


def test_fewer_stored_classes_give_a_smaller_k(tmp_path, reference):
    labels = [NAMES[n] for n in reference.labels]
    three = evaluate(destination(tmp_path / "3", reference, labels, k=3).url, bootstrap=0).metrics
    wanted = (reference.top[:, :3] == reference.labels[:, None]).any(axis=1).mean()
    assert three["top3"].value == pytest.approx(wanted, **CLOSE) and "top5" not in three
    assert "top1" in evaluate(destination(tmp_path / "1", reference, labels, k=1).url, bootstrap=0).metrics


def test_intervals_are_those_of_the_binomial_distribution(folder, reference):
    found = evaluate(folder.url, bootstrap=2000)
    rows = len(reference.labels)
    for name in ("top1", "top5", "micro_f1"):
        each = found.metrics[name]
        half = 1.959964 * np.sqrt(each.value * (1 - each.value) / rows)
        assert each.value - each.low == pytest.approx(half, rel=0.12)
        assert each.high - each.value == pytest.approx(half, rel=0.12)
    for name, each in found.metrics.items():
        assert each.low < each.high, name
        if name != "ece":  # noise adds to an absolute difference, so its interval lies a little high
            assert each.low < each.value < each.high, name


def test_intervals_of_f1_are_those_of_drawing_rows(folder, reference):
    found = evaluate(folder.url, bootstrap=1000).metrics["macro_f1"]
    dice, rows = np.random.default_rng(3), len(reference.labels)
    drawn = []
    for _ in range(300):
        at = dice.integers(0, rows, rows)
        drawn.append(metrics.f1_score(reference.labels[at], reference.top[at, 0], average="macro"))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    dice, inside, trials, rows = np.random.default_rng(11), 0, 300, 400
    for seed in range(trials):
        labels = dice.integers(0, 3, rows)
        right = dice.random(rows) < 0.8
        counts = Counts(3, 15)
        counts.add(labels, np.where(right, labels, (labels + 1) % 3)[:, None], np.full(rows, 0.8, np.float32))
        top1 = scalars(counts, 200, seed)["top1"]
        inside += top1.low <= 0.8 <= top1.high
    assert 0.90 <= inside / trials <= 0.985


def test_a_confidence_of_one_is_in_the_last_bin():
    counts = Counts(2, 10)
    counts.add(np.array([0, 0, 1]), np.array([[0], [1], [1]]), np.array([1.0, 0.5, 0.0], np.float32))
    assert counts.binned.sum(axis=0).nonzero()[0].tolist() == [0, 5, 9]
    assert counts.stepped.sum(axis=0).nonzero()[0].tolist() == [0, 500, 999]


def test_the_same_again_writes_the_same_bytes_and_harms_nothing(tmp_path, plain, reference):
    file = write_csv(
        tmp_path / "l.csv", [(s, NAMES[n]) for s, n in zip(reference.samples, reference.labels, strict=True)]
    )
    written = []
    for _ in range(2):
        evaluate(plain.url, file, bootstrap=50)
        written.append({each.name: each.read_bytes() for each in sorted(Path(plain.path, "evaluation").iterdir())})
    assert written[0] == written[1]
    names = ["calibration.parquet", "classes.parquet", "confusions.parquet", "coverage.parquet", "summary.json"]
    assert list(written[0]) == names
    summary = json.loads(written[0]["summary.json"])
    assert summary["metrics"]["top1"].keys() == {"value", "low", "high"} and summary["labels"] == file
    assert verify(plain.url, deep=True).samples == len(reference.labels)


def test_what_cannot_be_evaluated_is_told(tmp_path, plain, reference):
    good = (reference.samples[0], "bird_1")
    cases = {
        r"sample x has the labels bird_1 and bird_2; keep one": [("x", "bird_2"), ("x", "bird_1")],
        r"labels are as 'dodo', classes as 'bird_0', 'bird_1', 'bird_2'; give --label": [(good[0], "dodo")],
        r"they are as 'photos/1.jpg', those of .* as 'a.tar/0.jpg'; give --sample-column": [("photos/1.jpg", "bird_1")],
        r"l.csv: there are no labels": [(good[0], "")],
    }
    for message, rows in cases.items():
        with pytest.raises(ConfigError, match=message):
            evaluate(plain.url, write_csv(tmp_path / "l.csv", rows))
    with pytest.raises(ConfigError, match=r"l\.csv: has no column label, but sample, truth; give --label-column"):
        evaluate(plain.url, write_csv(tmp_path / "l.csv", [good], ("sample", "truth")))
    with pytest.raises(ConfigError, match="column label of predictions: there are no labels; give --labels FILE"):
        evaluate(plain.url)
    with pytest.raises(ConfigError, match=r"gone\.csv: cannot be read"):
        evaluate(plain.url, str(tmp_path / "gone.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"bad\.parquet: .*give CSV with a header, or \.parquet"):
        evaluate(plain.url, str(tmp_path / "bad.parquet"))
    for wrong in ({"bins": 0}, {"bootstrap": -1}, {"seed": -1}):
        with pytest.raises(ConfigError, match="give at least 1, 0 and 0"):
            evaluate(plain.url, **wrong)


def test_a_mistake_in_the_question_leaves_the_last_answer(tmp_path, plain, reference):
    file = write_csv(tmp_path / "l.csv", [(reference.samples[0], " bird_1\u00a0"), (reference.samples[1], "\u00a0")])
    found = evaluate(plain.url, file)
    assert (found.evaluated, found.unlabelled, found.unscored) == (1, found.scored - 1, 0)
    before = plain.read("evaluation/summary.json")
    for told in ({"label_column": "truth"}, {"sample_column": "label"}, {"memory": "much"}):
        with pytest.raises(ConfigError):
            evaluate(plain.url, file, **told)
    assert plain.read("evaluation/summary.json") == before


def test_whole_numbers_that_pandas_made_floats_of_are_indices():
    classes = pa.table({"class_name": NAMES})
    assert class_by_label(["3", "4.0", "11"], classes) == ("index", {"3": 3, "4.0": 4, "11": 11})
    with pytest.raises(ConfigError, match="no label is a class"):
        class_by_label(["3", "4.5"], classes)


def test_a_confidence_on_an_edge_is_in_the_upper_bin():
    tenths = np.arange(10, dtype=np.float32) / np.float32(10)
    counts = Counts(2, bins=10)
    counts.add(np.zeros(10, int), np.zeros((10, 2), int), tenths)
    assert counts.binned.tolist() == [[0] * 10, [1] * 10]


def test_too_little_memory_is_told(tmp_path, plain):
    rows = [(f"{n}.jpg", f"bird_{n % CLASSES}") for n in range(200_000)]
    with pytest.raises(RunFailed, match=r"[Mm]emory.*give more --memory than 5MB"):
        evaluate(plain.url, write_csv(tmp_path / "l.csv", rows), memory="5MB")


@pytest.mark.parametrize("own", [True, False])
def test_a_damaged_part_is_named(tmp_path, reference, own):
    labels = [NAMES[n] for n in reference.labels]
    folder = destination(tmp_path / "out", reference, labels)
    file = None if own else write_csv(tmp_path / "l.csv", zip(reference.samples, labels, strict=True))
    name = f"predictions/{max(folder.names('predictions'))}"
    folder.write(name, b"PAR1")
    with pytest.raises(ConfigError, match=rf"{name}.*repair"):
        evaluate(folder.url, file)
    assert not folder.exists("evaluation/summary.json")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Python's and numpy's memory: of more rows, the same counts are kept."""

    def rows(shard, start, stop):
        n = np.arange(start, stop)
        top = np.stack([(n + k) % CLASSES for k in range(5)], axis=1)
        return [NAMES[each] for each in n % CLASSES], top, np.tile(np.array([0.6, 0.1, 0.1, 0.1, 0.1]), (len(n), 1))

    peaks = []
    for size in (80_000, 260_000):
        folder = Folder(str(tmp_path / str(size)))
        graded(folder, NAMES, {"a.tar": size}, rows, unit_rows=2000)
        evaluate(folder.url, bootstrap=0)
        tracemalloc.start()
        found = evaluate(folder.url, bootstrap=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.evaluated == size and found.metrics["top1"].value == 1.0
    assert peaks[1] < peaks[0] + 0.5e6  # a float64 for each row would be 1.4e6 more
