"""Keep a live stream on disk before it is learned from, so that a run can be continued exactly.

Order of safety: a record is handed to a reader only after it was written to the operating system, so killing the
process loses nothing that was scored; it is synced to the disk at least every `SYNC_BYTES` or, while text arrives,
`SYNC_S`, and by `sync()` before each checkpoint, so that a checkpoint never refers to what a power failure can undo.
"""

import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from livelm.errors import LivelmError, SpoolError, StorageError
from livelm.feed.segments import SUFFIX, Segment, damaged, list_segments, pack, scan, unpack
from livelm.types import Cursor, Document

SYNC_BYTES = 4 << 20
SYNC_S = 1.0
POLL_S = 0.2
VERSION = 1

log = logging.getLogger(__name__)


class Spool:
    """An append-only store of documents in segments, for one writer and any number of readers of one process.

    `append` waits while the spool is over `max_bytes` and nothing in it may be deleted; nothing is ever dropped.
    One case goes over the cap: when a reader waits for more, it has everything, and the checkpoint that would
    release it can only come after more text. When the disk refuses, the one document that was being appended is the
    only one not stored: `tail` reads it again, standard input cannot.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 16 << 20, max_bytes: int = 4 << 30) -> None:
        """Open or create the spool in `folder`; a record torn by a crash is cut off, logged and noted in `repaired`.

        Raises SpoolError when it is damaged elsewhere or newer, StorageError when the folder cannot be written.
        """
        self.repaired: str | None = None
        """What was cut off when the spool was opened."""
        self.last: Cursor | None = None
        """Where the inner source continues after what is stored."""
        self.ended = False
        """Whether the inner source came to its end."""
        self.synced: Cursor | None = None
        """Where the inner source continues after what this session made durable; None before the first sync."""
        self._folder, self._max_bytes = folder, max_bytes
        self._segment_bytes = min(segment_bytes, max_bytes // 4)  # only whole segments can be deleted
        self._changed = threading.Condition()
        self._closed = False
        self._failure: LivelmError | None = None
        self._released = self._unsynced = 0
        self._waiting: list[int] = []  # positions of the readers that have everything
        self._synced_at = time.monotonic()
        self._is_empty = True  # the newest segment has no record but its own
        self._identity = uuid4().hex
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._segments = list_segments(folder)
            self._repair()
            if not self._segments:
                self._begin_segment(0)
            self._file = os.open(self._segments[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from None

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self._segments[-1].stop - self._segments[0].start

    def append(self, document: Document, inner: Cursor) -> None:
        """Store a document and the place of the inner source after it; waits while there is no room.

        Raises StorageError when the disk refuses; what was stored before stays valid. Does nothing once closed.
        """
        header: dict[str, Any] = {"kind": "text", "id": document.id, "source": document.source}
        header |= {"offset": document.offset, "last": document.last, "at": document.at, "url": document.url}
        header |= {"context": document.context, "inner": _cursor_json(inner)}
        if self._write(pack(header, document.text)):
            self.last = inner

    def finish(self) -> None:
        """Store that the stream ended. Raises StorageError."""
        self.ended = self._write(pack({"kind": "end"}, b""))

    def fail(self, error: LivelmError) -> None:
        """Let readers meet this error once they have read what is stored."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """What is stored after `cursor`, then what is added, until the end, an error or `close`.

        Raises SpoolError for a foreign cursor, a place that is no longer (or not) kept, and a damaged record, naming
        file and offset; then whatever `fail` was told.
        """
        return self._follow(self._parse(cursor))

    def release(self, cursor: Cursor) -> None:
        """Say that a durable checkpoint contains everything up to `cursor`, so that it may be deleted for room."""
        position = self._parse(cursor)
        with self._changed:
            self._released = max(self._released, position)
            self._make_room(0)
            self._changed.notify_all()

    def sync(self) -> None:
        """Make everything that was appended durable. Raises StorageError."""
        with self._changed:
            if not self._closed:
                self._sync()

    def close(self) -> None:
        """Wake whoever waits, sync, and close. Safe to call more than once."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            try:
                self._sync()
            except StorageError as error:  # no checkpoint will refer to it, so nothing that counts is lost
                log.warning("%s", error)
            os.close(self._file)

    def _follow(self, position: int) -> Iterator[tuple[Document, Cursor]]:
        file, segment = -1, None
        try:
            while self._wait_beyond(position):
                if segment is None or position >= segment.stop:
                    segment = self._segment_at(position)
                    file = _reopened(file, segment.path)
                record = unpack(file, position - segment.start)
                if record is None:
                    raise damaged(segment.path, position - segment.start, "wrong checksum or cut short")
                position += record.n_bytes
                if record.header["kind"] == "end":
                    return
                if record.header["kind"] == "text":
                    at = {"spool": self._identity, "position": position}
                    yield _document(record.header, record.text), Cursor("spool", at)
        finally:
            if file >= 0:
                os.close(file)

    def _repair(self) -> None:
        """Cut off a torn end, and recover identity and the inner cursor from the last segment that has a record."""
        while self._segments:
            segment = self._segments[-1]
            ends, n_whole, n_bytes = scan(segment.path)
            if n_whole < n_bytes or not ends:
                self.repaired = f"{segment.path.name}: {n_bytes - n_whole} torn bytes at its end cut off"
                log.warning("spool: %s (the last record was being written when livelm was stopped)", self.repaired)
            if not ends:  # torn while it was begun: the segment before has the last record
                segment.path.unlink()
                self._segments.pop()
                continue
            if n_whole < n_bytes:
                os.truncate(segment.path, n_whole)
                segment.stop = segment.start + n_whole
            first, last = ends[0].header, ends[-1].header
            if first["kind"] != "segment" or first["start"] != segment.start:
                raise damaged(segment.path, 0, "it does not begin as a segment of this place")
            if first["version"] > VERSION:
                raise SpoolError(f"{str(segment.path)!r} is version {first['version']}; upgrade livelm.")
            self._identity, self.ended = first["spool"], last["kind"] == "end"
            self._is_empty = len(ends) == 1
            inner = None if self.ended else last["inner"]
            self.last = None if inner is None else Cursor(inner["source"], inner["at"])
            return

    def _write(self, record: bytes) -> bool:
        """Append one record; False when the spool was closed before there was room."""
        with self._changed:
            while not self._make_room(len(record)) and not self._starving() and not self._closed:
                self._changed.wait(POLL_S)
            if self._closed:
                return False
            if self._failure is not None:
                raise self._failure
            try:
                segment = self._segments[-1]
                if segment.stop - segment.start + len(record) > self._segment_bytes and not self._is_empty:
                    self._sync()
                    self._begin_segment(segment.stop)
                    os.close(self._file)
                    segment = self._segments[-1]
                    self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                self._put(segment, record)
            except OSError as error:
                self._failure = self._refused(error)
                raise self._failure from None
            self._changed.notify_all()
            if self._unsynced >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_S:
                self._sync()
            return True

    def _put(self, segment: Segment, record: bytes) -> None:
        try:
            _write_all(self._file, record)
        except OSError:
            os.ftruncate(self._file, segment.stop - segment.start)  # half a record must not stand before a later one
            raise
        segment.stop += len(record)
        self._is_empty = False
        self._unsynced += len(record)

    def _begin_segment(self, start: int) -> None:
        """Create the next segment, whole or not at all; it repeats the inner cursor, so it can be the only one."""
        path = self._folder / f"{start:020d}{SUFFIX}"
        header = {"kind": "segment", "version": VERSION, "spool": self._identity, "start": start}
        opening = pack(header | {"inner": None if self.last is None else _cursor_json(self.last)}, b"")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write_all(file, opening)
            os.fsync(file)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(file)
        _sync_folder(self._folder)
        self._segments.append(Segment(path, start, start + len(opening)))
        self._is_empty = True

    def _make_room(self, n_bytes: int) -> bool:
        """Delete released segments, oldest first, while over the cap; whether `n_bytes` more are now within it."""
        while self.n_bytes + n_bytes > self._max_bytes:
            if len(self._segments) < 2 or self._segments[0].stop > self._released:
                return False
            try:
                self._segments.pop(0).path.unlink(missing_ok=True)
            except OSError as error:
                raise self._refused(error) from None
        return True

    def _starving(self) -> bool:
        """Whether a reader has everything there is: only more text can bring the checkpoint that makes room.

        One that was told of more but did not wake yet does not count, or a busy machine could go far over the cap.
        """
        return any(position >= self._segments[-1].stop for position in self._waiting)

    def _sync(self) -> None:
        last = self.last
        if self._failure is not None and self._unsynced < 0:
            raise self._failure
        try:
            os.fsync(self._file)
        except OSError as error:
            self._unsynced = -1  # the kernel may have forgotten what it could not write: never call it durable again
            self._failure = self._refused(error)
            raise self._failure from None
        self._unsynced, self._synced_at, self.synced = 0, time.monotonic(), last

    def _wait_beyond(self, position: int) -> bool:
        """Wait until there is a record at `position`; False once closed. Raises what `fail` was told."""
        with self._changed:
            while not self._closed and position >= self._segments[-1].stop:
                if self._failure is not None:
                    raise self._failure
                self._waiting.append(position)
                self._changed.notify_all()
                self._changed.wait(POLL_S)
                self._waiting.remove(position)
            return not self._closed

    def _segment_at(self, position: int) -> Segment:
        with self._changed:
            index = bisect_right([s.start for s in self._segments], position) - 1
            if index < 0:
                raise SpoolError(
                    f"position {position} of the spool {str(self._folder)!r} is no longer kept; it now begins at "
                    f"{self._segments[0].start}. Resume from a newer checkpoint, or start a new run."
                )
            return self._segments[index]

    def _parse(self, cursor: Cursor | None) -> int:
        if cursor is None:
            return 0
        identity, position = cursor.at.get("spool"), cursor.at.get("position")
        if cursor.source != "spool" or identity != self._identity or not isinstance(position, int) or position < 0:
            raise SpoolError(
                f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to the spool "
                f"{str(self._folder)!r}: it was exchanged, or the run was reading something else."
            )
        if position > self._segments[-1].stop:
            raise SpoolError(
                f"the spool {str(self._folder)!r} ends at position {self._segments[-1].stop}, but {position} was read "
                "before: its end is missing. Restore it from a backup, or start a new run."
            )
        return position

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"the spool {str(self._folder)!r} cannot be written: {error.strerror or error}. What was stored before is "
            "intact; make room and resume."
        )


def _document(header: dict[str, Any], text: bytes) -> Document:
    return Document(
        text=text,
        id=header["id"],
        source=header["source"],
        offset=header["offset"],
        last=header["last"],
        at=header["at"],
        url=header["url"],
        context=tuple((start, stop) for start, stop in header["context"]),
    )


def _cursor_json(cursor: Cursor) -> dict[str, Any]:
    return {"source": cursor.source, "at": dict(cursor.at)}


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _reopened(file: int, path: Path) -> int:
    if file >= 0:
        os.close(file)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SpoolError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
