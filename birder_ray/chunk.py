"""A chunk: consecutive samples of one unit, on their way through the steps together as one Arrow row.

read fills `data` (encoded images), preprocess replaces it by `images`, infer replaces that by `tables`. A sample that
fails at a step leaves `samples` and enters `errors`, so the two together are always what was read.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from birder_ray.errors import SampleError

SAMPLE = pa.struct(
    [
        pa.field("sample", pa.string()),
        pa.field("index", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("uri", pa.string()),
    ]
)
ERROR = pa.struct(
    [
        pa.field("sample", pa.string()),
        pa.field("index", pa.int64()),
        pa.field("step", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("message", pa.string()),
        pa.field("uri", pa.string()),
    ]
)
CHUNK_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("number", pa.int32()),
        pa.field("last", pa.bool_()),
        pa.field("end", pa.bool_()),
        pa.field("samples", pa.list_(SAMPLE)),
        pa.field("errors", pa.list_(ERROR)),
        pa.field("seconds", pa.map_(pa.string(), pa.float64())),
        pa.field("engine", pa.string()),
        pa.field("bytes_read", pa.int64()),
        pa.field("left", pa.float64()),
        pa.field("data", pa.large_list(pa.large_binary())),
        pa.field("images", pa.large_binary()),
        pa.field("image_dtype", pa.string()),
        pa.field("image_shape", pa.list_(pa.int64())),
        pa.field("tables", pa.map_(pa.string(), pa.large_binary())),
    ]
)


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the input of a network, as in birder's `inference_preset`.

    Args:
        size: height and width in pixels.
        center_crop: fraction of the resized image that the crop keeps.
        simple_crop: resize until `size` is covered, keeping the aspect ratio, then crop.
        decoder: `torchvision` as `birder-predict` does, `pil` as the model cards' `infer_image` does.
        channels: 3 (RGB) or 1 (grey).
    """

    size: tuple[int, int]
    center_crop: float = 1.0
    simple_crop: bool = False
    decoder: Literal["torchvision", "pil"] = "torchvision"
    channels: int = 3


@dataclass(frozen=True)
class Sample:
    """One image: its unique id in the run, position in the shard, label text if any, and where its bytes are."""

    sample: str
    index: int
    label: str | None
    uri: str

    def failed(self, step: str, error: SampleError) -> "ErrorRow":
        return ErrorRow(self.sample, self.index, step, error.error_type, str(error), self.uri)


@dataclass(frozen=True)
class ErrorRow:
    """One row of the errors table (`index` is -1 for a whole shard)."""

    sample: str
    index: int
    step: str
    error_type: str
    message: str
    uri: str


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of one unit.

    Args:
        unit: name of the unit. shard: name of its shard. number: position of the chunk in the unit.
        last: no chunk of this unit follows. end: the shard ends with this unit.
        samples: good so far, in order. errors: quarantined so far.
        seconds: time spent by step, waiting (`wait`) and unpacked (`transfer`).
        engine: that scored it (after infer): eager or compiled.
        bytes_read: encoded bytes of its samples. left: when the last step was done with it, seconds since the epoch.
        data: encoded image bytes, one per sample (after read; after preprocess, of the images that a GPU is to decode,
            and empty for the others).
        images: N,H,W,C array, one image per decoded sample (after preprocess); uint8, or float32 in 0..1 (see
            preprocess).
        tables: Arrow IPC stream bytes by output table (after infer).
    """

    unit: str
    shard: str
    number: int
    last: bool
    end: bool
    samples: list[Sample]
    errors: list[ErrorRow]
    seconds: dict[str, float] = field(default_factory=dict)
    engine: str | None = None
    bytes_read: int = 0
    left: float = field(default_factory=time.time, compare=False)
    data: list[bytes] | None = None
    images: np.ndarray | None = None
    tables: dict[str, bytes] | None = None

    def after(
        self, step: str, seconds: float, samples: list[Sample], new_errors: list[ErrorRow], **payload: Any
    ) -> "Chunk":
        """The chunk as it leaves `step`: its payload replaced, its errors added to."""
        blank: dict[str, Any] = {"data": None, "images": None, "tables": None, **payload}
        done = self.spent({step: seconds})
        return replace(done, samples=samples, errors=self.errors + new_errors, left=time.time(), **blank)

    def pick(self, positions: Sequence[int]) -> "Chunk":
        """The chunk with only the samples at these positions."""
        images = self.images
        if images is not None:
            decoded = [position for position in range(len(self.samples)) if not (self.data and self.data[position])]
            row_of = {position: row for row, position in enumerate(decoded)}
            images = images[[row_of[position] for position in positions if position in row_of]]
        return replace(
            self,
            samples=[self.samples[position] for position in positions],
            data=None if self.data is None else [self.data[position] for position in positions],
            images=images,
        )

    def spent(self, seconds: Mapping[str, float]) -> "Chunk":
        """The chunk with more time spent on it."""
        return replace(self, seconds=dict(Counter(self.seconds) + Counter(seconds)))

    def to_table(self) -> pa.Table:
        """One-row Arrow table; `images` is not copied."""
        row: dict[str, Any] = {
            "unit": self.unit,
            "shard": self.shard,
            "number": self.number,
            "last": self.last,
            "end": self.end,
            "samples": [vars(s) for s in self.samples],
            "errors": [vars(e) for e in self.errors],
            "seconds": list(self.seconds.items()),
            "engine": self.engine,
            "bytes_read": self.bytes_read,
            "left": self.left,
            "data": self.data,
            "tables": None if self.tables is None else list(self.tables.items()),
        }
        columns = {name: pa.array([row.get(name)], CHUNK_SCHEMA.field(name).type) for name in CHUNK_SCHEMA.names}
        if self.images is not None:
            pixels = np.ascontiguousarray(self.images)
            offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
            columns["images"] = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)]
            )
            columns["image_dtype"] = pa.array([str(pixels.dtype)], pa.string())
            columns["image_shape"] = pa.array([list(pixels.shape)], pa.list_(pa.int64()))
        return pa.table(columns, schema=CHUNK_SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table, row: int = 0) -> "Chunk":
        """The chunk in row `row`; `images` and `tables` are views of the table's memory."""

        def value(name: str) -> Any:
            return table.column(name)[row].as_py()

        images = None
        packed = table.column("images")[row]
        if packed.is_valid:
            images = np.frombuffer(packed.as_buffer(), value("image_dtype")).reshape(value("image_shape"))
        tables = value("tables")
        return cls(
            unit=value("unit"),
            shard=value("shard"),
            number=value("number"),
            last=value("last"),
            end=value("end"),
            samples=[Sample(**s) for s in value("samples")],
            errors=[ErrorRow(**e) for e in value("errors")],
            seconds=dict(value("seconds")),
            engine=value("engine"),
            bytes_read=value("bytes_read"),
            left=value("left"),
            data=value("data"),
            images=images,
            tables=None if tables is None else dict(tables),
        )
