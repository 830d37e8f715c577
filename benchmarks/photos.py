"""The photos of ../shared/photos, repeated, in every form that birder-ray reads: tars, a folder, Parquet, S3."""

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
PER_SHARD = 640
"""A multiple of the sizes that chunks and units have, so that only the last batch of a run can be short."""

ROW_GROUP = 256


def photo_files() -> list[Path]:
    """200 JPEGs of about 110 kB."""
    return sorted(PHOTOS.glob("*.JPEG")) or sys.exit(f"no photos in {PHOTOS}")


def repeated(images: int) -> Iterator[tuple[str, Path]]:
    """Names, which sort as they come, and files of so many photos."""
    files = photo_files()
    return ((f"{number:06d}.jpg", files[number % len(files)]) for number in range(images))


def _shards(images: int) -> Iterator[tuple[int, list[tuple[str, Path]]]]:
    each = list(repeated(images))
    return ((start // PER_SHARD, each[start : start + PER_SHARD]) for start in range(0, images, PER_SHARD))


def as_tars(folder: Path, images: int) -> Path:
    folder.mkdir(parents=True)
    for number, shard in _shards(images):
        with tarfile.open(folder / f"bench-{number:06d}.tar", "w") as tar:
            for name, photo in shard:
                tar.add(photo, name)
    return folder


def as_files(folder: Path, images: int) -> Path:
    (folder / "any").mkdir(parents=True)  # birder-predict takes folders of folders
    for name, photo in repeated(images):
        shutil.copyfile(photo, folder / "any" / name)
    return folder


def as_parquet(folder: Path, images: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, shard in _shards(images):
        table = pa.table({"image": pa.array([photo.read_bytes() for _, photo in shard], pa.binary())})
        pq.write_table(table, folder / f"bench-{number:06d}.parquet", row_group_size=ROW_GROUP, compression="none")
    return folder


@contextmanager
def on_s3(tars: Path) -> Iterator[dict[str, Any]]:
    """`source` of the tars on the S3 server that the tests use, SeaweedFS on loopback: it takes CPU from the run."""
    import s3fs

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests import conftest  # also hides this account's credentials from all that follows

    with ExitStack() as stack:
        endpoint = stack.enter_context(contextmanager(conftest.seaweed_endpoint.__wrapped__)())
        s3 = stack.enter_context(contextmanager(conftest._bucket)(endpoint))
        s3fs.S3FileSystem(**s3.options).put(f"{tars}{os.sep}", f"{s3.bucket}/photos/", recursive=True)
        yield {"uri": f"{s3.url}/photos", "options": s3.options}


@contextmanager
def sources(kinds: list[str], folder: Path, images: int) -> Iterator[dict[str, dict[str, Any]]]:
    """Blocks `source` of a RunConfig for kinds of tar, folder, parquet and s3, while the `with` block runs."""
    makers = {"tar": as_tars, "folder": as_files, "parquet": as_parquet}
    made: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for kind in kinds:
            if kind == "s3":
                made[kind] = stack.enter_context(on_s3(as_tars(folder / "for-s3", images)))
            else:
                made[kind] = {"uri": str(makers[kind](folder / kind, images))}
        yield made
