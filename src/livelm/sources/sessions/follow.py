"""The files of a folder of sessions: which there are, in which order, and their lines."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from livelm.errors import SourceError
from livelm.sources.sessions.redact import find_secrets, replace

SUFFIX = re.compile(r"\.(?:jsonl|ndjson)(?:\.\d+)?$")
BEGAN = re.compile(rb'"(?:timestamp|iso)"\s*:\s*"([0-9T:.Z+-]{10,40})"')
HEAD_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
MARK_BYTES = 1 << 10
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True, order=True)
class SessionFile:
    """A file, ordered by when its conversation began, so that a copy comes after what it was copied from."""

    began: str
    key: str
    """Stands for its path in cursors: folder names often hold a person's name."""
    path: Path

    @property
    def name(self) -> str:
        """What documents are called by: the file's own name and, since folders repeat names, eight digits of the key.

        >>> SessionFile("", "0123456789abcdef", Path("a/agent-1.jsonl")).name
        'agent-1@01234567'
        """
        stem = SUFFIX.sub("", self.path.name)
        return f"{replace(stem, find_secrets(stem))}@{self.key[:8]}"


class Folder:
    """Looks at the target again and again."""

    def __init__(self, target: Path, max_files: int) -> None:
        self._target, self._max_files = target, max_files
        self._began: dict[str, str] = {}

    def look(self, skipped: Counter[str]) -> list[tuple[SessionFile, os.stat_result]]:
        """The files that are there now, oldest conversation first. Raises SourceError when the target is gone."""
        found: list[tuple[SessionFile, os.stat_result]] = []
        n_left_out = 0
        for path, status in self._walk(skipped):
            if len(found) >= self._max_files:
                n_left_out += 1
                continue
            key = file_key(path, self._target)
            began = self._began.get(key)
            if began is None and (began := _began(path)):
                self._began[key] = began
            found.append((SessionFile(began or "", key, path), status))
        if n_left_out:
            skipped["file over max_files"] = n_left_out
        return sorted(found, key=lambda item: item[0])

    def _walk(self, skipped: Counter[str]) -> Iterator[tuple[Path, os.stat_result]]:
        if self._target.is_file():
            yield self._target, self._target.stat()
            return
        if not self._target.is_dir():
            raise SourceError(
                f"there are no sessions at {shown(self._target)!r}: it is not there. Name a file or folder."
            )
        folders = [(self._target, 0)]
        while folders:
            folder, depth = folders.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH:
                        folders.append((Path(entry.path), depth + 1))
                    elif SUFFIX.search(entry.name) and entry.is_file():
                        yield Path(entry.path), entry.stat()
            except FileNotFoundError:  # it went away between two looks
                continue
            except PermissionError as error:
                if folder == self._target:
                    raise SourceError(f"{shown(folder)!r} cannot be read: {error.strerror}.") from None
                skipped["folder that cannot be read"] = 1


def shown(path: Path) -> str:
    """A path for people, without the name of the home folder.

    >>> shown(Path.home() / "logs")
    '~/logs'
    """
    text = str(path)
    home = str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def file_key(path: Path, target: Path) -> str:
    """16 hex digits that stand for a path below the target."""
    relative = path.name if path == target else str(path.relative_to(target))
    return blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def line_mark(line: bytes) -> str:
    """Tells a file from another that took its place: a print of its first line, which an appended file keeps."""
    return blake2b(line[:MARK_BYTES], digest_size=6).hexdigest()


def file_mark(file: BinaryIO) -> str:
    """The mark of a file's first line. Moves the file's position."""
    file.seek(0)
    return line_mark(file.read(MARK_BYTES).split(b"\n", 1)[0])


def lines(file: BinaryIO, position: int, line_bytes: int, *, to_end: bool) -> Iterator[tuple[bytes | None, int]]:
    """Each line from `position` on with the place after it; None for one that is too long.

    What follows the last line break counts as a line only with `to_end`: a live line may still be written.
    """
    file.seek(position)
    parts: list[bytes] = []
    size = 0
    while chunk := file.read(CHUNK_BYTES):
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            n_bytes = size + len(part)
            position += n_bytes + 1
            yield (b"".join([*parts, part]) if n_bytes <= line_bytes else None), position
            parts, size = [], 0
        size += len(rest)
        parts = [*parts, rest] if size <= line_bytes else []
    if size and to_end:
        yield (b"".join(parts) if size <= line_bytes else None), position + size


def _began(path: Path) -> str:
    try:
        with path.open("rb") as file:
            match = BEGAN.search(file.read(HEAD_BYTES))
    except OSError:
        return ""
    return match[1].decode() if match else ""
