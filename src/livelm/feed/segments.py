"""The spool's files: checksummed records one after another, and what to do with a damaged end.

    <position>.spool    named by the position of its first byte in the whole spool, 20 digits
    record              mark (4) | length of payload (4) | crc32 of payload (4) | crc32 of the 12 bytes before (4)
                        | payload
    payload             length of header (4) | header (JSON) | text (raw bytes)

Numbers are little-endian. The first record of a segment has kind `segment`; then come `text` and at most one `end`.
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from livelm.errors import SpoolError

FRAME = struct.Struct("<4sIII")
MARK = b"lmSp"
SUFFIX = ".spool"
_PREFIX = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SpoolRecord:
    """A whole record and its size on disk."""

    header: dict[str, Any]
    text: bytes
    n_bytes: int


@dataclass(slots=True)
class Segment:
    """One file of the spool."""

    path: Path
    start: int
    stop: int
    """Position after its last whole record."""


def pack(header: dict[str, Any], text: bytes) -> bytes:
    """The bytes of one record."""
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    payload = b"".join((_LENGTH.pack(len(head)), head, text))
    prefix = _PREFIX.pack(MARK, len(payload), zlib.crc32(payload))
    return b"".join((prefix, _LENGTH.pack(zlib.crc32(prefix)), payload))


def unpack(file: int, offset: int) -> SpoolRecord | None:
    """The record at `offset` of an open segment; None when it is not there whole or its checksum is wrong."""
    frame = os.pread(file, FRAME.size, offset)
    length = _framed(frame)
    if length is None:
        return None
    payload = os.pread(file, length, offset + FRAME.size)
    if len(payload) < length or zlib.crc32(payload) != FRAME.unpack(frame)[2]:
        return None
    begin = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    return SpoolRecord(json.loads(payload[_LENGTH.size : begin]), payload[begin:], FRAME.size + length)


def list_segments(folder: Path) -> list[Segment]:
    """The segments in order. Raises SpoolError when one is missing in the middle, shortened or not a segment."""
    segments = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if not path.stem.isdecimal():
            raise SpoolError(f"{str(path)!r} is not a part of a spool. Move it away.")
        start = int(path.stem)
        segments.append(Segment(path, start, start + path.stat().st_size))
    for before, after in pairwise(segments):
        if before.stop != after.start:
            raise SpoolError(
                f"{str(before.path)!r} ends at position {before.stop}, but the next segment begins at {after.start}: "
                "one was changed or is missing. Restore it from a backup, or start a new run."
            )
    return segments


def scan(path: Path) -> tuple[list[SpoolRecord], int, int]:
    """The first and the last whole record, the bytes that whole records fill, and the size of the file.

    What follows them was being written when the machine or the process stopped. Records are written one after
    another, so only the last can be torn: where a whole record comes after a broken one, the file was damaged later.
    Raises SpoolError naming that place.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, offset = os.fstat(file).st_size, 0
        ends: list[SpoolRecord] = []
        while (record := unpack(file, offset)) is not None:
            ends[1:] = [record]
            offset += record.n_bytes
        if offset < size and (found := _find_record(file, offset + 1, size)) is not None:
            raise damaged(path, offset, f"whole records follow at byte {found}")
        return ends, offset, size
    finally:
        os.close(file)


def damaged(path: Path, offset: int, detail: str) -> SpoolError:
    """The error for a record that is not what was written."""
    return SpoolError(
        f"{str(path)!r} is damaged at byte {offset} ({detail}). Check the disk; restore the file from a backup, or "
        "start a new run."
    )


def _framed(frame: bytes) -> int | None:
    """The length of the payload, when the frame is whole and intact."""
    if len(frame) < FRAME.size:
        return None
    mark, length, _, check = FRAME.unpack(frame)
    return length if mark == MARK and zlib.crc32(frame[: _PREFIX.size]) == check else None


def _find_record(file: int, offset: int, size: int) -> int | None:
    """Where the next whole record begins, if there is one."""
    while offset < size:
        window = os.pread(file, 1 << 20, offset)
        at = window.find(MARK)
        if at < 0:
            offset += max(1, len(window) - len(MARK) + 1)
        elif unpack(file, offset + at) is not None:
            return offset + at
        else:
            offset += at + 1
    return None
