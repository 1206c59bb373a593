"""Read the text of web archives: WARC and ARC, plain or in members of gzip or zstd, from disk or from a web server.

FastWARC reads what is inside a record (HTTP, transfer and content encodings). The walk over records is ours, in
`framing`: FastWARC 2.0 ends an archive at its first damage, knows no ARC, and gives no position to continue
from in an archive that is one gzip member.
"""

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, cast
from urllib.parse import urlsplit

from fastwarc.warc import WarcRecord, WarcRecordType
from pydantic import Field

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.archives.framing import TYPES, Record, read_records
from livelm.sources.archives.remote import Remote
from livelm.sources.archives.window import Archive, Place, Raw
from livelm.sources.listing import check_exists, list_files
from livelm.sources.web.address import AddressPolicy, AddressSettings
from livelm.sources.web.page import PageReader, PageSettings
from livelm.types import Cursor, Document, Json

AGENT = "livelm"
"""The name that pages may refuse to be used by."""
MAX_REPORTS = 20
"""Files whose damages are logged one by one; all are counted."""
MAX_ID = 200
"""Longer record ids are not taken; the place of the record is its id then."""
ARCHIVE_NAME = re.compile(r"\.(?:w?arc|wet|wat)(?:\.(?:wet|wat|gz|zst|open))*$", re.IGNORECASE)
"""How files are called that are read when found in a directory."""

log = logging.getLogger(__name__)


class ArchivesSettings(Settings):
    """How archives are read."""

    max_record_bytes: int = Field(default=32 << 20, ge=1024, le=1 << 30)
    """A longer record is counted and left out: it must be held whole to be understood."""
    max_text_bytes: int = Field(default=32 << 20, ge=1024, le=1 << 30)
    """A payload that is longer after decompression is counted and left out."""
    allow: tuple[str, ...] = ()
    """Hosts, as "host" or "host:port", from which archives are read although their addresses are private."""
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """How long a web server may be silent before the request is repeated."""
    honour_ai: bool = True
    """Leave out pages that refuse to be used for training (`noai`, TDM reservations)."""


