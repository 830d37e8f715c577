"""A sample that kills its process is found and left out; one killed by chance is not."""

import contextlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from birder_ray.chunk import Chunk, Sample
from birder_ray.errors import RunFailed, ShardDamaged
from birder_ray.folder import Folder
from birder_ray.guard import ATTEMPTS, HOPELESS, HOPELESS_START, AttemptBook, Turns, guarded, starting, watched


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
    assert not (book.open or book.deaths or book.alone or any(book.blame.values()))


def test_more_poison_than_hopeless_deaths_is_still_isolated():
    chunk = _chunk(HOPELESS)
    result, deaths = _until_done(_deadly(set(range(10, 10 + HOPELESS, 2))), AttemptBook(), chunk)
    assert len(result.errors) == HOPELESS // 2
    assert deaths > HOPELESS


def _deadly(indices: set[int]):
    def stage(chunk: Chunk) -> Chunk:
        if indices & {sample.index for sample in chunk.samples}:
            raise Killed
        return chunk

    return stage


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_blame_outlives_the_run(tmp_path, lives):
    """Everything dies each time, the book too: a machine that goes down with the process."""
    stage = _deadly({12})
    with pytest.raises(Killed):
        guarded("decode", stage, book := AttemptBook(Folder(str(tmp_path))), _chunk())
    for _ in range(lives):
        with contextlib.suppress(Killed):
            guarded("decode", stage, book, _chunk())
        book = AttemptBook(Folder(str(tmp_path)))
        with contextlib.suppress(Killed):
            guarded("decode", stage, book, _chunk())
    result = guarded("decode", stage, book, _chunk()) if lives > 1 else None
    if result:
        assert [(error.index, error.error_type) for error in result.errors] == [(12, "ProcessKilled")]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'[["decode"]]', b'[["decode", "unit", "x", 1]]'])
def test_a_damaged_book_is_an_empty_one(tmp_path, content):
    folder = Folder(str(tmp_path))
    folder.write(ATTEMPTS, content)
    assert guarded("decode", lambda chunk: chunk, AttemptBook(folder), _chunk()) == _chunk()


def _items(deadly: set[int], stop: int):
    for index in range(stop):
        if index in deadly:
            raise Killed
        yield Sample(f"s/{index}", index, None, "u"), b""


def test_reading_that_kills_its_process_is_damage_at_that_index():
    book, deaths, read = AttemptBook(), 0, []
    while True:
        read = []
        try:
            for sample, _ in watched(book, "shard-0")(0, _items({3}, 6)):
                read.append(sample.index)
        except Killed:
            deaths += 1
        except ShardDamaged as error:
            assert error.error_type == "ProcessKilled"
            break
    assert (read, deaths) == ([0, 1, 2], 3)


def test_a_death_behind_the_reader_is_not_the_readers():
    """Reading and decoding share a process: whoever takes the items may be what kills it."""
    book = AttemptBook()
    for _ in range(30):
        for _ in watched(book, "shard-0")(0, _items(set(), 6)):
            break
        book.open.add(("read", "shard-0", 0))  # what the killed process leaves
    assert len(list(watched(book, "shard-0")(0, _items(set(), 6)))) == 6


def test_a_run_that_stops_finishes_the_units_that_inference_has_begun_with():
    book = AttemptBook()
    guarded("infer", lambda chunk: chunk, book, replace(_chunk(), unit="begun"))
    book.stop()
    assert guarded("decode", lambda chunk: chunk, book, replace(_chunk(), unit="begun", number=1)) is not None
    assert guarded("infer", lambda chunk: chunk, book, replace(_chunk(), unit="begun", number=1)) is not None
    for step in ("decode", "infer"):
        assert guarded(step, lambda chunk: chunk, book, replace(_chunk(), unit="not begun")) is None


def test_an_actor_that_dies_each_time_it_starts_ends_the_run():
    book = AttemptBook()
    for _ in range(HOPELESS_START):
        book.begin(("infer", "actor", 0))
    with pytest.raises(RunFailed, match="died 4 times while it started"), starting("infer", book, "actor"):
        pass
    with starting("infer", book, "another"):
        pass


HANG = """
import sys, time
from birder_ray.chunk import Chunk, Sample
from birder_ray.guard import AttemptBook, guarded
samples = [Sample("s/0", 0, None, "u")]
stage = lambda chunk: time.sleep(float(sys.argv[1])) or chunk
guarded("decode", stage, AttemptBook(), Chunk("unit", "s", 0, True, True, samples, [], data=[b""]), 0.5)
print("alive")
time.sleep(1)
print("done")
"""


@pytest.mark.parametrize(("sleeps_s", "ends"), [(0, (0, "alive\ndone\n")), (30, (1, ""))])
def test_what_takes_too_long_ends_its_process(sleeps_s, ends):
    done = subprocess.run([sys.executable, "-c", HANG, str(sleeps_s)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ends


def test_a_suspect_is_alone_in_its_process():
    turns, at_work, most, lock = Turns(), [0], {"all": 0, "suspects": 0}, threading.Lock()

    def stage(chunk: Chunk) -> Chunk:
        with lock:
            at_work[0] += 1
            most["all"] = max(most["all"], at_work[0])
            if len(chunk.samples) == 1:  # tried one by one
                most["suspects"] = max(most["suspects"], at_work[0])
        time.sleep(0.005)
        with lock:
            at_work[0] -= 1
        return chunk

    book = AttemptBook()
    chunks = [replace(_chunk(3), number=number) for number in range(8)]
    for chunk in chunks[::2]:
        book.begin(("infer", chunk.unit, chunk.number))  # and a death: it is begun again below
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda chunk: guarded("infer", stage, book, chunk, turns=turns), chunks))
    assert done == chunks
    assert most["suspects"] == 1 and most["all"] > 1
