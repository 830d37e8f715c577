"""Stopping a run: the first signal asks it to finish the units in flight, a second one, or the time limit, insists."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED = "stopped; what is committed stands, and the same command goes on from there"

UNWIND_S = 10.0
"""KeyboardInterrupt strikes in the midst of anything: some library may swallow it, or be left with a lock that nobody
releases any more. A process that lives for so long after it ends as it is, as by kill -9, which nothing is lost by."""


class Stop:
    """Whether a run has been asked to stop. Set from another thread or a signal handler; the run looks at it.

    Args:
        within_s: a run that is asked by a signal has so long to finish its units in flight, in seconds.
        notice: called with one line for the user.
        last_words: what standard error gets from a process that ends as it is.
    """

    def __init__(
        self,
        within_s: float = 25.0,
        notice: Callable[[str], None] = lambda text: None,
        last_words: Callable[[], str] = lambda: STOPPED,
    ):
        self.within_s = within_s
        self.notice = notice
        self.last_words = last_words
        self.asked = False
        self.in_flight = False
        self._insisted = False

    @contextmanager
    def on_signals(self) -> Iterator["Stop"]:
        """Ctrl-C and SIGTERM ask; asked again, or too late, they raise KeyboardInterrupt as ever; and once more, or
        where that does not end the process in time, it ends as it is. Main thread only."""
        signals = (*_SIGNALS, signal.SIGALRM)
        before = {number: signal.signal(number, self._signalled) for number in signals}
        try:
            yield self
        finally:
            if not self._insisted:
                signal.setitimer(signal.ITIMER_REAL, 0)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._insisted:
            os.write(2, f"{self.last_words()}\n".encode())
            os._exit(1)
        if self.asked or not self.in_flight:
            self._insisted = True
            signal.setitimer(signal.ITIMER_REAL, UNWIND_S)
            raise KeyboardInterrupt
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, self.within_s)
        self.notice(f"stopping: units in flight have {self.within_s:g} s to finish; Ctrl-C again stops at once")
