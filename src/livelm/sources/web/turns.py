"""One request at a time to one IP address, with a gap after it, over all processes of a crawl.

Thousands of sites may share an address. Between processes the turn is a lock on one byte of a file, chosen by the
address: the system gives it back when its holder dies. POSIX drops a process's locks when it closes *any* descriptor
of the file, so each process opens it once.
"""

import fcntl
import os
from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path

from xxhash import xxh3_64_intdigest

QUEUE_S = 60.0
"""Nobody is told to come back later than this."""
LEAST_GAP_S = 0.02
"""Those who wait come one after another at least so far apart, even where no gap is wanted."""


class Turns:
    """Who may ask which address. For one thread; times are seconds of any one clock."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the file of the locks; None: no other process crawls."""
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._taken: set[str] = set()
        self._queue: dict[str, float] = {}
        self._resting: list[tuple[float, str]] = []

    def take(self, addresses: Sequence[str], now: float, gap_s: float) -> float:
        """Take the turn at all `addresses` of a host: 0.0, or the seconds after which to ask again."""
        self.sweep(now)
        for n_locked, address in enumerate(addresses):
            if address in self._taken or not self._lock(address):
                for earlier in addresses[:n_locked]:
                    self._taken.discard(earlier)
                    self._unlock(earlier)
                return self._place(address, now, gap_s)
            self._taken.add(address)
        for address in addresses:
            self._queue.pop(address, None) if self._queue.get(address, now) <= now else None
        return 0.0

    def give_back(self, addresses: Sequence[str], now: float, gap_s: float) -> None:
        """The request is over; the addresses are left alone for `gap_s`, and then until the next call of anything."""
        for address in addresses:
            heappush(self._resting, (now + gap_s, address))
        self.sweep(now)

    def close(self) -> None:
        """Give up every turn; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def sweep(self, now: float) -> None:
        """Let go of the addresses whose gap is over; other processes wait for that."""
        while self._resting and self._resting[0][0] <= now:
            address = heappop(self._resting)[1]
            self._taken.discard(address)
            self._unlock(address)

    def _place(self, address: str, now: float, gap_s: float) -> float:
        """A place in the queue: each who asks in vain is told a time of their own, so that not all come at once."""
        at = max(now, self._queue.get(address, now)) + max(gap_s, LEAST_GAP_S)
        self._queue[address] = min(at, now + QUEUE_S)
        return self._queue[address] - now

    def _lock(self, address: str) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(address))
        except (BlockingIOError, PermissionError):  # POSIX lets systems choose between the two
            return False
        return True

    def _unlock(self, address: str) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(address))


def _byte(address: str) -> int:
    return xxh3_64_intdigest(address.encode()) >> 2  # an offset is a signed 64-bit number
