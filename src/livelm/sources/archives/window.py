"""The bytes of an archive, decompressed, knowing at each of them where a reader could enter again.

FastWARC's own iterator gives no usable position in an archive that is one single gzip member, and ends at the first
damage; here a place is exact in every layout, and after damage reading goes on at the next member that opens a record.
"""

import re
import struct
import zlib
from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol

import zstandard

CHUNK_BYTES = 64 << 10
OUTPUT_BYTES = 1 << 20
"""Decompressed at once at most, whatever the compressed data claims to be."""
ZSTD_INPUT_BYTES = 1 << 10
"""Fed at once: a zstd block may turn 4 bytes into 128 KiB, so this bounds the output by 32 MiB."""
DICTIONARY_BYTES = 16 << 20
CANDIDATE_BYTES = 4 << 10
"""How much of what looks like a member is decompressed to see whether it is one."""
RESCAN_BYTES = 4 << 30
"""Damage makes us go back; a file that makes us read more than this again is given up."""
OPENING = re.compile(rb"[\r\n]*(?:WARC/\d|(?:filedesc|https?|dns|ftps?|whois|gopher|mailto):)", re.IGNORECASE)
"""How a record of a WARC or an ARC file opens, enough to tell it from the middle of one."""

OPENING_BYTES = 16
"""More than the longest match of `OPENING` needs, newlines aside."""

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
"""The skippable frame that holds the dictionary (IIPC, "Zstandard compression for WARC files", 1.0)."""


class Raw(Protocol):
    """The stored bytes of an archive, wherever they are. All methods raise SourceError."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty only at the end."""
        ...

    def seek(self, offset: int, /) -> object:
        """Read from this byte on."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A byte of an archive: `skip` decompressed bytes after the member or frame that begins at byte `member`.

    In an archive that is not compressed `skip` is 0.
    """

    member: int = 0
    skip: int = 0