class Archives:
    """The archives at `target`: a file, a directory (`*.warc*`, `*.arc*`, `*.wet*`), a glob or an http(s) URL.

    One document per record with text: the main text of `response` and `resource` records that are HTML (answered with
    2xx) or plain text, and the payload of `conversion` records (WET) as it is. Everything else is counted by type;
    what had no text, or could not be read, is counted by reason. Damage is passed: what follows it is read.
    """

    Config: ClassVar[type[Settings]] = ArchivesSettings
    bounded = True
    replayable = True

    def __init__(self, target: str, settings: ArchivesSettings | None = None) -> None:
        """Raises SourceError when no file is there, or the URL makes no sense (it is asked when it is read)."""
        self._target = target
        self._settings = settings or ArchivesSettings()
        self._is_remote = target.startswith(("http://", "https://"))
        if self._is_remote:
            _check_url(target)
        else:
            check_exists(target)
        self._closed = threading.Event()
        self._pages = PageReader(PageSettings(), AGENT, honour_ai=self._settings.honour_ai)
        self._counts: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the texts after `cursor`, without reading what came before.

        Raises SourceError when the stream was empty, an archive cannot be opened or fetched, or was exchanged.
        """
        start = None if cursor is None else _parse(cursor)
        for counter in (self._counts, self._types, self._drops):
            counter.clear()
        files = self._list()
        first = 0
        if start is not None:
            names = [name for name, _ in files]
            if start.file not in names:
                raise SourceError(
                    f"reading stopped in {start.file!r}, which is no longer among the archives at {self._target!r}. "
                    "Restore it, or start a new run."
                )
            first = names.index(start.file)
        for name, path in files[first:]:
            after = start.place if start is not None and start.file == name else None
            with closing(self._open(path)) as raw:
                yield from self._read_archive(name, raw, after)
            if self._closed.is_set():
                return
        if not self._counts["documents"] and cursor is None:
            raise SourceError(f"empty stream: no text in {len(files)} archives at {self._target!r} ({self._found()}).")

    def close(self) -> None:
        """End `read` at the next record."""
        self._closed.set()

    def observe(self) -> dict[str, Json]:
        """Since `read` began: files, records (in all and by type), documents, bytes of text, and drops by reason."""
        types = {f"records_{name}": self._types[name] for name in (*TYPES, "other")}
        counts = {name: self._counts[name] for name in ("files", "files_damaged", "records", "documents", "text_bytes")}
        return {**counts, **types, "drops": dict(self._drops)}

    def describe(self) -> str:
        """One line for people."""
        return f"warc {self._target}: ends by itself, can be read again"

    def _list(self) -> list[tuple[str, Path | None]]:
        if self._is_remote:
            return [(self._target, None)]
        return [*list_files([self._target], _is_wanted, self._drops)]

    def _open(self, path: Path | None) -> Raw:
        if path is None:
            addresses = AddressSettings(allow=self._settings.allow, ports=(80, 443, _check_url(self._target)))
            return Remote(self._target, AddressPolicy(addresses), self._settings.timeout_s, self._closed)
        return _Local(path)

    def _read_archive(self, name: str, raw: Raw, after: Place | None) -> Iterator[tuple[Document, Cursor]]:
        damages: Counter[str] = Counter()
        n_before = self._counts["records"]
        archive = Archive(raw, after or Place(), damages)
        for record in read_records(archive, self._is_wanted_record, damages, after):
            if self._closed.is_set():
                return
            if record is None:
                raise SourceError(
                    f"{name!r} has no record at byte {after}, where reading stopped: it was changed in between. "
                    "Restore it, or start a new run."
                )
            self._counts["records"] += 1
            self._types[record.type if record.type in TYPES else "other"] += 1
            document = self._document(name, record)
            if document is not None:
                self._counts["documents"] += 1
                self._counts["text_bytes"] += len(document.text)
                at = {"file": name, "member": record.place.member, "skip": record.place.skip}
                yield document, Cursor("warc", at)
        if not self._closed.is_set():
            self._report(name, damages, self._counts["records"] - n_before)

    def _report(self, name: str, damages: Counter[str], n_records: int) -> None:
        self._counts["files"] += 1
        if not damages:
            return
        self._counts["files_damaged"] += 1
        self._drops.update(damages)
        if self._counts["files_damaged"] <= MAX_REPORTS:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in damages.most_common())
            log.warning("%s is damaged (%s); its other records, %d, were read", name, reasons, n_records)

    def _found(self) -> str:
        drops = [f"{n} x {reason}" for reason, n in self._drops.most_common(8)]
        return "; ".join([f"{self._counts['records']} records", *drops])

    def _is_wanted_record(self, record: Record) -> bool:
        """Whether there may be text in it; what is too long to look at is counted by `_document`."""
        return record.type in _CARRIERS and record.n_bytes <= self._settings.max_record_bytes

    def _document(self, name: str, record: Record) -> Document | None:
        """The document that the record carries; else None, and the reason is counted unless it never carries one."""
        if record.type not in _CARRIERS:
            return None
        if record.n_bytes > self._settings.max_record_bytes:
            self._drop("record_too_long", name, record)
            return None
        text, reason = self._text(record)
        if reason is not None or not text:
            self._drop(reason or "empty", name, record)
            return None
        fields = record.fields
        identity = fields.get("warc-record-id", "").strip("<>")
        if not 0 < len(identity) <= MAX_ID:
            identity = f"{name}@{record.place.member}+{record.place.skip}"
        url, at = _url(record), fields.get("warc-date")
        return Document(text=text, id=identity, source="warc", at=at if at and len(at) <= 40 else None, url=url or None)

    def _drop(self, reason: str, name: str, record: Record) -> None:
        self._drops[reason] += 1
        if self._drops[reason] == 1:  # the rest is in the counter
            log.info("%s: the record at %d+%d is left out (%s)", name, record.place.member, record.place.skip, reason)

    def _text(self, record: Record) -> tuple[bytes, str | None]:
        """The text of a record, or why there is none."""
        if record.type == "conversion":
            return record.block, None
        content_type = record.fields.get("content-type", "")
        if record.type == "resource":
            return self._page(record.block, {"content-type": content_type}, _url(record))
        if not _url(record).lower().startswith(("http:", "https:")):
            return b"", "not_http"
        body, headers, reason = _http(record.block, self._settings.max_text_bytes)
        return (b"", reason) if reason is not None else self._page(body, headers, _url(record))

    def _page(self, body: bytes, headers: dict[str, str], url: str) -> tuple[bytes, str | None]:
        page = self._pages.read(body, headers, url)
        return page.text.encode("utf-8", "replace"), page.reason


_CARRIERS = ("response", "resource", "conversion")


@dataclass(frozen=True, slots=True)
class _Start:
    """Continue after the record at `place` of `file`."""

    file: str
    place: Place


class _Local:
    """A file. Raises SourceError for whatever the system says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise SourceError(f"{str(path)!r} is not a regular file; an archive is read from a file or a web server.")
        try:
            self._file = cast(BinaryIO, path.open("rb"))
        except OSError as error:
            raise self._failed(error) from None

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise self._failed(error) from None

    def seek(self, offset: int, /) -> None:
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(f"{str(self._path)!r} cannot be read: {error.strerror or error}.")


