"""Read files once, in a fixed order: text and any other bytes as they are, JSON lines as one document a line."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.decompress import BROKEN, ByteStream, open_stream
from livelm.sources.listing import Wanted, check_exists, list_files, visible
from livelm.types import Cursor, Document

PIECE_BYTES = 64 << 10
"""A longer file arrives in pieces of this size."""
LINE_BYTES = 64 << 20
"""A longer line of JSON is skipped and counted: it must be held whole to be understood."""

log = logging.getLogger(__name__)


class FilesSettings(Settings):
    """How files are read."""

    text_field: str = "text"
    """The field of a line of JSON that holds the document."""


class Files:
    """Files, directories (recursive, sorted, hidden names left out) and globs, one after another.

    .gz, .bz2, .xz and .zst are recognised by content. `NAME.jsonl` (or `NAME.jsonl.gz`, …) is one document a line;
    a line that is not JSON, lacks the text field or exceeds `LINE_BYTES` is skipped, logged and counted in `skipped`.
    Everything else is read as bytes, whatever it is: nothing is left out because it looks binary. Empty files
    yield no document.
    """

    bounded = True
    replayable = True

    def __init__(
        self,
        roots: Sequence[str],
        settings: FilesSettings | None = None,
        *,
        source: str = "files",
        wanted: Wanted = visible,
    ) -> None:
        """Raises SourceError when nothing is at one of the roots. `source` is the name documents and cursors carry."""
        for root in roots:
            check_exists(root)
        self.skipped: Counter[str] = Counter()
        """Why things were not read, and how often, in the latest `read`."""
        self._roots = tuple(roots)
        self._settings = settings or FilesSettings()
        self._source = source
        self._wanted = wanted
        self._closed = threading.Event()

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the files from `cursor` on. Raises SourceError naming the file and the byte that is at fault."""
        place = None if cursor is None else _Place.parse(cursor, self._source)
        self.skipped = Counter()
        found = list_files(self._roots, self._wanted, self.skipped)
        first = 0
        if place is not None:
            names = [name for name, _ in found]
            if place.path not in names:
                raise SourceError(
                    f"reading stopped in {place.path!r}, which is no longer among the files of "
                    f"{', '.join(self._roots)}. Restore it, or start a new run."
                )
            first = names.index(place.path) + place.done
        anything = cursor is not None
        for name, path in found[first:]:
            start = place if place is not None and place.path == name else _Place(name)
            for item in self._read_file(name, path, start):
                if self._closed.is_set():
                    return
                anything = True
                yield item
        if not anything and not self._closed.is_set():
            raise SourceError(f"empty stream: {self._nothing(len(found))}")

    def close(self) -> None:
        """End `read` at the next piece."""
        self._closed.set()

    def describe(self) -> str:
        """One line for people."""
        return f"{self._source} {', '.join(self._roots)}: ends by itself, can be read again"

    def _nothing(self, n_files: int) -> str:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in sorted(self.skipped.items()) if n)
        return f"{n_files} files in {', '.join(self._roots)}, not one byte to read{f' ({reasons})' if reasons else ''}."

    def _read_file(self, name: str, path: Path, start: "_Place") -> Iterator[tuple[Document, Cursor]]:
        with closing(open_stream(path, start.offset)) as stream:
            chunks = _chunks(stream, path, start.offset)
            if _is_jsonl(path.name):
                yield from self._read_lines(name, chunks, start)
            else:
                yield from self._read_bytes(name, chunks, start)

    def _read_bytes(self, name: str, chunks: "Chunks", start: "_Place") -> Iterator[tuple[Document, Cursor]]:
        offset = start.offset
        held: bytes | None = None  # one chunk behind, because only the next read tells whether it is the last
        for chunk in chunks:
            if isinstance(chunk, SourceError):
                if held:
                    yield self._piece(name, held, offset, last=False)
                raise chunk
            if held is not None:
                yield self._piece(name, held, offset, last=False)
                offset += len(held)
            held = chunk
        if held is not None:
            yield self._piece(name, held, offset, last=True)
        elif offset:  # the cursor stands at the very end: the file lost the bytes that were there
            yield self._piece(name, b"", offset, last=True)

    def _piece(self, name: str, text: bytes, offset: int, *, last: bool) -> tuple[Document, Cursor]:
        document = Document(text=text, id=name, source=self._source, offset=offset, last=last)
        return document, _Place(name, offset + len(text), done=last).cursor(self._source)

    def _read_lines(self, name: str, chunks: "Chunks", start: "_Place") -> Iterator[tuple[Document, Cursor]]:
        number = start.line
        for line, stop in _lines(chunks, start.offset):
            number += 1
            if self._closed.is_set():
                return
            found = self._parse(line)
            if isinstance(found, str):
                self._skip(found, name, number)
            elif found is not None:
                text, url = found
                document = Document(text=text, id=f"{name}#{number}", source=self._source, url=url)
                yield document, _Place(name, stop, line=number).cursor(self._source)

    def _parse(self, line: bytes | None) -> tuple[bytes, str | None] | str | None:
        """Text and URL of a line of JSON, or why it is skipped; None for a blank line."""
        if line is None:
            return f"line over {LINE_BYTES >> 20} MiB"
        if not line.strip():
            return None
        try:
            values: Any = json.loads(line)
        except (ValueError, RecursionError):
            return "not JSON"
        field = self._settings.text_field
        text = values.get(field) if isinstance(values, dict) else None
        if not isinstance(text, str):
            return f"no text in field {field!r}"
        if not text:
            return "empty text"
        url = values.get("url")
        return text.encode("utf-8", "surrogatepass"), url if isinstance(url, str) else None

    def _skip(self, reason: str, name: str, number: int) -> None:
        self.skipped[reason] += 1
        if self.skipped[reason] == 1:  # a million broken lines must not write a million messages; the counter has all
            log.warning("%s: line %d is skipped (%s); further ones of this kind are counted", name, number, reason)


