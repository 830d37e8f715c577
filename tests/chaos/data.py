"""Small real datasets in three formats, damaged as real ones are, and what an undisturbed run makes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray import pipeline
from birder_ray.config import RunConfig
from birder_ray.folder import Folder
from birder_ray.read import read_chunks
from birder_ray.scored import Scored
from birder_ray.sizes import Hardware
from birder_ray.testing import make_images, make_shards
from birder_ray.verify import verify
from tests.built import InHand

IMAGES, SHARDS, UNIT = 12, 3, 3
FORMATS = ("tar", "images", "parquet")
BAD = b"this is no image"


@dataclass(frozen=True)
class Data:
    """A dataset on a local disk.

    Args:
        whole: destination of an undisturbed run. units: committed there. bytes: of all its files.
    """

    source: str
    model: str
    whole: str
    units: int
    bytes: int

    def config(self, destination: str, **fields: Any) -> dict[str, Any]:
        """A pipeline file of this dataset."""
        told: dict[str, Any] = {
            "source": {"uri": self.source},
            "model": {"name": self.model},
            "destination": destination,
            "compute": {"unit_rows": UNIT, "batch_size": 2, "inference_actors": 1, "preprocess_actors": 1},
        }
        for block, options in fields.items():
            told[block] = {**told.get(block, {}), **options}
        return told


def make(format: str, folder: Path, model: str, remote: Folder | None = None) -> Data:
    """Write the dataset, score it without Ray, and hold the outcome against what was written.

    Args:
        remote: where the run is to read the dataset, if not on the local disk.
    """
    source, whole = folder / "data", folder / "whole"
    bad = _write(format, source)
    if remote is not None:
        for path in source.rglob("*.*"):
            remote.write(str(path.relative_to(source)), path.read_bytes())
    data = Data(remote.url if remote else str(source), model, str(whole), 0, 0)
    config = RunConfig(**data.config(str(whole), source={"options": remote.options if remote else {}}))
    with _without_ray():
        pipeline.run(config)
    totals = verify(str(whole))
    truth = IMAGES * SHARDS - bad
    if totals.rows != truth:
        raise AssertionError(f"{format}: {totals.rows} rows of {truth} good images")
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    return replace(data, units=totals.units, bytes=size)


def _write(format: str, folder: Path) -> int:
    """Returns how many images cannot be scored."""
    if format == "parquet":
        folder.mkdir()
        for number in range(SHARDS):
            images = make_images(IMAGES, number)
            images[5] = BAD
            pq.write_table(pa.table({"image": images}), folder / f"{number}.parquet", row_group_size=5)
        return SHARDS
    make_shards(str(folder), IMAGES, SHARDS, format)  # type: ignore[arg-type]
    if format == "images":
        (folder / "class-0" / "000003.jpg").write_bytes(BAD)
        (folder / "class-1" / "000010.jpg").write_bytes(b"")
        return 2
    path = folder / "shard-000001.tar"
    content, image = path.read_bytes(), make_images(IMAGES, 1)[7]
    assert image in content
    content = content.replace(image, BAD.ljust(len(image)))
    cut = content.index(make_images(IMAGES, 1)[9]) + 100  # in the middle of an image: it and those behind it are lost
    path.write_bytes(content[:cut])
    return 1 + IMAGES - 9


@contextmanager
def _without_ray() -> Iterator[None]:
    """The three steps one after another in this process: an undisturbed run that no fault can reach."""

    def stream(work: Sequence[Any], config: RunConfig, spec: Any, *_: Any) -> Iterator[Scored]:
        from birder_ray.infer import Infer
        from birder_ray.preprocess import Preprocess

        preprocess, infer = Preprocess(spec), Infer(config.model, config.outputs, config.compute, batch_size=2)
        for each in work:
            for chunk in read_chunks(each, config.source, 32):
                yield InHand.chunk(infer(preprocess(chunk)))

    @contextmanager
    def session(*_: Any, **__: Any) -> Iterator[Hardware]:
        yield Hardware(2, 0, 2, 0, 16 * 1024**3)

    stream_of, near = patch.object(pipeline.runtime, "stream", stream), patch.object(pipeline, "Near", InHand)
    with stream_of, near, patch.object(pipeline, "session", session):
        yield
