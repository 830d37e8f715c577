"""Runs disturbed at seeded instants and resumed end like one undisturbed run: `make chaos SEEDS=200`, `SEED=7`.

Every eighth seed is of real processes, the others are simulated. A seed says which faults strike when; how far the
processes are by then is the machine's.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from birder_ray.folder import Folder
from tests.chaos.data import FORMATS
from tests.chaos.histories import play
from tests.chaos.outcome import Outcome
from tests.chaos.processes import short
from tests.chaos.race import race
from tests.chaos.scenarios import Place, Run
from tests.chaos.surroundings import FaultyStorage, FullDisk
from tests.faulty_s3 import FaultyS3

KINDS = ("disk", "s3", "cluster", "race", "full disk")
EVERY = 8
COUNT = int(os.environ.get("CHAOS_SEEDS") or 32)
ONE = os.environ.get("CHAOS_SEED")
WANTED = (os.environ.get("CHAOS_KINDS") or ",".join((*KINDS, "simulated"))).split(",")


def kind_of(seed: int) -> str:
    return KINDS[seed // EVERY % len(KINDS)] if seed % EVERY == EVERY - 1 else "simulated"


def _seeds(real: bool) -> list[int]:
    seeds = [int(seed) for seed in ONE.split(",")] if ONE else range(COUNT)
    return [seed for seed in seeds if (kind_of(seed) != "simulated") == real and (ONE or kind_of(seed) in WANTED)]


def _timed(outcome: Outcome, told, started: float) -> None:
    outcome.seconds = time.monotonic() - started
    told(outcome)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", _seeds(real=False))
def test_simulated(seed, tmp_path, told):
    outcome, started = Outcome(seed, "simulated"), time.monotonic()
    try:
        play(outcome, tmp_path)
    except Exception as error:
        outcome.wrong = f"{type(error).__name__}: {error}"
        raise
    finally:
        _timed(outcome, told, started)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", _seeds(real=True))
def test_real_processes(seed, request, tmp_path, told, chaos_data):
    kind, chance = kind_of(seed), random.Random(f"chaos {seed}")
    outcome, started = Outcome(seed, kind), time.monotonic()
    try:
        with ExitStack() as stack:
            format = chance.choice(FORMATS)
            place, data = _place(kind, format, seed, request, tmp_path, chaos_data, stack)
            started = time.monotonic()
            run = Run(data, place, chance, outcome.faults)
            outcome.faults.append(f"({format})")
            if kind == "race":
                race(run)
            else:
                for _ in range(chance.choice([1, 1, 2])):
                    run.disturbed()
                    if place.surroundings:
                        place.surroundings.mend()
            run.finish()
    except pytest.skip.Exception as reason:
        outcome.skipped = str(reason)
        raise
    except Exception as error:
        outcome.wrong = f"{type(error).__name__}: {error}"
        raise
    finally:
        _timed(outcome, told, started)


def _place(kind, format, seed, request, tmp_path: Path, chaos_data, stack: ExitStack):
    temporary = short(f"{seed}")
    stack.callback(shutil.rmtree, temporary, ignore_errors=True)
    place = Place(str(tmp_path / "out"), {}, {}, temporary)
    data = chaos_data(format) if kind != "s3" else None
    if kind == "s3":
        s3 = request.getfixturevalue("seaweed_bucket")
        data = chaos_data(format, Folder(f"{s3.url}/data-{format}", s3.options))
        proxy = stack.enter_context(FaultyS3(s3.endpoint, seed))
        options = {**s3.options, "client_kwargs": {**s3.options["client_kwargs"], "endpoint_url": proxy.url}}
        place.url, place.options = f"{s3.url}/out-{seed}", s3.options
        place.told = {"source": {"options": options}, "destination_options": options}
        place.surroundings = FaultyStorage(proxy)
    elif kind == "full disk":
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            pytest.skip("a small disk needs root, to mount a tmpfs")
        try:
            disk = FullDisk(tmp_path / "disk", data.bytes)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        stack.callback(disk.close)
        place.url, place.surroundings = str(tmp_path / "disk" / "out"), disk
    elif kind == "cluster":
        place.surroundings = cluster = request.getfixturevalue("cluster")
        place.told, place.private, place.workers = cluster.told, False, cluster.temporary
        place.faults = ("raylet KILL", "raylet STOP", "head KILL")
    return place, data