@dataclass(frozen=True, slots=True)
class _Place:
    """Continue in `path` after `offset` uncompressed bytes and `line` lines; `done`: after the whole file."""

    path: str
    offset: int = 0
    line: int = 0
    done: bool = False

    def cursor(self, source: str) -> Cursor:
        return Cursor(source, {"path": self.path, "offset": self.offset, "line": self.line, "done": self.done})

    @staticmethod
    def parse(cursor: Cursor, source: str) -> "_Place":
        if cursor.source == source:
            match dict(cursor.at):
                case {"path": str(path), "offset": int(offset), "line": int(line), "done": bool(done)}:
                    return _Place(path, offset, line, done)
        raise SourceError(
            f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to {source!r}: "
            "this run was reading something else."
        )


Chunks = Iterator[bytes | SourceError]
"""Full chunks of `PIECE_BYTES`, a shorter last one, and an error where the data broke off."""


def _chunks(stream: ByteStream, path: Path, offset: int) -> Chunks:
    """The error is an item, not an exception, so that whoever holds a chunk back can deliver it first."""
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = stream.read1(PIECE_BYTES - size)
        except BROKEN as error:
            if parts:
                yield b"".join(parts)
            yield SourceError(f"{str(path)!r} is damaged after {offset + size} uncompressed bytes: {error}.")
            return
        parts.append(part)
        size += len(part)
        if size == PIECE_BYTES or (not part and size):
            yield b"".join(parts)
            parts, offset, size = [], offset + size, 0
        if not part:
            return


def _lines(chunks: Chunks, offset: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line with the offset after it; None for one over `LINE_BYTES`. Raises the error that ends the chunks."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        if isinstance(chunk, SourceError):
            raise chunk  # half a line of JSON is no document
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            offset += size + len(part) + 1
            fits = size + len(part) <= LINE_BYTES
            yield (b"".join([*parts, part]) if fits else None), offset
            parts, size = [], 0
        size += len(rest)
        parts = [*parts, rest] if size <= LINE_BYTES else []
    if size:
        yield (b"".join(parts) if size <= LINE_BYTES else None), offset + size


def _is_jsonl(name: str) -> bool:
    path = Path(name.lower())
    return (path.with_suffix("") if path.suffix in (".gz", ".bz2", ".xz", ".zst") else path).suffix == ".jsonl"
