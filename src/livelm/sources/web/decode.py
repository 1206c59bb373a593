"""Take a body out of its Content-Encoding piece by piece, and stop a bomb before it has unfolded."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import brotli
import zstandard

from livelm.errors import SourceError

ACCEPT_ENCODING = "gzip, deflate, br, zstd"
"""What `BodyDecoder` can take off, as a request says it."""

PIECE_BYTES = 64 << 10
"""Most bytes that zlib is let to unfold between two looks at the caps."""
RATIO_FLOOR_BYTES = 1 << 20
"""Below this many bytes no ratio is held against a body: a small page may well be one line repeated."""
MAX_PARTS = 64
"""Gzip members or zstd frames in one body; an honest server sends one."""

_ZSTD_INPUT_BYTES = 128
"""Fed to zstd at once: a block may turn 4 bytes into 128 KiB, so this bounds what one step unfolds by 4 MiB."""
_ZSTD_WINDOW_BYTES = 8 << 20
"""The largest window that zstd may ask for in HTTP (RFC 9659, section 3)."""


class DecodeError(SourceError):
    """A body that cannot or must not be unfolded; `reason` is "bad_encoding", "too_large" or "bomb"."""

    def __init__(self, reason: str, detail: str) -> None:
        """`detail` is the sentence for people."""
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a body may unfold."""

    max_bytes: int
    """Most decoded bytes."""
    max_ratio: float
    """Most decoded bytes for each encoded one, once there are more than `RATIO_FLOOR_BYTES`."""


class _Engine(Protocol):
    done: bool
    """Whether the encoded data came to its own end."""

    def unfold(self, data: bytes) -> Iterator[bytes]:
        """Decode lazily: whoever stops asking stops the work."""
        ...


class BodyDecoder:
    """Decodes one body. `body` holds what came out so far; it never exceeds the bounds, even after an error."""

    def __init__(self, content_encoding: str, bounds: Bounds) -> None:
        """`content_encoding` is the header as sent ("" when absent). Raises DecodeError for what we never asked for.

        More than one layer is refused: nobody honest wraps twice, and bombs do.
        """
        names = [name for part in content_encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
        if len(names) > 1:
            raise DecodeError("bad_encoding", f"Content-Encoding {content_encoding[:80]!r} has several layers.")
        name = names[0] if names else "identity"
        if name not in _ENGINES:
            raise DecodeError("bad_encoding", f"Content-Encoding {content_encoding[:80]!r} is not one we asked for.")
        self._name, self._bounds = name, bounds
        self._engine: _Engine = _ENGINES[name]()
        self._n_encoded = 0
        self.body = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next encoded bytes. Raises DecodeError; then `body` holds what was decoded within the bounds."""
        self._n_encoded += len(data)
        try:
            for piece in self._engine.unfold(data):
                self._take(piece)
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            raise DecodeError(
                "bad_encoding", f"the body is not {self._name}, or damaged, after {len(self.body)} bytes: {error}."
            ) from None

    def finish(self) -> bytes:
        """The whole body. Raises DecodeError when the encoded data stopped before its end."""
        if not self._engine.done and self._n_encoded:  # nothing at all is an empty body in any encoding
            raise DecodeError("bad_encoding", f"the {self._name} data stops in the middle, at byte {self._n_encoded}.")
        return bytes(self.body)

    def _take(self, piece: bytes) -> None:
        n_decoded = len(self.body) + len(piece)
        if n_decoded > max(RATIO_FLOOR_BYTES, self._bounds.max_ratio * self._n_encoded):
            raise DecodeError("bomb", f"{self._n_encoded} bytes of {self._name} unfold to more than {n_decoded}.")
        if n_decoded > self._bounds.max_bytes:
            self.body += piece[: self._bounds.max_bytes - len(self.body)]
            raise DecodeError("too_large", f"the decoded body has more than {self._bounds.max_bytes} bytes.")
        self.body += piece


class _Identity:
    done = True

    def unfold(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Zlib:
    """Zlib or bare deflate: servers send either under the name of deflate, and browsers take both."""

    def __init__(self) -> None:
        self.done = False
        self._head = b""
        self._inflate: zlib._Decompress | None = None

    def unfold(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            self._head += data
            if len(self._head) < 2:
                return
            data = self._head
            # RFC 1950: method 8, and the first two bytes together are a multiple of 31
            wrapped = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        if not self.done:  # bytes after the end are left out, as browsers do
            yield from _inflate(self._inflate, data)
            self.done = self._inflate.eof


class _Gzip:
    """Gzip; several members in a row are one body (RFC 1952), other bytes after a member are left out."""

    def __init__(self) -> None:
        self.done = False
        self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._n_members = 1
        self._over = False

    def unfold(self, data: bytes) -> Iterator[bytes]:
        while data and not self._over:
            if self.done and data[0] != 0x1F:
                self._over = True
                return
            if self.done:
                self._n_members = _count(self._n_members)
                self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            yield from _inflate(self._member, data)
            self.done = self._member.eof
            data = self._member.unused_data


class _Brotli:
    def __init__(self) -> None:
        self.done = False
        self._decompressor = brotli.Decompressor()

    def unfold(self, data: bytes) -> Iterator[bytes]:
        if self.done:
            raise brotli.error("bytes follow the end of the stream")
        more = True
        while more:
            piece = self._decompressor.process(data, output_buffer_limit=PIECE_BYTES)
            yield piece
            data = b""
            self.done = self._decompressor.is_finished()
            # brotli 1.2's `can_accept_more_data` alone says yes too early; a full piece: there may be more inside
            full = len(piece) >= PIECE_BYTES or not self._decompressor.can_accept_more_data()
            more = full and not self.done


class _Zstd:
    """Frames of zstd, one after another."""

    def __init__(self) -> None:
        self.done = False
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame = self._decompressor.decompressobj()
        self._n_frames = 1

    def unfold(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT_BYTES):
            rest = data[start : start + _ZSTD_INPUT_BYTES]
            while rest:
                if self.done:
                    self._n_frames = _count(self._n_frames)
                    self._frame = self._decompressor.decompressobj()
                yield self._frame.decompress(rest)
                self.done = self._frame.eof
                rest = self._frame.unused_data


def _inflate(inflate: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    while True:
        piece = inflate.decompress(data, PIECE_BYTES)
        yield piece
        data = inflate.unconsumed_tail
        if inflate.eof or (not data and len(piece) < PIECE_BYTES):  # a full piece: there may be more inside
            return


def _count(n_parts: int) -> int:
    """One part more. Each costs a fresh decompressor, so a body of thousands of empty ones would cost seconds."""
    if n_parts >= MAX_PARTS:
        raise DecodeError("bomb", f"the body is made of more than {MAX_PARTS} compressed parts.")
    return n_parts + 1


_ENGINES: dict[str, Callable[[], _Engine]] = {
    "identity": _Identity,
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Zlib,
    "br": _Brotli,
    "zstd": _Zstd,
}
