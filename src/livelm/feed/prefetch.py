"""Prepare the next batches in a thread while the learner works on this one."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue

from livelm.types import Batch

POLL_S = 0.2
"""How long a wait may last before it looks whether it should end."""


class Prefetch:
    """Iterates over the batches of `make`, at most `n_ahead` prepared; each batch brings its own cursor.

    What was prepared but not taken is simply forgotten at the end: the cursor that counts is that of the last
    batch that was scored.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]], n_ahead: int) -> None:
        self._make = make
        self._queue: Queue[Batch | Exception | None] = Queue(n_ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="livelm-feed", daemon=True)
        self._thread.start()

    def next(self, stopped: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> Batch | None:
        """The next batch; None at the end of the stream or once `stopped()` is true. Raises what the source raised.

        `idle()` is called every `POLL_S` while nothing comes.
        """
        while not stopped():
            try:
                item = self._queue.get(timeout=POLL_S)
            except Empty:
                idle()
                continue
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def close(self) -> None:
        """Let go of the source; the caller closes it first, so that a blocked read ends."""
        self._closed.set()
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
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
                return True
            except Full:
                continue
        return False
