"""Records of WARC (0.17 to 1.1) and ARC (1 and 2) archives, with their places; damaged ones are counted and passed."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from livelm.sources.archives.window import Archive, Place

HEADER_BYTES = 64 << 10
"""A longer header is damage."""
TYPES = (
    *("warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation"),
    "arc_header",
)
"""What a record can be (WARC 1.1, section 6); the first record of an ARC file counts as `arc_header`."""

_INK = re.compile(rb"[^\0\t\r\n ]")
_VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n", re.IGNORECASE)
_HEADER_END = re.compile(rb"\n(?:\r?\n|(?=WARC/\d+\.\d+\s))")  # the latter: a header that breaks off
_LINE = re.compile(rb"[^\n]*\n")
_FOLD = re.compile(r"\r?\n[ \t]+")
# URL (some have spaces), IP address, date, content type (ARC 2 has five fields more), length
_ARC_LINE = re.compile(
    rb"(?P<url>[a-z][a-z0-9+.\-]*:[^\n]*?) \S+ (?P<date>\d{12,18}|-) (?P<rest>[^\n]*\S[^\n]*)\n", re.I
)
_FILEDESC = re.compile(rb"filedesc:[^\n]*\n", re.IGNORECASE)
_ARC_FIELDS = re.compile(rb"URL IP-address Archive-date[^\n]*\n", re.IGNORECASE)
_NEXT = re.compile(  # bounded, so that no text makes it slow
    rb"(?<=\n)(?:WARC/\d+\.\d+[ \t]*\r?\n|[a-z][a-z0-9+.\-]{,20}:[^\n]{,2000}? \S{1,100} \d{14} \S)", re.IGNORECASE
)
_NEXT_BYTES = 2200
"""The longest match of `_NEXT`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of an archive."""

    type: str
    """In lower case; one of `TYPES`, or whatever the archive says."""
    place: Place
    fields: Mapping[str, str]
    """The header of a WARC record, or that of an ARC record under the same names; names in lower case."""
    n_bytes: int
    """Length of the block as the header has it."""
    block: bytes = b""
    """Empty when nobody wanted it."""


Wanted = Callable[[Record], bool]
"""Decides by everything but the block whether the block is read."""


def read_records(
    archive: Archive, wanted: Wanted, damages: Counter[str], after: Place | None = None
) -> Iterator[Record | None]:
    """Yield every record from where `archive` stands; with `after`, those that follow the one there.

    None first when no record begins at `after`. What is unreadable is counted in `damages`; so is a record that is cut
    short, which is yielded with what there is of it.
    """
    if after is not None:
        found = _next_record(archive, lambda record: False, Counter())
        if found is None or found.place != after:
            yield None
            return
    while archive.peek(1) or archive.advance():
        record = _next_record(archive, wanted, damages)
        if record is not None:
            yield record


def _next_record(archive: Archive, wanted: Wanted, damages: Counter[str]) -> Record | None:
    """The record here, or None after moving to where the next may be."""
    if not archive.find(_INK, 1):  # newlines end a record, and some writers pad
        return None
    place = archive.place
    record = _warc_header(archive, place) if archive.peek(5).upper() == b"WARC/" else _arc_header(archive, place)
    if record is None:
        damages["not_a_record"] += 1
        archive.skip(1)  # not the same one again
        archive.find(_NEXT, _NEXT_BYTES)
        return None
    return _with_block(archive, record, wanted, damages)


def _with_block(archive: Archive, record: Record, wanted: Wanted, damages: Counter[str]) -> Record | None:
    after_header = archive.place
    if wanted(record):
        block = archive.take(record.n_bytes)
        n_read = len(block)
    else:
        block = b""
        n_read = archive.skip(record.n_bytes)
    if n_read < record.n_bytes:
        damages["record_cut_short"] += 1
        # or its length is a lie, with readable records behind it; the newline before the block opens the first of them
        if archive.back_to(Place(after_header.member - 1)) and archive.find(_NEXT, _NEXT_BYTES):
            return None
    return Record(record.type, record.place, record.fields, record.n_bytes, block)


def _warc_header(archive: Archive, place: Place) -> Record | None:
    header = archive.search(_HEADER_END, HEADER_BYTES)
    if header is None or not _VERSION.match(header) or not header.endswith((b"\n\n", b"\n\r\n")):
        return None
    lines = _FOLD.sub(" ", header.decode("utf-8", "replace")).split("\n")[1:]
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    length = fields.get("content-length", "0")
    if not (length.isdecimal() and len(length) < 19):
        return None
    archive.skip(len(header))
    return Record(fields.get("warc-type", "").lower(), place, fields, int(length))


def _arc_header(archive: Archive, place: Place) -> Record | None:
    line = archive.search(_LINE, HEADER_BYTES)
    if line is None:
        return None
    if _FILEDESC.match(line):
        return _arc_opening(archive, place, line)
    found = _ARC_LINE.match(line)
    if found is None:
        return None
    rest = found["rest"].decode("utf-8", "replace").split()
    archive.skip(len(line))
    date = found["date"].decode()[:14]
    fields = {
        "warc-target-uri": found["url"].decode("utf-8", "replace"),
        "content-type": rest[0],
        "warc-date": f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z",
    }
    if len(date) < 14:
        del fields["warc-date"]
    length = rest[-1] if rest[-1].isdecimal() and len(rest[-1]) < 19 else "0"
    return Record("response", place, fields, int(length))


def _arc_opening(archive: Archive, place: Place, line: bytes) -> Record | None:
    """The first record, which describes the file; its length is often wrong, so its end is taken from its content."""
    names = archive.search(_ARC_FIELDS, HEADER_BYTES)
    size = len(line) if names is None else len(names)
    declared = line.split()[-1]
    archive.skip(size)
    if names is not None and declared.isdigit() and len(declared) < 6:
        left = len(line) + int(declared) - size  # what is declared beyond the line of field names, such as XML
        return Record("arc_header", place, {}, max(0, left))
    return Record("arc_header", place, {}, 0)
