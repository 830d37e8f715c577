"""Parquet with image bytes: column choice, row groups, damage."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError, ShardDamaged
from birder_ray.source import Item, count_samples, list_shards, read_samples
from birder_ray.testing import make_images, make_shards

IMAGES = [bytes([65 + i]) * 50 for i in range(10)]


def read(path: Path, **config: Any) -> list[Item]:
    source = SourceConfig(uri=str(path), **config)
    (shard,) = list_shards(source)
    assert shard.count == pq.read_metadata(path).num_rows
    return list(read_samples(shard, source))


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "s.parquet", **options)
    return folder / "s.parquet"


def test_samples_labels_and_bytes_are_those_written(tmp_path: Path) -> None:
    truth = make_shards(str(tmp_path), images_per_shard=5, shards=2, format="parquet")
    source = SourceConfig(uri=str(tmp_path))
    found = [
        (sample.sample, shard.name, sample.index, sample.label, data)
        for shard in list_shards(source)
        for sample, data in read_samples(shard, source)
    ]
    images = make_images(5, 0) + make_images(5, 1)
    assert found == [(*row, image) for row, image in zip(truth, images, strict=True)]


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("nested", [True, False])
def test_plain_and_hugging_face_columns(tmp_path: Path, type_: pa.DataType, nested: bool) -> None:
    data: list[bytes | None] = [b"one", None, b"", b"four"]
    column = pa.array(data, type_)
    if nested:
        column = pa.StructArray.from_arrays([column, pa.array(["a.jpg"] * 4)], ["bytes", "path"])
    items = read(write(tmp_path, {"picture": column, "label": pa.array([0, 1, None, 3])}))
    assert [sample.label for sample, _ in items] == ["0", "1", None, "3"]
    assert [sample.sample for sample, _ in items] == [f"s.parquet#{row}" for row in range(4)]
    assert [data for _, data in items if isinstance(data, bytes)] == [b"one", b"four"]
    assert [data.error_type for _, data in items if isinstance(data, SampleError)] == ["EmptyFile", "EmptyFile"]


def test_null_struct_is_an_empty_file(tmp_path: Path) -> None:
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": b"one", "path": "a"}, None], type_)
    (_, first), (_, second) = read(write(tmp_path, {"image": column}))
    assert first == b"one" and isinstance(second, SampleError)


def test_usual_name_wins_over_order_and_the_configuration_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, {"thumb": [b"t"], "image": [b"i"], "other": [b"o"], "kind": ["fox"]})
    assert read(path)[0][1] == b"i"
    ((sample, data),) = read(path, image_column="other", label_column="kind")
    assert (data, sample.label) == (b"o", "fox")


@pytest.mark.parametrize("config", [{"image_column": "typo"}, {"image_column": "kind"}, {"label_column": "typo"}])
def test_wrong_column_is_said_at_listing(tmp_path: Path, config: dict[str, str]) -> None:
    path = write(tmp_path, {"image": [b"i"], "kind": ["fox"]})
    with pytest.raises(ConfigError, match="the columns are image, kind"):
        list_shards(SourceConfig(uri=str(path), format="parquet", **config))


def test_resume_gives_the_tail(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES}, row_group_size=3)
    source = SourceConfig(uri=str(path))
    (shard,) = list_shards(source)
    full = list(read_samples(shard, source))
    assert list(read_samples(shard, source, start=4)) == full[4:]
    assert list(read_samples(shard, source, 1, lambda index: index in (0, 2, 9))) == [full[2], full[9]]


def test_damaged_page_ends_the_shard_but_not_the_row_groups_around_it(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": IMAGES}, row_group_size=3)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(data))
    source = SourceConfig(uri=str(path))
    (shard,) = list_shards(source)
    items: list[Item] = []
    with pytest.raises(ShardDamaged) as caught:
        items.extend(read_samples(shard, source))
    assert caught.value.error_type == "DamagedParquet"
    assert [data for _, data in items] == IMAGES[:3]
    assert [data for _, data in read_samples(shard, source, start=6)] == IMAGES[6:]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 9])
def test_damaged_footer_does_not_stop_the_listing(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"image": IMAGES})
    (tmp_path / "a.parquet").write_bytes(content)
    source = SourceConfig(uri=str(tmp_path))
    damaged, good = list_shards(source)
    assert (damaged.format, damaged.count, good.format, good.count) == ("parquet", None, "parquet", 10)
    assert count_samples(good, source, 4) == 4
    with pytest.raises(ShardDamaged) as caught:
        next(read_samples(damaged, source))
    assert caught.value.error_type == "DamagedParquet"


def test_shard_with_other_columns_is_damaged_not_fatal(tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES})
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "t.parquet")
    source = SourceConfig(uri=str(tmp_path))
    _, odd = list_shards(source)
    with pytest.raises(ShardDamaged) as caught:
        next(read_samples(odd, source))
    assert caught.value.error_type == "MissingColumn"
