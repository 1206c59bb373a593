"""Count what a feed did and dropped, and say it in the log now and then."""

import logging
import threading
import time
from collections import Counter

LOG_EVERY_S = 60.0

log = logging.getLogger(__name__)


class Tally:
    """Counters that one thread raises and any thread reads."""

    def __init__(self, name: str) -> None:
        """`name` says in the log which feed it is."""
        self.n_events = 0
        """Events that became documents."""
        self.n_bytes = 0
        """Bytes that came over the network, before any decoding."""
        self.n_connects = 0
        self.n_failures = 0
        """Connections that could not be made or ended in an error."""
        self.n_gaps = 0
        """Connections that could not continue where the one before ended: what happened between was lost."""
        self._name = name
        self._drops: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def drop(self, reason: str) -> None:
        """Count an event that is left out."""
        with self._lock:
            self._drops[reason] += 1
            n = self._drops[reason]
        self.say(f"dropped: {reason}", "%d events left out so far: %s", n, reason, level=logging.INFO)

    def drops(self) -> dict[str, int]:
        """How many were left out, by reason."""
        with self._lock:
            return dict(self._drops)

    def say(self, kind: str, message: str, *values: object, level: int = logging.WARNING) -> None:
        """Log one line of this kind, unless there was one within the last minute."""
        now = time.monotonic()
        if now - self._logged_at.get(kind, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged_at[kind] = now
            log.log(level, "%s: " + message, self._name, *values)
