"""Try again with growing waits while a broker is away: at once an error at first, much later once it was reached."""

import logging
import random
import threading
import time

from livelm.errors import SourceError

FIRST_S, LONGEST_S = 0.2, 10.0
"""The wait before the second attempt, and the longest; it doubles in between and varies by a quarter."""

log = logging.getLogger(__name__)


class Lost(Exception):
    """The broker did not answer, or no longer; another attempt may succeed. The message is meant for people."""


class Patience:
    """When to try again, and when to give up."""

    def __init__(self, name: str, limit_s: float, stop: threading.Event) -> None:
        """`name` is the broker in the log; `stop` ends a wait."""
        self._name, self._limit_s, self._stop = name, limit_s, stop
        self._reached: float | None = None
        self._wait_s = FIRST_S
        self.n_losses = 0
        """How often the broker was lost after it had been reached."""

    def reached(self) -> None:
        """The broker answered: count from now."""
        self._reached, self._wait_s = time.monotonic(), FIRST_S

    def answered(self) -> None:
        """The broker said that it cannot serve yet: it is there, so it is worth waiting for from the first time on."""
        self._reached = time.monotonic() if self._reached is None else self._reached

    def wait(self, error: Lost) -> None:
        """Wait a while because of `error`. Raises SourceError when it has been long enough, or never answered."""
        if self._reached is None:
            raise SourceError(str(error)) from None
        away_s = time.monotonic() - self._reached
        if away_s + self._wait_s > self._limit_s:
            raise SourceError(f"{error} It has been away for {away_s:.0f} s (`patience_s`); resume when it is back.")
        if self._wait_s == FIRST_S:
            self.n_losses += 1
            log.warning("%s: lost (%s); trying again for up to %.0f s", self._name, error, self._limit_s)
        self._stop.wait(self._wait_s * random.uniform(0.75, 1.25))  # noqa: S311  (spreads many clients, guards nothing)
        self._wait_s = min(2 * self._wait_s, LONGEST_S)
