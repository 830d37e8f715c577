"""A sample that kills its process is found and left out; one killed by chance is not."""

import pytest

from birder_ray.chunk import Chunk, Sample
from birder_ray.errors import RunFailed
from birder_ray.guard import HOPELESS, AttemptBook, guarded


class Killed(BaseException):
    """Stands for the death of the process: nothing after it runs."""


def _chunk(n: int = 4) -> Chunk:
    samples = [Sample(f"s/{i}", i, None, f"u{i}") for i in range(10, 10 + n)]
    return Chunk("unit", "s", 0, True, True, samples, [], data=[str(i).encode() for i in range(n)])


def _until_done(stage, book: AttemptBook, chunk: Chunk) -> tuple[Chunk, int]:
    """Ray's part: the chunk again after each death, in a new process."""
    for deaths in range(100):
        try:
            return guarded("decode", stage, book, chunk), deaths
        except Killed:
            continue
    raise AssertionError("never ends")


def test_nothing_happens_to_a_healthy_chunk():
    calls = []

    def stage(chunk: Chunk) -> Chunk:
        calls.append(len(chunk.samples))
        return chunk

    result, deaths = _until_done(stage, AttemptBook(), _chunk())
    assert (result, deaths, calls) == (_chunk(), 0, [4])


@pytest.mark.parametrize("deadly", [{11}, {10, 13}, {10, 11, 12, 13}])
def test_poison_is_quarantined_and_the_rest_goes_through(deadly):
    def stage(chunk: Chunk) -> Chunk:
        if deadly & {sample.index for sample in chunk.samples}:
            raise Killed
        return chunk

    result, deaths = _until_done(stage, AttemptBook(), _chunk())
    assert {sample.index for sample in result.samples} == {10, 11, 12, 13} - deadly
    assert {error.index for error in result.errors} == deadly
    assert {(error.step, error.error_type) for error in result.errors} == {("decode", "ProcessKilled")}
    assert result.data == [str(i - 10).encode() for i in sorted({10, 11, 12, 13} - deadly)]
    assert deaths == 1 + 2 * len(deadly)


def test_a_machine_lost_twice_at_different_samples_costs_no_sample():
    attempts = iter([Killed, None, Killed])  # in the whole chunk, then while the second sample is alone at work

    def stage(chunk: Chunk) -> Chunk:
        if next(attempts, None):
            raise Killed
        return chunk

    result, deaths = _until_done(stage, AttemptBook(), _chunk())
    assert (result, deaths) == (_chunk(), 2)


def test_a_process_that_always_dies_ends_the_run():
    def stage(chunk: Chunk) -> Chunk:
        raise Killed

    with pytest.raises(RunFailed, match=f"died {HOPELESS} times over unit unit"):
        _until_done(stage, AttemptBook(), _chunk(0))


def test_the_book_forgets_what_is_done():
    book = AttemptBook()
    guarded("decode", lambda chunk: chunk, book, _chunk())
    assert not (book.open or book.deaths or book.alone or book.blame)
