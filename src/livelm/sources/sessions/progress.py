"""How far every file was read: the cursor, and the part of it that is kept in a folder when it grows large.

A cursor must stand alone: it says for each file how far it was read. With a folder to keep state in, the many files
that did not change lately are written to a snapshot there, synced before any cursor refers to it, and a cursor names
the snapshot and the few files that changed since.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livelm.errors import SourceError, StorageError
from livelm.types import Cursor, Json

MAX_CHANGED = 48
"""Files that a cursor lists itself before another snapshot is written."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far one file was read."""

    offset: int = 0
    """Bytes whose messages were delivered."""
    n_documents: int = 0
    """Documents that were begun."""
    mark: str = ""
    """See `follow.line_mark`; empty while it is not known."""


@dataclass(slots=True)
class OpenDocument:
    """The document of which more pieces may come."""

    key: str
    id: str
    n_bytes: int = 0


class Progress:
    """The state of a read, and its cursors."""

    def __init__(self, target: str) -> None:
        self.open: OpenDocument | None = None
        self.part: tuple[int, int] | None = None
        """In the middle of a message: where its lines end, and how many of its bytes were delivered."""
        self.after: tuple[str, str] | None = None
        """In a single pass, the file that is being read; those before it are done and not listed."""
        self._target = target
        self._folder: Path | None = None
        self._base: int | None = None
        self._stored: dict[str, Place] = {}
        self._changed: dict[str, Place] = {}

    def keep(self, folder: Path) -> None:
        """Write snapshots to this folder."""
        self._folder = folder

    def place(self, key: str) -> Place:
        """How far a file was read."""
        return self._changed.get(key) or self._stored.get(key) or Place()

    def put(self, key: str, place: Place) -> None:
        """Note how far a file was read. Raises StorageError when a snapshot is due and cannot be written."""
        if self.after is not None:
            self._changed.clear()
        self._changed[key] = place
        if self._folder is not None and len(self._changed) > MAX_CHANGED:
            self._snapshot(self._folder)

    def places(self) -> dict[str, Place]:
        """Every file of which something was read."""
        return self._stored | self._changed

    def cursor(self) -> Cursor:
        """Continue from here."""
        at: dict[str, Json] = {
            "target": self._target,
            "base": self._base,
            "files": {key: [p.offset, p.n_documents, p.mark] for key, p in self._changed.items()},
            "after": None if self.after is None else list(self.after),
            "open": None if self.open is None else [self.open.key, self.open.id, self.open.n_bytes],
            "part": None if self.part is None else list(self.part),
        }
        return Cursor("sessions", at)

    def resume(self, cursor: Cursor) -> None:
        """Go back to a cursor. Raises SourceError when it is not of these sessions or its snapshot is missing."""
        if cursor.source == "sessions":
            match dict(cursor.at):
                case {
                    "target": str(target),
                    "base": int() | None as base,
                    "files": dict(files),
                    "after": [str(), str()] | None as after,
                    "open": [str(), str(), int()] | None as opened,
                    "part": [int(), int()] | None as part,
                } if target == self._target:
                    self._stored = {} if base is None else self._load(base)
                    self._base, self._changed = base, _parse(files)
                    self.after = None if after is None else (after[0], after[1])
                    self.open = None if opened is None else OpenDocument(*opened)
                    self.part = None if part is None else (part[0], part[1])
                    return
        raise SourceError(
            f"a cursor of {cursor.source!r} does not belong to these sessions: this run was reading something else."
        )

    def _snapshot(self, folder: Path) -> None:
        number = max([0, *map(_number, _snapshots(folder))]) + 1
        path = folder / f"places-{number}.json"
        stored = self.places()
        text = json.dumps({key: [p.offset, p.n_documents, p.mark] for key, p in stored.items()})
        draft = path.with_suffix(".draft")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            _sync(folder)
        except OSError as error:
            raise StorageError(
                f"the progress of the sessions cannot be kept in {str(folder)!r}: {error.strerror}. What was saved "
                "before is intact; make room and resume."
            ) from None
        self._base, self._stored, self._changed = number, stored, {}

    def _load(self, number: int) -> dict[str, Place]:
        if self._folder is None:
            raise SourceError(f"the cursor refers to snapshot {number}, but no folder with snapshots was given.")
        path = self._folder / f"places-{number}.json"
        try:
            return _parse(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{str(path)!r}, to which the cursor refers, cannot be read ({error}). Restore it, or start a new run."
            ) from None


def forget_snapshots(folder: Path, cursor: Cursor) -> None:
    """Delete the snapshots that only cursors before this one refer to."""
    base = cursor.at.get("base")
    if cursor.source != "sessions" or not isinstance(base, int):
        return
    for path in _snapshots(folder):
        if _number(path) < base:
            path.unlink(missing_ok=True)


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("places-*.json") if path.stem.removeprefix("places-").isdigit())


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("places-"))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parse(files: Mapping[str, Json]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for key, values in files.items():
        match values:
            case [int(offset), int(n_documents), str(mark)]:
                places[key] = Place(offset, n_documents, mark)
            case _:
                raise SourceError(f"the place {values!r} of file {key!r} does not belong to sessions: it is damaged.")
    return places
