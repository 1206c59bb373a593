"""Bodies come out of every encoding as they went in, in whatever pieces; a bomb is stopped while it unfolds."""

import contextlib
import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from livelm.sources.web.decode import MAX_PARTS, RATIO_FLOOR_BYTES, BodyDecoder, Bounds, DecodeError

BOUNDS = Bounds(max_bytes=10 << 20, max_ratio=100)
TEXT = b"".join(b"line %d of %s\n" % (n, os.urandom(8).hex().encode()) for n in range(20_000))


def bare_deflate(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compress.compress(data) + compress.flush()


FORMS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("", bytes),
    ("identity", bytes),
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("gzip, identity", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("br", lambda data: brotli.compress(data, quality=3)),
    ("zstd", zstandard.compress),
]
PACKED = [FORMS[n] for n in (2, 6, 7, 8, 9)]


def decode(name: str, data: bytes, step: int = 1 << 16, bounds: Bounds = BOUNDS) -> bytes:
    decoder = BodyDecoder(name, bounds)
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
    return decoder.finish()


@pytest.mark.parametrize(("name", "compress"), FORMS)
@pytest.mark.parametrize("step", [7, 4096, 1 << 30])
def test_what_was_encoded_comes_out_whatever_the_pieces(
    name: str, compress: Callable[[bytes], bytes], step: int
) -> None:
    assert decode(name, compress(TEXT), step) == TEXT


@pytest.mark.parametrize(("name", "compress"), FORMS)
@pytest.mark.parametrize("text", [b"", b"x"])
def test_the_smallest_bodies_come_out_byte_by_byte(name: str, compress: Callable[[bytes], bytes], text: bytes) -> None:
    assert decode(name, compress(text), step=1) == text


@pytest.mark.parametrize(("name", "compress"), FORMS)
def test_an_empty_body_is_empty_in_every_encoding(name: str, compress: Callable[[bytes], bytes]) -> None:
    assert decode(name, b"") == b""


@pytest.mark.parametrize(("name", "compress"), PACKED)
def test_a_body_that_stops_in_the_middle_is_not_taken_for_a_whole_one(
    name: str, compress: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(DecodeError, match="stops in the middle") as raised:
        decode(name, compress(TEXT)[:-20])
    assert raised.value.reason == "bad_encoding"


@pytest.mark.parametrize(("name", "compress"), PACKED)
def test_text_that_only_says_it_is_encoded_is_refused(name: str, compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DecodeError) as raised:
        decode(name, b"<!doctype html><p>plain text, whatever the header says</p>" * 20)
    assert raised.value.reason == "bad_encoding"


@pytest.mark.parametrize(("name", "compress"), PACKED)
def test_no_damage_anywhere_raises_anything_but_decode_error(name: str, compress: Callable[[bytes], bytes]) -> None:
    data = compress(TEXT[:3000])
    for place in range(0, len(data), 7):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        with contextlib.suppress(DecodeError):
            decode(name, bytes(broken), step=100)


@pytest.mark.parametrize("name", ["gzip, gzip", "br, gzip", "snappy", "compress", "gzip;q=1", "\x00"])
def test_several_layers_and_unknown_encodings_are_refused_before_a_byte_is_read(name: str) -> None:
    with pytest.raises(DecodeError) as raised:
        BodyDecoder(name, BOUNDS)
    assert raised.value.reason == "bad_encoding"


@pytest.mark.parametrize(("name", "compress"), PACKED)
def test_a_bomb_is_stopped_by_its_ratio_while_it_unfolds(name: str, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(64 << 20))
    decoder = BodyDecoder(name, BOUNDS)
    tracemalloc.start()
    with pytest.raises(DecodeError) as raised:
        decoder.feed(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raised.value.reason == "bomb"
    assert len(decoder.body) <= max(RATIO_FLOOR_BYTES, BOUNDS.max_ratio * len(bomb))
    assert peak < 24 << 20  # of 64 MiB; what zstd needs for one step and the body's own growth included


@pytest.mark.parametrize(("name", "compress"), FORMS)
def test_a_long_body_is_cut_at_the_size_cap_exactly(name: str, compress: Callable[[bytes], bytes]) -> None:
    decoder = BodyDecoder(name, Bounds(max_bytes=100_001, max_ratio=1e9))
    with pytest.raises(DecodeError) as raised:
        decoder.feed(compress(TEXT))
    assert raised.value.reason == "too_large"
    assert bytes(decoder.body) == TEXT[:100_001]


def test_a_small_page_may_be_as_monotonous_as_it_likes() -> None:
    text = b"a" * RATIO_FLOOR_BYTES
    assert decode("gzip", gzip.compress(text)) == text


def test_gzip_members_in_a_row_are_one_body_and_what_follows_them_is_left_out() -> None:
    data = gzip.compress(b"one ") + gzip.compress(b"two ") + gzip.compress(b"three") + b"\0\0padding"
    for step in (1, 5, 1000):
        assert decode("gzip", data, step) == b"one two three"


def test_zstd_frames_in_a_row_are_one_body() -> None:
    assert decode("zstd", zstandard.compress(b"one ") + zstandard.compress(b"two"), step=3) == b"one two"


@pytest.mark.parametrize(("name", "part"), [("gzip", gzip.compress(b"", mtime=0)), ("zstd", zstandard.compress(b""))])
def test_thousands_of_empty_parts_are_a_bomb_too(name: str, part: bytes) -> None:
    assert decode(name, part * MAX_PARTS) == b""
    with pytest.raises(DecodeError) as raised:
        decode(name, part * (MAX_PARTS + 1))
    assert raised.value.reason == "bomb"


def test_zstd_that_asks_for_a_window_larger_than_http_allows_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DecodeError) as raised:
        decode("zstd", data.compress(os.urandom(1000)) + data.flush())
    assert raised.value.reason == "bad_encoding"
