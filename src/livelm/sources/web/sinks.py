"""Where crawled pages go when no learner reads them: a `.jsonl.zst`, a WARC, or a broker. All can be continued.

A sink says after each write how far it is (`place`, plain JSON). Whoever drives it keeps that together with the cursor;
opened again with a place, a file is cut back to it, so that what was written after is written once more, and not twice.
"""

import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from livelm.errors import ConfigError, SourceError, StorageError
from livelm.sources.brokers.message import Publisher
from livelm.sources.web.item import Item
from livelm.types import Document

ZSTD_LEVEL = 6
_DROPPED = frozenset(("transfer-encoding", "connection", "keep-alive", "content-length"))
"""Headers that were true of the connection, or of the body with its chunked framing."""


class Sink(Protocol):
    """Takes pages."""

    @property
    def place(self) -> dict[str, Any]:
        """Where it is after the last `write`; plain JSON."""
        ...

    def write(self, items: Sequence[Item]) -> None:
        """Store all of them: durable when this returns. Raises StorageError, or SourceError for a broker."""
        ...

    def close(self) -> None:
        """Let go; safe to call more than once."""
        ...


class _Appended:
    """A file that grows by whole writes and can be cut back to any of them."""

    def __init__(self, path: Path, place: dict[str, Any] | None) -> None:
        self.path = path
        try:
            if place is None and path.exists() and path.stat().st_size:
                raise ConfigError(
                    f"{str(path)!r} exists and was not written by this crawl. Choose another name, or remove it."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            n_bytes = 0 if place is None else int(place["n_bytes"])
            if os.fstat(self._file).st_size < n_bytes:
                os.close(self._file)
                raise SourceError(
                    f"{str(path)!r} is shorter than the {n_bytes} bytes that this crawl wrote. Restore it."
                )
            os.ftruncate(self._file, n_bytes)
        except OSError as error:
            raise self._refused(error) from None
        self.n_bytes = n_bytes
        self._open = True

    def append(self, data: bytes) -> None:
        """Write and sync. Raises StorageError; then nothing of it stays."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self.n_bytes)
            raise self._refused(error) from None
        self.n_bytes += len(data)

    def close(self) -> None:
        """Close once."""
        if self._open:
            self._open = False
            os.close(self._file)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"{str(self.path)!r} cannot be written: {error.strerror or error}. What was written before is intact; make "
            "room and give the same command again."
        )


class JsonLines:
    """A `.jsonl.zst`: a line of JSON for each page, a frame of zstd for each write."""

    def __init__(self, path: Path, place: dict[str, Any] | None) -> None:
        """Begin a new file, or go on at `place`. Raises ConfigError, SourceError, StorageError."""
        self._file = _Appended(path, place)
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)

    @property
    def place(self) -> dict[str, Any]:
        """The length of the file."""
        return {"n_bytes": self._file.n_bytes}

    def write(self, items: Sequence[Item]) -> None:
        """Append one frame. Raises StorageError."""
        self._file.append(self._compressor.compress(b"".join(map(_line, items))))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Warc:
    """A `.warc.gz` (ISO 28500): a response record for each page, with the body as it was sent."""

    def __init__(self, path: Path, place: dict[str, Any] | None) -> None:
        """Begin a new file, or go on at `place`. Raises ConfigError, SourceError, StorageError."""
        self._file = _Appended(path, place)
        self._buffer = io.BytesIO()
        self._writer = WARCWriter(self._buffer, gzip=True, warc_version="WARC/1.1")
        if not self._file.n_bytes:
            about = {"software": f"livelm/{version('livelm')}", "format": "WARC File Format 1.1"}
            self._writer.write_record(self._writer.create_warcinfo_record(path.name, about))

    @property
    def place(self) -> dict[str, Any]:
        """The length of the file."""
        return {"n_bytes": self._file.n_bytes}

    def write(self, items: Sequence[Item]) -> None:
        """Append a record for each. Raises StorageError."""
        for item in items:
            self._writer.write_record(self._record(item))
        self._file.append(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _record(self, item: Item) -> Any:
        body = item.raw if item.raw is not None else b""
        # HTTP has no body of what aiohttp took the framing off: the length is that of what is kept
        headers = [(name.title(), value) for name, value in item.headers.items() if name not in _DROPPED]
        headers.append(("Content-Length", str(len(body))))
        status = f"{item.status} {_phrase(item.status)}"
        about = {"WARC-Date": _warc_date(item.at)}
        if item.address:
            about["WARC-IP-Address"] = item.address
        return self._writer.create_warc_record(
            item.url,
            "response",
            payload=io.BytesIO(body),
            http_headers=StatusAndHeaders(status, headers, protocol="HTTP/1.1"),
            warc_headers_dict=about,
        )


class Broker:
    """Any broker that a publisher speaks to; each message says again whose it is, so the broker drops doubles."""

    def __init__(self, publisher: Publisher, name: str) -> None:
        self._publisher, self._name = publisher, name

    @property
    def place(self) -> dict[str, Any]:
        """Brokers keep that themselves."""
        return {}

    def write(self, items: Sequence[Item]) -> None:
        """Publish and wait until all are stored. Raises SourceError."""
        self._publisher.publish(
            [Document(text=item.text, id=item.url, source=self._name, at=item.at, url=item.url) for item in items]
        )

    def close(self) -> None:
        """Let go of the broker."""
        self._publisher.close()


def open_file(path: Path, place: dict[str, Any] | None) -> JsonLines | Warc:
    """The sink for a file name. Raises ConfigError when its ending says neither, and what the sinks raise."""
    if path.name.endswith(".jsonl.zst"):
        return JsonLines(path, place)
    if path.name.endswith(".warc.gz"):
        return Warc(path, place)
    raise ConfigError(
        f"--to {str(path)!r}: the name must end with .jsonl.zst or .warc.gz, or be the address of a broker."
    )


def _line(item: Item) -> bytes:
    text = item.text.decode("utf-8", "replace")
    line = {
        "id": item.url,
        "url": item.url,
        "at": item.at,
        "title": item.title,
        "language": item.language,
        "text": text,
    }
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


def _warc_date(at: str) -> str:
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
