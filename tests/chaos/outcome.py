"""What a seed of chaos ends in."""

from dataclasses import dataclass, field


class Wrong(AssertionError):
    """A promise that was broken."""


@dataclass
class Outcome:
    """One seed: what was injected, and what went wrong, if anything did."""

    seed: int
    kind: str
    faults: list[str] = field(default_factory=list)
    wrong: str | None = None
    skipped: str | None = None
    seconds: float = 0.0

    def line(self) -> str:
        """For the terminal."""
        state = f"SKIPPED {self.skipped}" if self.skipped else "ok" if self.wrong is None else f"WRONG {self.wrong}"
        shown = self.faults if len(self.faults) <= 8 else [*self.faults[:7], f"... {len(self.faults) - 7} more"]
        return f"seed {self.seed:5d}  {self.kind:19s} {self.seconds:6.1f} s  {state}  [{', '.join(shown)}]"
