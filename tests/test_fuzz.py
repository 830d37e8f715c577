"""A little of `python -m tests.fuzz` in every run of the tests, and a check that it would notice what it looks for."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.corpus import IMAGE_KINDS, KINDS, SHARD_KINDS, seeds
from tests.fuzz.mutate import mutant


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_scored_or_quarantined(kind):
    tally = fuzz(kind, seed=7, first=0, stop=50)
    assert tally.failures == {}
    assert tally.mutants == 50
    assert tally.outcomes["scored"] > 0 or kind == "manifest"


def test_mutants_follow_from_the_seed():
    for kind in KINDS:
        assert mutant(kind, 1, 2) == mutant(kind, 1, 2)
        assert len({mutant(kind, 1, number) for number in range(20)} - set(seeds(kind))) > 10


@pytest.mark.parametrize("kind", [*IMAGE_KINDS, *SHARD_KINDS])
def test_seeds_are_whole(kind):
    assert len(seeds(kind)) > 1 and all(seeds(kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "verdict"),
    [
        ("import os; os.kill(os.getpid(), 11)", "killed the process, exit code -11"),
        ("import time; time.sleep(60)", "longer than 12 s"),
        ("raise ValueError('unforeseen')", "ValueError: unforeseen"),
        ("bytearray(5 << 30)", "MemoryError"),
    ],
)
def test_what_it_must_notice(deed, verdict, tmp_path):
    """The third of five mutants does `deed`; the others are none the worse."""
    script = tmp_path / "deadly.py"
    script.write_text(
        "import os, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "from tests.fuzz import victim\n"
        "gentle = victim._image\n"
        "count = iter(range(5))\n"
        "def deadly(*arguments):\n"
        "    if next(count) == 2:\n"
        f"        {deed}\n"
        "    return gentle(*arguments)\n"
        "victim._image = deadly if sys.argv[3] == '0' else gentle\n"
        "victim.main()\n"
    )
    tally = fuzz("gif", seed=7, first=0, stop=5, limit_s=12, victim=(str(script),))
    assert tally.mutants == 5 and list(tally.failures) == [2]
    assert tally.failures[2].startswith(verdict)
