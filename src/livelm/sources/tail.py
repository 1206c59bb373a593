"""Follow a growing file through truncation, rotation and renames, without losing or doubling a byte."""

import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.types import Cursor, Document

PIECE_BYTES = 64 << 10
POLL_S = 0.1
PRINT_BYTES = 1 << 10
"""A file is recognised by this many bytes at its beginning and as many before the place reached."""

log = logging.getLogger(__name__)


class TailSettings(Settings):
    """How a file is followed."""

    from_end: bool = False
    """Leave out what is in the file when it is first opened."""


class Tail:
    """Follows `path` as it grows; it may not exist yet.

    Each generation of the file (a new one begins when it is truncated or replaced) is one document, `path@0`,
    `path@1`, …; pieces continue one another and are cut wherever reading happened to stop. A replaced file is read to
    its end first, and ends only once the new one has text. A generation's last piece is empty.

    What cannot be noticed: bytes that a truncation destroys less than `POLL_S` after they were written, when
    nobody copied them to a file beside (`logrotate copytruncate` does copy, and the copy is found).
    """

    bounded = False
    replayable = False

    def __init__(self, path: str, settings: TailSettings | None = None) -> None:
        """Raises SourceError when no such file can ever appear."""
        self._path = Path(path)
        self._settings = settings or TailSettings()
        self._closed = threading.Event()
        if not self._path.parent.is_dir():
            raise SourceError(f"there is no directory {str(self._path.parent)!r} in which {path!r} could appear.")
        status = _status(self._path)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path!r} is not a regular file, so it cannot be followed. Pipe it in with `-`.")

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what the file holds and then what is added, until `close`. Raises SourceError when it is unreadable."""
        place = None if cursor is None else _parse(cursor, self._path)
        follower = _Follower(self._path, self._closed, place or _Place(path=str(self._path)))
        try:
            follower.begin(fresh=place is None, from_end=self._settings.from_end)
            yield from follower.run()
        except OSError as error:
            raise SourceError(
                f"{str(self._path)!r} cannot be read at byte {follower.place.offset}: {error.strerror or error}."
            ) from None
        finally:
            follower.close()

    def close(self) -> None:
        """End `read` within the time of one poll."""
        self._closed.set()

    def describe(self) -> str:
        """One line for people."""
        return f"tail {self._path}: never ends, cannot be read again (kept in the spool)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Continue in this generation of the file after `offset` bytes."""

    path: str
    generation: int = 0
    device: int | None = None
    """None with `inode`: the generation's file was not there yet."""
    inode: int | None = None
    begin: int = 0
    """The byte of the file at which the document begins; not 0 only after `from_end`."""
    offset: int = 0
    mark: str = ""
    """The fingerprint at `offset`; empty at 0."""
    written_ns: int = 0
    """When the file had last been written, as it was when it was read up to `offset`."""

    def cursor(self) -> Cursor:
        return Cursor("tail", {name: getattr(self, name) for name in self.__slots__})


