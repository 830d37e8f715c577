"""Two runs of one destination at once: one is refused, or takes over from one that is silent, which then stops."""

import signal
import time

from tests.chaos.driver import STALE_S
from tests.chaos.outcome import Wrong
from tests.chaos.scenarios import HANG_S, Run


def race(run: Run) -> None:
    """The second run starts while the first is at work, or stopped for longer than its lock lasts."""
    silent = run.chance.random() < 0.7
    first = run.start()
    try:
        run.await_commits(first, run.commits() + run.chance.choice([0, 1, 2]))
        if silent:
            first.signal(signal.SIGSTOP)
            time.sleep(STALE_S)  # a second that is here earlier is refused
            run.struck.append("driver STOP until a rival")
        second = run.start()
        try:
            if silent:
                run.await_commits(second, run.commits() + run.chance.choice([1, 3, 100]))
                first.signal(signal.SIGCONT)
            else:
                run.struck.append("a rival")
            codes = first.wait(HANG_S), second.wait(HANG_S)
            run.struck.append(f"→{codes[0]} and {codes[1]}")
            told = [first.said(), second.said()]
        finally:
            second.end(private=False)
    finally:
        first.end(private=True)
    ahead = first.folder / "log"
    if None in codes:
        raise Wrong(f"hangs: {told}")
    if silent and not (codes[1] == 0 and (codes[0] == 0 or "another run" in ahead.read_text())):
        raise Wrong(f"the run that took over must finish, and the other stop for it: {codes} {told}")
    if not silent and sorted(codes, key=str) not in ([0, 1], [0, 0]):
        raise Wrong(f"of two runs at once one must be refused: {codes} {told}")
