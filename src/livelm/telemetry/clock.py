"""Where the time of a run goes: active seconds, and spans of waiting, scoring, updating, saving and journalling."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from livelm.types import Record

SPANS: tuple[str, ...] = ("wait", "score", "update", "save", "journal")
REPORT_S = 1.0
"""Seconds between two `spans` records."""


class Clock:
    """Counts the active seconds of a run over all its resumptions, and how they were spent."""

    def __init__(self, active_s: float = 0.0) -> None:
        self._began = monotonic() - active_s
        self._reported = active_s
        self._spent: dict[str, float] = dict.fromkeys(SPANS, 0.0)

    @property
    def active_s(self) -> float:
        """Seconds this run has been at work, earlier sessions included."""
        return monotonic() - self._began

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the time of the body as one of SPANS."""
        begin = self.active_s
        try:
            yield
        finally:
            self._spent[name] += self.active_s - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the body does not count, in no span either: another run has its turn."""
        begin = monotonic()
        try:
            yield
        finally:
            self._began += monotonic() - begin

    def report_due(self) -> bool:
        """Whether the last report lies REPORT_S or more back."""
        return self.active_s - self._reported >= REPORT_S

    def report(self) -> Record:
        """The time spent since the last report."""
        now, spent = self.active_s, self._spent
        self._reported, self._spent = now, dict.fromkeys(SPANS, 0.0)
        return {"kind": "spans", "at_s": round(now, 3), **{f"{name}_s": round(s, 6) for name, s in spent.items()}}
