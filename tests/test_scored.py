"""The head of a scored chunk says all but its rows, and rows come back from whatever block they are in."""

import pyarrow as pa
import pytest

from birder_ray.chunk import ErrorRow
from birder_ray.schema import TRANSFER, WAIT
from birder_ray.scored import joined, look
from tests.built import ROWS, chunks


def test_a_head_is_its_chunk_without_the_rows():
    for chunk in chunks("p", "a.tar", 25, bad=frozenset({3, 7}), damaged=True):
        (head,) = look(chunk.to_table())
        for name in ("unit", "shard", "number", "last", "end", "errors", "engine", "bytes_read"):
            assert getattr(head, name) == getattr(chunk, name), name
        assert head.images == len(chunk.samples)
        assert all(isinstance(error, ErrorRow) for error in head.errors)
        assert head.seconds["read"] == 0.1 and head.seconds[WAIT] >= 0 and head.seconds[TRANSFER] >= 0


@pytest.mark.parametrize("per_block", [1, 2, 5, 100])
def test_units_are_joined_from_any_blocks(per_block):
    made = chunks("p", "a.tar", 3 * ROWS, bad=frozenset({3}))
    rows = [chunk.to_table() for chunk in made]
    blocks = [pa.concat_tables(rows[at : at + per_block]) for at in range(0, len(rows), per_block)]
    heads = [(head, block) for block in blocks for head in look(block)]
    assert [(head.unit, head.number) for head, _ in heads] == [(chunk.unit, chunk.number) for chunk in made]
    for number in range(3):
        of_unit = [(block, head.row) for head, block in heads if head.unit.endswith(f"{number:06d}")]
        tables = joined(of_unit)
        assert tables.keys() == {"predictions", "embeddings", "features"}
        expected = [index for index in range(number * ROWS, (number + 1) * ROWS) if index != 3]
        for table in tables.values():
            assert table["index"].to_pylist() == expected
        assert tables["embeddings"]["embedding"].to_pylist() == [[float(index)] * 4 for index in expected]


def test_what_was_not_scored_is_not_joined():
    (chunk, *_) = chunks("p", "a.tar", 4)
    with pytest.raises(AssertionError, match="has been scored"):
        joined([(chunk.after("x", 0, chunk.samples, []).to_table(), 0)])