class _Follower:
    """One pass over the generations of a file: which one is open, how far it was read, what it looked like."""

    def __init__(self, path: Path, closed: threading.Event, place: _Place) -> None:
        self.place = place
        self._path, self._closed = path, closed
        self._file: int | None = None
        self._head = b""
        self._back = b""
        self._finished: set[tuple[int, int]] = set()

    def begin(self, *, fresh: bool, from_end: bool) -> None:
        """Open the file that `place` speaks of, wherever it is now; leave it to `run` when there is none."""
        if not fresh and (found := self._locate(self.place)) is not None:
            self._resume(*found)
        elif fresh and (file := _open(self._path)) is not None:
            self._take(file, self.place.generation)
            if from_end:
                end = os.fstat(file).st_size
                self._remember(file, end)
                self.place = self._at(end, begin=end)

    def run(self) -> Iterator[tuple[Document, Cursor]]:
        if self._file is None:
            if self.place.offset:
                log.warning(
                    "%s: the file that was read up to byte %d is gone; what was added to it is lost, going on with "
                    "the next one",
                    self._path,
                    self.place.offset,
                )
            while (file := _open(self._path)) is None:
                if self._closed.wait(POLL_S):
                    return
            yield from self._next(file)
        n_idle = 0  # polls at the end of a file that was replaced by one with text
        while not self._closed.is_set():
            assert self._file is not None  # noqa: S101  (for the type checker: opened above, replaced, never dropped)
            if not self._same(self._file):
                yield from self._truncated()
                n_idle = 0
            elif piece := os.pread(self._file, PIECE_BYTES, self.place.offset):
                yield self._deliver(piece)
                n_idle = 0
            elif (newer := self._newer()) is not None and (n_idle := n_idle + 1) >= 2:
                # whoever writes had a whole poll to finish with the old file after text appeared in the new one
                yield from self._next(newer)
                n_idle = 0
            else:
                if newer is not None:
                    os.close(newer)
                self._closed.wait(POLL_S)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _deliver(self, piece: bytes) -> tuple[Document, Cursor]:
        document = self._document(piece, last=False)
        self._head = (self._head + piece)[:PRINT_BYTES] if len(self._head) < PRINT_BYTES else self._head
        self._back = (self._back + piece)[-PRINT_BYTES:]
        self.place = self._at(self.place.offset + len(piece), begin=self.place.begin)
        return document, self.place.cursor()

    def _document(self, text: bytes, *, last: bool) -> Document:
        place = self.place
        name = f"{self._path.name}@{place.generation}"
        return Document(text=text, id=name, source="tail", offset=place.offset - place.begin, last=last)

    def _next(self, file: int) -> Iterator[tuple[Document, Cursor]]:
        """End the document of this generation, if there is one, and go on at the start of `file`."""
        begun = self.place.offset > self.place.begin
        if self._file is not None:
            self._finished.add(_identity(os.fstat(self._file)))
        document = self._document(b"", last=True)
        self._take(file, self.place.generation + begun)
        if begun:
            yield document, self.place.cursor()

    def _truncated(self) -> Iterator[tuple[Document, Cursor]]:
        """The open file lost what was read of it. First finish a copy of it that was made beside, if there is one."""
        assert self._file is not None  # noqa: S101  (for the type checker)
        offset = self.place.offset
        again = os.dup(self._file)
        copy = self._find(self.place, by_inode=False)
        if copy is not None:
            with os.fdopen(copy, "rb", buffering=0) as file:
                self._finished.add(_identity(os.fstat(copy)))
                while piece := os.pread(file.fileno(), PIECE_BYTES, self.place.offset):
                    yield self._deliver(piece)
        log.warning("%s was truncated after %d bytes had been read; starting over at its beginning", self._path, offset)
        yield from self._next(again)

    def _newer(self) -> int | None:
        """The file that took this one's place, opened, once it has text; rotated ones that came between go first."""
        status = _status(self._path)
        if status is None or _identity(status) == (self.place.device, self.place.inode):
            return None
        between = self._between(status)
        expected = status if between is None else between[0]
        file = _open(self._path if between is None else between[1])
        if file is not None and (not os.path.samestat(os.fstat(file), expected) or expected.st_size == 0):
            os.close(file)  # still empty, or rotated again between the two looks: the next poll sees it as it is
            return None
        return file

    def _between(self, newest: os.stat_result) -> tuple[os.stat_result, Path] | None:
        """The oldest rotated file written after this one and before `newest`: two rotations since the last look."""
        found: list[tuple[int, Path, os.stat_result]] = []
        for path in _beside(self._path):
            status = _status(path)
            rotated = re.fullmatch(r"[.\-][0-9][0-9.\-_T]*", path.name.removeprefix(self._path.name))
            if status is None or rotated is None or not stat.S_ISREG(status.st_mode) or not status.st_size:
                continue
            read = _identity(status) in {_identity(newest), (self.place.device, self.place.inode), *self._finished}
            if not read and self.place.written_ns < status.st_mtime_ns <= newest.st_mtime_ns:
                found.append((status.st_mtime_ns, path, status))
        if not found:
            return None
        _, path, status = min(found, key=lambda item: item[:2])
        return status, path

    def _locate(self, place: _Place) -> tuple[int, _Place] | None:
        """The file of `place`: by its identity and content, or, if that was overwritten, a copy by content."""
        for by_inode in (True, False):
            if (file := self._find(place, by_inode=by_inode)) is not None:
                return file, place
        return None

    def _find(self, place: _Place, *, by_inode: bool) -> int | None:
        """A file at `path` or beside it, newest first, that holds what was read up to `place.offset`."""
        found: list[tuple[int, Path]] = []
        for path in [self._path, *_beside(self._path)]:
            status = _status(path)
            if status is None or not stat.S_ISREG(status.st_mode) or status.st_size < place.offset:
                continue
            if by_inode:
                likely = _identity(status) == (place.device, place.inode)
            else:  # a copy came after what was read; an old rotated file may begin alike, but was there before
                likely = place.offset > 0 and status.st_ctime_ns >= place.written_ns
            if likely:
                found.append((status.st_mtime_ns, path))
        for _, path in sorted(found, reverse=True):
            file = _open(path)
            if file is not None:
                if _fingerprint(*_prints(file, place.offset)) == place.mark:
                    return file
                os.close(file)
        return None

    def _resume(self, file: int, place: _Place) -> None:
        self._file = file
        self._remember(file, place.offset)
        self.place = place
        self.place = self._at(place.offset, begin=place.begin)

    def _take(self, file: int, generation: int) -> None:
        self.close()
        self._file = file
        self._head = self._back = b""
        self.place = _Place(path=str(self._path), generation=generation)
        self.place = self._at(0, begin=0)

    def _remember(self, file: int, offset: int) -> None:
        self._head, self._back = _prints(file, offset)

    def _at(self, offset: int, *, begin: int) -> _Place:
        status = os.fstat(self._file) if self._file is not None else None
        return _Place(
            path=str(self._path),
            generation=self.place.generation,
            device=None if status is None else status.st_dev,
            inode=None if status is None else status.st_ino,
            begin=begin,
            offset=offset,
            mark=_fingerprint(self._head, self._back),
            written_ns=0 if status is None else status.st_mtime_ns,
        )

    def _same(self, file: int) -> bool:
        """Whether what was read is still there; a truncated file may have grown past it again since the last look."""
        return _prints(file, self.place.offset) == (self._head, self._back)