class Archive:
    """A window that moves over the decompressed bytes, and stops before each member that opens a record.

    The stops ("barriers") keep damage within its member: a record that lies about its length cannot swallow the next.
    """

    def __init__(self, raw: Raw, place: Place, damages: Counter[str]) -> None:
        """Enter at `place`; `damages` counts, by reason, what could not be decompressed."""
        self._raw, self._damages, self._n_again = raw, damages, 0
        self._enter(place.member)
        self.skip(place.skip)

    @property
    def place(self) -> Place:
        """Of the next byte; exact once that byte was looked at."""
        if not self._is_packed:
            return Place(self._position)
        while len(self._members) > 1 and self._members[1][0] <= self._position:
            self._members.popleft()
        start, member = self._members[0]
        return Place(member, self._position - start)

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer only at a barrier or the end."""
        while len(self._window) - self._at < size and self._fill():
            pass
        return bytes(self._window[self._at : self._at + size])

    def search(self, pattern: re.Pattern[bytes], size: int) -> bytes | None:
        """What is ahead up to the end of the first match, if that is within `size` bytes and before a barrier."""
        while True:
            found = pattern.search(self._window, self._at, self._at + size)
            if found is not None:
                return bytes(self._window[self._at : found.end()])
            if len(self._window) - self._at >= size or not self._fill():
                return None

    def find(self, pattern: re.Pattern[bytes], reach: int) -> bool:
        """Move to the first match (of at most `reach` bytes), or to the barrier when there is none."""
        while True:
            found = pattern.search(self._window, self._at)
            if found is not None:
                self._move(found.start() - self._at)
                return True
            self._move(max(0, len(self._window) - self._at - reach))
            if not self._fill():
                self._move(len(self._window) - self._at)
                return False

    def take(self, size: int) -> bytes:
        """The next bytes, fewer only at a barrier or the end, and move behind them."""
        data = self.peek(size)
        self._move(len(data))
        return data

    def skip(self, size: int) -> int:
        """Move ahead, as far as there is no barrier; how far."""
        left = size
        while left:
            n = min(left, len(self._window) - self._at)
            self._move(n)
            left -= n
            if not n and not self._fill():
                break
        return size - left

    def advance(self) -> bool:
        """Pass the barrier (or what is left before it); False at the end."""
        while self._fill():
            self._move(len(self._window) - self._at)
        self._move(len(self._window) - self._at)
        if self._held is None:
            return False
        member, data = self._held
        self._held = None
        self._append(member, data)
        return True

    def back_to(self, place: Place) -> bool:
        """Go back in an archive that is not compressed (others recover at their next member); False when given up."""
        if self._is_packed or not self._may_go_back(place.member):
            return False
        self._enter(place.member)
        return True

    def _enter(self, offset: int) -> None:
        self._raw.seek(offset)
        self._input = self._raw.read(CHUNK_BYTES)
        self._read_to = offset + len(self._input)
        self._window, self._at = bytearray(), 0
        self._members: deque[tuple[int, int]] = deque()
        self._held: tuple[int, bytes] | None = None
        self._open: _Member | None = None
        self._ended = False
        self._dictionary: zstandard.ZstdCompressionDict | None = None
        self._is_zstd = self._input[:4] == _ZSTD or _is_skippable(self._input)
        self._is_packed = self._is_zstd or self._input[:3] == _GZIP
        self._position = 0 if self._is_packed else offset
        if self._is_packed:
            if self._is_zstd and offset:
                self._read_dictionary(offset)
            self._fill()
            self.advance()

    def _move(self, n: int) -> None:
        self._at += n
        self._position += n
        if self._at >= OUTPUT_BYTES or self._at == len(self._window):
            del self._window[: self._at]
            self._at = 0

    def _append(self, member: int | None, data: bytes) -> None:
        if member is not None:
            self._members.append((self._position + len(self._window) - self._at, member))
        self._window += data

    def _fill(self) -> bool:
        """Add to the window; False at a barrier or the end."""
        if self._held is not None or self._ended:
            return False
        if not self._is_packed:
            self._ended = not self._input and not self._read()
            self._window += self._input
            self._input = b""
            return not self._ended
        chunk = self._unpack()
        if chunk is None:
            self._ended = True
            return False
        member, data = chunk
        if member is not None and (OPENING.match(data) or not self._members):
            self._held = member, data
            return False
        self._append(member, data)
        return True

    def _unpack(self) -> tuple[int | None, bytes] | None:
        """The next output, with the offset of its member when it is the first of it; None at the end."""
        while True:
            member = None
            if self._open is None and (member := self._open_member()) is None:
                return None
            data = self._inflate(1 if member is None else OPENING_BYTES)
            if data:
                return member, data

    def _inflate(self, size: int) -> bytes:
        """Output of the open member: at least `size` bytes, unless it ends or breaks off."""
        data = b""
        while self._open is not None and len(data) < size:
            try:
                output, self._input, ended = self._open.feed(self._input)
            except (zlib.error, zstandard.ZstdError):
                self._resume_after(self._start, "damaged_compression")
                break
            data += output
            if ended:
                self._open = None
            elif not output and not self._input and not self._read():
                self._resume_after(self._start, "compression_cut_short")
        return data

    def _open_member(self) -> int | None:
        """Begin the next member; its offset. None at the end."""
        while True:
            while len(self._input) < 8 and self._read():
                pass
            self._input = self._input.lstrip(b"\0")  # padding to a block of a tape or a disk
            if len(self._input) < 8 and self._read():
                continue
            self._start = self._read_to - len(self._input)
            if not self._input:
                return None
            if self._is_zstd and _is_skippable(self._input):
                self._skip_frame()
            elif self._input.startswith(_ZSTD if self._is_zstd else _GZIP):
                self._open = self._member()
                return self._start
            elif not self._resume_after(self._start, "garbage_between_members"):
                return None

    def _member(self) -> "_Member":
        return _ZstdFrame(self._dictionary) if self._is_zstd else _GzipMember()

    def _read(self) -> bool:
        if self._n_again > RESCAN_BYTES:
            return False
        data = self._raw.read(CHUNK_BYTES)
        self._read_to += len(data)
        self._input += data
        return bool(data)

    def _may_go_back(self, offset: int) -> bool:
        """Count what must be read again from there; False when that is too much."""
        self._n_again += self._read_to - offset
        if self._n_again > RESCAN_BYTES:
            self._damages["too_much_damage"] += 1
        return self._n_again <= RESCAN_BYTES

    def _resume_after(self, start: int, reason: str) -> bool:
        """Count the damage, and find the next member after byte `start` that opens a record; False at the end."""
        self._damages[reason] += 1
        self._open, self._input = None, b""
        if not self._may_go_back(start):
            return False
        self._raw.seek(start + 1)
        self._read_to = start + 1
        magic = _ZSTD if self._is_zstd else _GZIP
        more = True
        while more:
            while more and len(self._input) < CHUNK_BYTES:
                more = self._read()
            at = self._input.find(magic)
            while at >= 0 and (not more or at <= len(self._input) - CANDIDATE_BYTES):
                if self._opens_record(self._input[at : at + CANDIDATE_BYTES]):
                    self._input = self._input[at:]
                    return True
                at = self._input.find(magic, at + 1)
            keep = at if at >= 0 else max(0, len(self._input) - len(magic))
            self._input = self._input[keep:]
        self._input = b""
        return False

    def _opens_record(self, data: bytes) -> bool:
        try:
            return OPENING.match(self._member().feed(data)[0]) is not None
        except (zlib.error, zstandard.ZstdError):
            return False

    def _skip_frame(self) -> None:
        """Leave a skippable frame of zstd out, but for the dictionary of the whole file."""
        size = struct.unpack("<I", self._input[4:8])[0]
        is_dictionary = self._input.startswith(_ZSTD_DICTIONARY) and size <= DICTIONARY_BYTES
        self._input = self._input[8:]
        content = b""
        while size and (self._input or self._read()):
            part, self._input = self._input[:size], self._input[size:]
            size -= len(part)
            content += part if is_dictionary else b""
        if is_dictionary:
            try:
                if content.startswith(_ZSTD):
                    content = zstandard.ZstdDecompressor().stream_reader(content).read(DICTIONARY_BYTES)
                self._dictionary = zstandard.ZstdCompressionDict(content)
            except zstandard.ZstdError:
                self._damages["damaged_dictionary"] += 1

    def _read_dictionary(self, offset: int) -> None:
        """Entering in the middle of the file: the dictionary is at its beginning."""
        data, read_to = self._input, self._read_to
        self._raw.seek(0)
        self._input, self._read_to = self._raw.read(8), 8
        if self._input.startswith(_ZSTD_DICTIONARY):
            self._skip_frame()
        self._input, self._read_to = data, read_to
        self._raw.seek(read_to)


class _Member(Protocol):
    def feed(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Some output, the input that is left, and whether the member ended before it."""
        ...


class _GzipMember:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> tuple[bytes, bytes, bool]:
        output = self._inner.decompress(data, OUTPUT_BYTES)
        if self._inner.eof:
            return output, self._inner.unused_data, True
        return output, self._inner.unconsumed_tail, False


class _ZstdFrame:
    def __init__(self, dictionary: zstandard.ZstdCompressionDict | None) -> None:
        self._inner = zstandard.ZstdDecompressor(dict_data=dictionary).decompressobj()

    def feed(self, data: bytes) -> tuple[bytes, bytes, bool]:
        output = self._inner.decompress(data[:ZSTD_INPUT_BYTES])
        if self._inner.eof:
            return output, self._inner.unused_data + data[ZSTD_INPUT_BYTES:], True
        return output, data[ZSTD_INPUT_BYTES:], False


def _is_skippable(data: bytes) -> bool:
    return data[1:4] == b"\x2a\x4d\x18" and 0x50 <= data[0] <= 0x5F
