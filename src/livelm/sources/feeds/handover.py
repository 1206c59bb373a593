"""Hand events from the network's thread to the reader's: bounded, by the chosen rule when the reader is slower."""

import asyncio
import threading
from collections import deque
from typing import Generic, TypeVar

from livelm.sources.feeds.settings import LiveSettings
from livelm.sources.feeds.tally import Tally

FULL_POLL_S = 0.005
"""How often the network's thread looks for room: 200 wake-ups a second, and only while the learner is slower."""
GET_POLL_S = 0.5

T = TypeVar("T")


class Handover(Generic[T]):
    """A queue between one asyncio task that puts and one thread that gets."""

    def __init__(self, settings: LiveSettings, tally: Tally) -> None:
        self._settings, self._tally = settings, tally
        self._items: deque[tuple[T, int]] = deque()
        self._n_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None

    async def put(self, item: T, n_bytes: int, lot: float) -> None:
        """Queue an item of `n_bytes`; when there is no room, wait or drop by the setting `overflow`.

        `lot` in [0, 1) belongs to the event and decides whether a thinned-out feed keeps it.
        """
        if self._settings.overflow == "sample" and lot >= self._share_kept():
            self._tally.drop("overflow_sample")
            return
        while not self._take(item, n_bytes):
            if self._settings.overflow == "drop_oldest":
                self._drop_oldest()
            elif self._settings.overflow == "sample":  # no room for this very long one
                self._tally.drop("overflow_sample")
                return
            else:
                await asyncio.sleep(FULL_POLL_S)

    def get(self) -> T | None:
        """Wait for the next item; None once closed. Raises what `fail` was given, after all that came before it."""
        with self._changed:
            while not self._closed:
                if self._items:
                    item, n_bytes = self._items.popleft()
                    self._n_bytes -= n_bytes
                    return item
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(GET_POLL_S)
            return None

    def fail(self, error: Exception) -> None:
        """Nothing more will come, because of this."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def close(self) -> None:
        """Wake the reader and let go of what is queued."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._n_bytes = 0
            self._changed.notify_all()

    def size(self) -> tuple[int, int]:
        """Items and bytes that wait now."""
        return len(self._items), self._n_bytes

    def _take(self, item: T, n_bytes: int) -> bool:
        with self._changed:
            full = len(self._items) >= self._settings.queue_events
            if self._items and (full or self._n_bytes + n_bytes > self._settings.queue_bytes):
                return self._closed
            if not self._closed:
                self._items.append((item, n_bytes))
                self._n_bytes += n_bytes
                self._changed.notify_all()
            return True

    def _drop_oldest(self) -> None:
        with self._changed:
            if self._items:
                self._n_bytes -= self._items.popleft()[1]
                self._tally.drop("overflow_oldest")

    def _share_kept(self) -> float:
        """1 up to half full, then falling to 0 at full: the feed thins out before it breaks off."""
        filled = max(len(self._items) / self._settings.queue_events, self._n_bytes / self._settings.queue_bytes)
        return min(1.0, 2.0 * (1.0 - filled))
