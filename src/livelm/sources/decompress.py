"""Open a file for reading, decompressing by what its first bytes say, never by its name, and always streaming."""

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from livelm.errors import SourceError

BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What reading compressed data raises when it is cut short or damaged."""

_GZIP = b"\x1f\x8b\x08"
_BZIP2 = b"BZh"
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")  # a first block, or the end of an empty file
_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_INPUT = 1 << 10
"""Compressed bytes fed at once: a zstd block may turn 4 bytes into 128 KiB, so this bounds the output by 32 MiB."""


class ByteStream(Protocol):
    """What `open_stream` returns."""

    def read1(self, size: int, /) -> bytes:
        """At most `size` bytes, as soon as there are some; empty at the end. Raises one of `BROKEN`."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_stream(path: Path, offset: int) -> ByteStream:
    """Open `path`, decompressed if it is .gz, .bz2, .xz or .zst by content, at `offset` uncompressed bytes.

    Raises SourceError when it is missing, unreadable, not a regular file, damaged before or shorter than `offset`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
    try:
        return _positioned(file, path, offset)
    except BaseException:
        file.close()
        raise


def _positioned(file: BinaryIO, path: Path, offset: int) -> ByteStream:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{str(path)!r} is not a regular file. Pipe it in instead, with `-` as the source.")
    head = file.read(16)
    file.seek(0)
    stream = _decompressed(file, head)
    if stream is None:
        if status.st_size < offset:
            raise _shorter(path, status.st_size, offset)
        file.seek(offset)
        return cast(ByteStream, file)
    position = 0
    while position < offset:  # compressed data has no other way to a place in the middle
        try:
            skipped = stream.read1(min(1 << 20, offset - position))
        except BROKEN as error:
            raise SourceError(f"{str(path)!r} is damaged after {position} uncompressed bytes: {error}.") from None
        if not skipped:
            raise _shorter(path, position, offset)
        position += len(skipped)
    return stream


def _decompressed(file: BinaryIO, head: bytes) -> ByteStream | None:
    if head.startswith(_GZIP):
        return cast(ByteStream, _Owning(file, gzip.GzipFile(fileobj=file, mode="rb")))
    if head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS:
        return cast(ByteStream, _Owning(file, bz2.BZ2File(file)))
    if head.startswith(_XZ):
        return cast(ByteStream, _Owning(file, lzma.LZMAFile(file)))
    skippable = head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F  # how pzstd begins its files
    if head.startswith(_ZSTD) or skippable:
        return _Zstd(file)
    return None


class _Owning:
    """A decompressor that closes the file under it too, which the standard library's leave open."""

    def __init__(self, file: BinaryIO, inner: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile) -> None:
        self._file, self._inner = file, inner

    def read1(self, size: int, /) -> bytes:
        return self._inner.read1(size)

    def close(self) -> None:
        self._inner.close()
        self._file.close()


class _Zstd:
    """Frames of zstd, one after another. zstandard's own reader takes a file that was cut short for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = io.BytesIO()

    def read1(self, size: int, /) -> bytes:
        while not (piece := self._output.read(size)):
            if not self._input:
                self._input = self._file.read(_ZSTD_INPUT)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._output = io.BytesIO(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        return piece

    def close(self) -> None:
        self._file.close()


def _shorter(path: Path, size: int, offset: int) -> SourceError:
    return SourceError(
        f"{str(path)!r} has {size} bytes, but reading stopped at byte {offset}: it was changed in between. "
        "Restore it, or start a new run."
    )
