"""Where the time of a run goes: active seconds, and spans of waiting, scoring, updating, saving and journalling."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
        self._spans = {name: _Span(self, name) for name in SPANS}

    @property
    def active_s(self) -> float:
        """Seconds this run has been at work, earlier sessions included."""
        return monotonic() - self._began

    def span(self, name: str) -> AbstractContextManager[None]:
        """Count the time of the body as one of SPANS; a span does not contain itself."""
        return self._spans[name]

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

    def add(self, name: str, seconds: float) -> None:
        """Count seconds as one of SPANS."""
        self._spent[name] += seconds


class _Span(AbstractContextManager[None]):
    """Entered five times per update, between which the caches hold weights: less code than a generator's."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name, self._began = clock, name, 0.0

    def __enter__(self) -> None:
        self._began = self._clock.active_s

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, self._clock.active_s - self._began)
