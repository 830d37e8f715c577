"""Stopping a run: the first signal asks it to finish the units in flight, a second one, or the time limit, insists."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a run has been asked to stop. Set from another thread or a signal handler; the run looks at it.

    Args:
        within_s: a run that is asked by a signal has so long to finish its units in flight, in seconds.
        notice: called with one line for the user.
    """

    def __init__(self, within_s: float = 25.0, notice: Callable[[str], None] = lambda text: None):
        self.within_s = within_s
        self.notice = notice
        self.asked = False
        self.in_flight = False

    @contextmanager
    def on_signals(self) -> Iterator["Stop"]:
        """Ctrl-C and SIGTERM ask; asked again, or too late, they raise KeyboardInterrupt as ever. Main thread only."""
        signals = (*_SIGNALS, signal.SIGALRM)
        before = {number: signal.signal(number, self._signalled) for number in signals}
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.in_flight:
            raise KeyboardInterrupt
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, self.within_s)
        self.notice(f"stopping: units in flight have {self.within_s:g} s to finish; Ctrl-C again stops at once")
