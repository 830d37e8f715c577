"""One line per seed, and a summary; what the seeds share, made when the first of them needs it."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from birder_ray.folder import Folder
from tests.chaos import data
from tests.chaos.outcome import Outcome
from tests.conftest import S3, _bucket

OUTCOMES: list[Outcome] = []
BY_HAND = any(os.environ.get(name) for name in ("CHAOS_SEEDS", "CHAOS_SEED"))


@pytest.fixture
def told(request) -> Callable[[Outcome], None]:
    """Takes the outcome of a seed."""

    def tell(outcome: Outcome) -> None:
        OUTCOMES.append(outcome)
        if BY_HAND:
            request.config.pluginmanager.getplugin("terminalreporter").write_line(f"\n{outcome.line()}")

    return tell


def pytest_terminal_summary(terminalreporter) -> None:
    if not OUTCOMES:
        return
    wrong = [outcome for outcome in OUTCOMES if outcome.wrong]
    terminalreporter.section("chaos")
    for kind, count in sorted(Counter(outcome.kind for outcome in OUTCOMES).items()):
        mine = [outcome for outcome in OUTCOMES if outcome.kind == kind]
        faults = sum(not fault.startswith("→") for outcome in mine for fault in outcome.faults)
        bad, skipped = (sum(bool(getattr(each, what)) for each in mine) for what in ("wrong", "skipped"))
        seconds = sum(outcome.seconds for outcome in mine)
        terminalreporter.write_line(
            f"{kind:20s} {count:4d} seeds, {faults:5d} faults, {bad} wrong, {skipped} skipped, {seconds:.0f} s"
        )
    for outcome in wrong:
        terminalreporter.write_line(f"make chaos SEED={outcome.seed}: {outcome.wrong}")


@pytest.fixture(scope="session")
def chaos_data(tmp_path_factory, model) -> Callable[..., data.Data]:
    """Datasets by format, and by the folder that they are to be read from."""

    made: dict[str, data.Data] = {}

    def make(format: str, remote: Folder | None = None) -> data.Data:
        key = remote.url if remote else format
        if key not in made:
            made[key] = data.make(format, tmp_path_factory.mktemp(f"chaos-{format}"), model, remote)
        return made[key]

    return make


@pytest.fixture(scope="session")
def seaweed_bucket(seaweed_endpoint) -> Iterator[S3]:
    """A bucket that the seeds share."""
    yield from _bucket(seaweed_endpoint)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Ray cluster of three nodes on this machine, gone before other tests start."""
    from tests.chaos.surroundings import RayCluster

    made = RayCluster()
    yield made
    made.close()
    shutil.rmtree(made.temporary, ignore_errors=True)
