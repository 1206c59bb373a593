"""Prepare the next batches in a thread while the learner works on this one."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from livelm.types import Batch

POLL_S = 0.2
"""How long a wait may last before it looks whether it should end."""


class Prefetch:
    """Iterates over the batches of `make`, at most `n_ahead` prepared; each batch brings its own cursor.

    They are made in bursts: the thread sleeps until half of them are used up. Waking it for every batch would cost
    the learner several percent in hand-overs of the interpreter's lock.

    What was prepared but not taken is simply forgotten at the end: the cursor that counts is that of the last
    batch that was scored.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]], n_ahead: int) -> None:
        self._make, self._n_ahead = make, n_ahead
        self._ready: deque[Batch | Exception | None] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="livelm-feed", daemon=True)
        self._thread.start()

    def next(self, stopped: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> Batch | None:
        """The next batch; None at the end of the stream or once `stopped()` is true. Raises what the source raised.

        `idle()` is called every `POLL_S` while nothing comes.
        """
        while not stopped():
            if not self._ready:
                with self._changed:
                    arrived = self._changed.wait_for(lambda: self._ready, POLL_S)
                if not arrived:
                    idle()
                    continue
            item = self._ready.popleft()
            if len(self._ready) == self._n_ahead // 2:
                with self._changed:
                    self._changed.notify_all()
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def close(self) -> None:
        """Let go of the source; the caller closes it first, so that a blocked read ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _fill(self) -> None:
        last: Exception | None = None
        try:
            for batch in self._make():
                if not self._put(batch):
                    return
        except Exception as error:  # whatever it is, it must reach the loop that waits
            last = error
        self._put(last)

    def _put(self, item: Batch | Exception | None) -> bool:
        with self._changed:
            if len(self._ready) >= self._n_ahead:
                self._changed.wait_for(lambda: self._closed or len(self._ready) <= self._n_ahead // 2)
            self._ready.append(item)
            self._changed.notify_all()
            return not self._closed
