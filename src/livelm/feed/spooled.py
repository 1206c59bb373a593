"""A source that cannot be read again, made replayable by a spool between it and its readers."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from livelm.errors import LivelmError, SpoolError
from livelm.feed.spool import Spool
from livelm.types import Acknowledging, Cursor, Document, Json, Keeping, Observed, Source

log = logging.getLogger(__name__)


class Spooled:
    """A source that cannot be read again, made replayable: a thread stores it in a spool, readers read the spool."""

    replayable = True

    def __init__(self, inner: Source, spool: Spool) -> None:
        self.bounded = inner.bounded
        self._inner, self._spool = inner, spool
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._acknowledged: Cursor | None = None
        self._thread: threading.Thread | None = None

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Replay the spool after `cursor`, then follow the stream; the first call starts to store it.

        Raises what the inner source raised (after everything it gave before), SpoolError and StorageError.
        """
        documents = self._spool.read(cursor)
        with self._starting:
            if self._thread is None and not self._spool.ended and not self._closing.is_set():
                self._thread = threading.Thread(target=self._store, name="livelm-spool", daemon=True)
                self._thread.start()
        yield from documents

    def sync(self) -> None:
        """Make durable what was stored: before every checkpoint. Raises StorageError."""
        self._spool.sync()
        self._acknowledge()

    def commit(self, cursor: Cursor) -> None:
        """Say that a durable checkpoint contains everything up to `cursor`."""
        self._spool.release(cursor)

    def observe(self) -> dict[str, Json]:
        """What the inner source says of itself."""
        return self._inner.observe() if isinstance(self._inner, Observed) else {}

    def keep(self, folder: Path) -> None:
        """Pass the folder on to the inner source."""
        if isinstance(self._inner, Keeping):
            self._inner.keep(folder)

    def close(self) -> None:
        """End the reading, the thread and the spool."""
        self._closing.set()
        self._inner.close()
        self._spool.close()
        with self._starting:
            if self._thread is not None:
                self._thread.join(timeout=5)

    def describe(self) -> str:
        """One line for people."""
        return f"{self._inner.describe()}; spooled"

    def _acknowledge(self) -> None:
        """Tell the inner source what the disk has, if that is news to it: then nobody else must keep it."""
        synced = self._spool.synced
        if synced is not None and synced is not self._acknowledged and isinstance(self._inner, Acknowledging):
            self._inner.commit(synced)
            self._acknowledged = synced

    def _store(self) -> None:
        try:
            for document, inner in self._inner.read(self._spool.last):
                self._spool.append(document, inner)
                self._acknowledge()
            if not self._closing.is_set():  # a closed source ends too, but its stream does not
                self._spool.finish()
        except LivelmError as error:
            self._spool.fail(error)
        except Exception as error:  # whatever it is, the reader must not wait for ever
            log.exception("the source %s failed", self._inner.describe())
            self._spool.fail(SpoolError(f"{self._inner.describe()} failed: {type(error).__name__}: {error}."))