def _prints(file: int, offset: int) -> tuple[bytes, bytes]:
    start = max(0, offset - PRINT_BYTES)
    return os.pread(file, min(PRINT_BYTES, offset), 0), os.pread(file, offset - start, start)


def _fingerprint(head: bytes, back: bytes) -> str:
    return blake2b(head + back, digest_size=16).hexdigest() if head else ""


def _beside(path: Path) -> list[Path]:
    """Files that rotation may have made of `path`: its name and something more. Sorted."""
    return sorted(p for p in path.parent.iterdir() if p.name.startswith(path.name) and p.name != path.name)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be looked at: {error.strerror or error}.") from None


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _parse(cursor: Cursor, path: Path) -> _Place:
    if cursor.source == "tail" and set(cursor.at) == set(_Place.__slots__):
        match dict(cursor.at):
            case {
                "path": str(name),
                "generation": int(generation),
                "device": int() | None as device,
                "inode": int() | None as inode,
                "begin": int(begin),
                "offset": int(offset),
                "mark": str(mark),
                "written_ns": int(written_ns),
            } if name == str(path):
                return _Place(
                    path=name,
                    generation=generation,
                    device=device,
                    inode=inode,
                    begin=begin,
                    offset=offset,
                    mark=mark,
                    written_ns=written_ns,
                )
    raise SourceError(
        f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to tail:{path}: "
        "this run was reading something else."
    )
