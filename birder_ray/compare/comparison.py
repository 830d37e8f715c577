"""What a comparison of two destinations says: plain numbers, and the JSON made of them.

A is before, B after. docs/comparison.md defines each number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from birder_ray.intervals import wilson

VERSION = 1
"""Of the JSON's layout."""

_DIGITS = 9
"""Decimals that the JSON keeps: beyond them, a sum of floats depends on the order that the cores took."""


@dataclass(frozen=True)
class Rate:
    """`count` samples of `total`, the share that is, and its 95 % Wilson interval; None of no samples."""

    count: int
    total: int
    rate: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, total: int) -> "Rate":
        if total == 0:
            return cls(count, total, None, None, None)
        return cls(count, total, count / total, *wilson(count, total))


@dataclass(frozen=True)
class Side:
    """One of the two destinations. classes: names in its class list. scored, quarantined: samples."""

    url: str
    recipe: str
    model: str
    network: str
    weights_sha256: str
    finished: bool
    tables: tuple[str, ...]
    classes: int
    scored: int
    quarantined: int


@dataclass(frozen=True)
class Failing:
    """A sample that A scored and B quarantined, and why."""

    sample: str
    step: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Samples:
    """Where the samples of both are.

    Args:
        both: scored in both. missing: of those scored in A, those of which B has nothing. added: scored in B, and A has
            nothing of them. newly_failing: of those scored in A, those that B quarantined; error_types counts them.
            recovered: the other way round. failing_in_both: quarantined in both. newly_damaged: shards that B could
            not read to their end, and A could; newly_damaged_shards: the first ones by name. *_examples: the same.
    """

    both: int
    missing: Rate
    added: int
    newly_failing: Rate
    recovered: int
    failing_in_both: int
    error_types: Mapping[str, int]
    newly_failing_examples: tuple[Failing, ...]
    missing_examples: tuple[str, ...]
    newly_damaged: int
    newly_damaged_shards: tuple[str, ...]


@dataclass(frozen=True)
class Flip:
    """So many samples were predicted `before` in A and `after` in B."""

    before: str
    after: str
    count: int


@dataclass(frozen=True)
class ClassShift:
    """A class's samples in A and B, those it gained and lost, and the difference of its shares with its interval."""

    name: str
    a: int
    b: int
    gained: int
    lost: int
    net: int
    shift: float
    low: float
    high: float


@dataclass(frozen=True)
class Confident:
    """Flips among the samples whose top probability reached `threshold` in at least one of both, and in both."""

    threshold: float
    either: Rate
    both: Rate


@dataclass(frozen=True)
class Shift:
    """Of the top class's probability in B less that in A.

    Args:
        quantiles: to the nearest 0.001. histogram: samples in 40 equal bins from -1 to 1.
    """

    samples: int
    mean: float
    mean_absolute: float
    min: float
    max: float
    quantiles: Mapping[str, float]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A sample that changed much. change: the least that the distributions over classes must differ by, 0 to 1."""

    sample: str
    before: str
    probability_before: float
    after: str
    probability_after: float
    change: float


@dataclass(frozen=True)
class Predictions:
    """The top class of the samples scored in both, compared by name.

    Args:
        names_shared: names that both class lists have. flips: samples whose top class is another. pairs: of the
            flips, the most frequent; pairs_seen: how many there are. classes: the largest shifts; classes_seen: classes
            that either predicted. total_variation: half the sum of all absolute shifts. same: of the samples that
            have not flipped. changes: the largest.
    """

    names_shared: int
    flips: Rate
    confident: tuple[Confident, ...]
    pairs: tuple[Flip, ...]
    pairs_seen: int
    classes: tuple[ClassShift, ...]
    classes_seen: int
    total_variation: float
    probability: Shift
    same: Shift | None
    changes: tuple[Change, ...]

    @property
    def largest_shift(self) -> float:
        """The largest absolute shift of a class's share."""
        return abs(self.classes[0].shift)


@dataclass(frozen=True)
class Cosine:
    """Cosine similarity of a sample's two embeddings: 0 where one has length 0, and so no direction. Samples where both
    have are left out."""

    samples: int
    mean: float
    min: float
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a choice of the samples scored in both.

    Args:
        size_a, size_b: values of one. cosine: None where the sizes differ. cka: similarity of the two spaces, 1 for the
            same up to rotation and scale; None for fewer than four samples, or where all embeddings are the same.
    """

    size_a: int
    size_b: int
    samples: int
    cosine: Cosine | None
    cka: float | None


@dataclass(frozen=True)
class Comparison:
    """All that `compare` found.

    Args:
        predictions, embeddings: None where they cannot be compared. notes: sentences on what limits the numbers.
    """

    a: Side
    b: Side
    samples: Samples
    predictions: Predictions | None
    embeddings: Embeddings | None
    notes: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """As plain JSON values; the same for the same inputs."""
        told: dict[str, Any] = _plain({"comparison": VERSION, **asdict(self)})
        return told


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case float():
            return round(value, _DIGITS) + 0.0  # no -0.0
        case _:
            return value