def _check_url(url: str) -> int:
    """The port that is named or meant. Raises SourceError when there cannot be such a place."""
    try:
        parts = urlsplit(url)
        port, host = parts.port or (443 if parts.scheme == "https" else 80), parts.hostname
    except ValueError as error:
        raise SourceError(f"{url!r} is not a URL: {error}.") from None
    if not host:
        raise SourceError(f"{url!r} names no host. Write it as https://host/path.")
    return port


def _is_wanted(name: str) -> bool:
    """Whether a file found in a directory is an archive; folders end with a slash."""
    return not name.startswith(".") and (name.endswith("/") or ARCHIVE_NAME.search(name) is not None)


def _url(record: Record) -> str:
    url = record.fields.get("warc-target-uri", "").strip("<>")  # WARC 1.0 was read as if the brackets were part of it
    return url if len(url) <= 4000 else ""


def _http(block: bytes, max_bytes: int) -> tuple[bytes, dict[str, str], str | None]:
    """Body and headers (lower-case names) of an answer, decoded; or why it is left out.

    Crawlers have stored bodies already decoded under headers that say otherwise, so what cannot be decoded is taken
    as it is where it may be text.
    """
    for decode in ("all", "content", "none"):
        record = WarcRecord()
        record.init_headers(WarcRecordType.response)
        record.is_http = True
        record.set_bytes_content(block)
        try:
            record.parse_http(auto_decode=decode, strict_mode=False)
            status = record.http_headers.status_code
            if status is None:
                return b"", {}, "not_an_http_answer"
            if not 200 <= status < 300:
                return b"", {}, "http_status"
            headers = {name.lower(): value for name, value in record.http_headers.items()}
            body = record.reader.read(max_bytes + 1)
        except (OSError, ValueError):
            continue
        if len(body) > max_bytes:
            return b"", {}, "payload_too_long"
        if decode != "none" or b"\0" not in body[:4096]:
            return body, headers, None
    return b"", {}, "bad_encoding"


def _parse(cursor: Cursor) -> _Start:
    if cursor.source == "warc":
        match dict(cursor.at):
            case {"file": str(file), "member": int(member), "skip": int(skip)} if member >= 0 and skip >= 0:
                return _Start(file, Place(member, skip))
    raise SourceError(
        f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to 'warc': "
        "this run was reading something else."
    )
