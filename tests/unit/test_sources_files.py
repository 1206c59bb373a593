"""Files as a source: what is found, how it is decompressed, and what is said about broken ones."""

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from livelm.errors import ConfigError, SourceError
from livelm.sources import Files, FilesSettings, Stdin, Tail, open_source, open_sources
from livelm.sources import files as files_module
from livelm.sources.demo import Demo
from livelm.types import Cursor, Document, Source

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def documents(source: Source, cursor: Cursor | None = None) -> list[Document]:
    return [document for document, _ in source.read(cursor)]


def drain(source: Source, got: list[Document]) -> None:
    """Read into `got`, which keeps what came before an error."""
    for document, _ in source.read(None):
        got.append(document)


def text_of(source: Source, cursor: Cursor | None = None) -> bytes:
    return b"".join(document.text for document in documents(source, cursor))


def test_a_directory_is_read_recursively_in_sorted_order_without_hidden_and_empty_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c", ".hidden", ".git/config", "empty"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else name)
    source = Files([str(tmp_path)])
    assert [(d.id, d.text) for d in documents(source)] == [(n, n.encode()) for n in ("a/b/c", "a/z.txt", "b.txt")]
    assert source.skipped == {"left out by name": 2}


def test_ids_are_relative_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/a.txt", "in/b.txt", "c.txt"):
        (tmp_path / name).write_text("x")

    def ids(*roots: str) -> list[str]:
        return [d.id for d in documents(open_sources([str(tmp_path / root) for root in roots]))]

    assert ids("in/a.txt") == ["a.txt"]
    assert ids("in") == ["a.txt", "b.txt"]
    assert ids("*/*.txt") == ["in/a.txt", "in/b.txt"]
    assert ids("**/a.*") == ["in/a.txt"]
    assert ids("in/b.txt", "c.txt", "in") == ["in/b.txt", "c.txt", "in/a.txt"]


@pytest.mark.parametrize("size", [1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 200_000])
def test_pieces_are_at_most_64_kib_and_only_the_final_one_is_last(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    pieces = documents(Files([str(tmp_path / "f")]))
    assert b"".join(d.text for d in pieces) == data
    assert max(len(d.text) for d in pieces) <= 64 << 10
    assert [d.last for d in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("parts", [1, 3])
def test_compressed_files_are_recognised_by_content_and_resumed(tmp_path: Path, kind: str, parts: int) -> None:
    data = [os.urandom(100_000) + b"\0" * 100_000 for _ in range(parts)]
    (tmp_path / "no-suffix").write_bytes(b"".join(map(COMPRESS[kind], data)))
    whole = list(Files([str(tmp_path)]).read(None))
    assert b"".join(d.text for d, _ in whole) == b"".join(data)
    for k, (_, cursor) in enumerate(whole):
        assert documents(Files([str(tmp_path)]), cursor) == [d for d, _ in whole[k + 1 :]]


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_damaged_compressed_files_give_what_is_readable_then_an_error_with_the_place(
    tmp_path: Path, kind: str, harm: str
) -> None:
    data = os.urandom(1_000_000)  # more than a block of bzip2
    packed = bytearray(COMPRESS[kind](data))
    if harm == "cut":
        del packed[-len(packed) // 4 :]
    else:
        packed[-40:-20] = bytes(b ^ 0xFF for b in packed[-40:-20])
    (tmp_path / "f").write_bytes(packed)
    got: list[Document] = []
    with pytest.raises(SourceError, match=r"f' is damaged after \d+ uncompressed bytes") as error:
        drain(Files([str(tmp_path)]), got)
    data_got = b"".join(d.text for d in got)
    assert not any(d.last for d in got)
    assert f"after {len(data_got)} uncompressed" in str(error.value)
    if harm == "cut":  # a checksum at the end comes after the flipped bytes
        assert len(data_got) > 500_000 or kind == "bz2"
        assert data.startswith(data_got)


def test_a_highly_compressed_file_is_never_held_in_memory(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "bomb").open("wb") as file:
        for _ in range(200):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    tracemalloc.start()
    try:
        n_bytes = sum(len(d.text) for d, _ in Files([str(tmp_path)]).read(None))
        assert n_bytes == 200 << 20
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


def test_a_text_that_begins_like_bzip2_is_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"BZhou is a name")
    assert text_of(Files([str(tmp_path)])) == b"BZhou is a name"


def test_bytes_pass_unchanged(tmp_path: Path) -> None:
    data = b"\0\0NUL\0\xff\xfe\r\n\r" + "é漢".encode()[:-1]
    (tmp_path / "f").write_bytes(data)
    assert text_of(Files([str(tmp_path)])) == data


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_documents_and_broken_ones_are_counted(tmp_path: Path, suffix: str) -> None:
    lines = [
        b'{"text": "one", "url": "https://example.org/"}',
        b"",
        b"{broken",
        b'{"other": 1}',
        b'{"text": 5}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'"text"',
        b'{"text": ""}',
        '{"text": "zwölf \\ud800"}'.encode(),
    ]
    packed = b"\n".join(lines)
    (tmp_path / f"d.jsonl{suffix}").write_bytes(gzip.compress(packed) if suffix else packed)
    source = Files([str(tmp_path)])
    whole = list(source.read(None))
    assert [d.id for d, _ in whole] == [f"d.jsonl{suffix}#1", f"d.jsonl{suffix}#10"]
    assert [d.text for d, _ in whole] == [b"one", "zwölf \ud800".encode("utf-8", "surrogatepass")]
    assert whole[0][0].url == "https://example.org/"
    assert source.skipped == {"not JSON": 3, "no text in field 'text'": 3, "empty text": 1}
    assert documents(Files([str(tmp_path)]), whole[0][1]) == [whole[1][0]]


def test_the_text_field_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"body": "here", "text": "not here"}\n')
    assert text_of(Files([str(tmp_path)], FilesSettings(text_field="body"))) == b"here"


def test_a_line_over_the_cap_is_skipped_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "LINE_BYTES", 1 << 20)
    lines = [json.dumps({"text": t}) for t in ("a", "x" * (3 << 20), "b", "y" * (1 << 20))]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    source = Files([str(tmp_path)])
    whole = list(source.read(None))
    assert [(d.text, d.id) for d, _ in whole] == [(b"a", "d.jsonl#1"), (b"b", "d.jsonl#3")]
    assert source.skipped == {"line over 1 MiB": 2}
    assert documents(Files([str(tmp_path)]), whole[0][1]) == [whole[1][0]]


def test_a_long_line_of_plain_text_is_never_held_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "line").open("wb") as file:
        file.truncate(1 << 30)  # sparse: a gigabyte of NULs without a newline
    tracemalloc.start()
    try:
        documents = Files([str(tmp_path)]).read(None)
        for _ in range(500):
            next(documents)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["f", "f.gz"])
def test_a_file_that_became_shorter_than_the_cursor_is_an_error(tmp_path: Path, name: str) -> None:
    def write(data: bytes) -> None:
        (tmp_path / name).write_bytes(gzip.compress(data) if name == "f.gz" else data)

    write(bytes(200_000))
    _, cursor = next(Files([str(tmp_path)]).read(None))
    write(b"short")
    with pytest.raises(SourceError, match=r"has 5 bytes, but reading stopped at byte 65536"):
        documents(Files([str(tmp_path)]), cursor)


def test_a_file_that_is_gone_is_an_error_only_where_reading_stopped_in_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    _, cursor = next(Files([str(tmp_path)]).read(None))
    (tmp_path / "a").unlink()
    with pytest.raises(SourceError, match="'a', which is no longer among the files"):
        documents(Files([str(tmp_path)]), cursor)


def test_a_file_cut_exactly_at_the_cursor_still_ends_its_document(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    _, cursor = next(Files([str(tmp_path)]).read(None))
    (tmp_path / "f").write_bytes(bytes(64 << 10))
    [end] = documents(Files([str(tmp_path)]), cursor)
    assert (end.text, end.offset, end.last) == (b"", 64 << 10, True)


@pytest.mark.parametrize("content", [None, b""])
def test_a_directory_without_a_byte_is_an_empty_stream(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(SourceError, match="empty stream"):
        documents(Files([str(tmp_path)]))


def test_an_empty_stream_says_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("no\nno\n")
    with pytest.raises(SourceError, match="2 x not JSON"):
        documents(Files([str(tmp_path)]))


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("x")

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # a test that runs as root may read everything
    with pytest.raises(SourceError, match=r"f' cannot be read: Permission denied"):
        documents(Files([str(tmp_path)]))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("x")
    source = Files([str(tmp_path)])
    assert text_of(source) == b"x"
    assert source.skipped == {"not a regular file": 1}
    keeper = os.open(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(SourceError, match="not a regular file"):
        documents(Files([str(tmp_path / "pipe")]))
    os.close(keeper)


def test_links_that_make_a_circle_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "f").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert [d.id for d in documents(Files([str(tmp_path)]))] == ["f", "link"]


def test_a_uri_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "f:1").write_text("x")
    (tmp_path / "tail:x").write_text("x")
    assert isinstance(open_source("-"), Stdin)
    assert isinstance(open_source("demo:"), Demo)
    assert isinstance(open_source(f"tail:{tmp_path}/log"), Tail)
    for uri in (f"files:{tmp_path}", f"{tmp_path}/f:1", f"{tmp_path}/tail:x", f"{tmp_path}/f*"):
        assert isinstance(open_source(uri), Files)


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no source 'tial'\. Did you mean 'tail:PATH'"):
        open_source("tial:log")


@pytest.mark.parametrize("uri", ["demo:x", "stdin:x", "tail:", "files:", ""])
def test_a_uri_with_too_much_or_too_little_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_source(uri)


def test_a_missing_path_names_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"no file or directory .*note\.txt.*Did you mean .*notes\.txt"):
        open_source(str(tmp_path / "note.txt"))
    with pytest.raises(SourceError, match="no file matches"):
        open_source(str(tmp_path / "*.md"))


@pytest.mark.parametrize("other", ["-", "demo:", "tail:x"])
def test_only_files_can_be_combined(tmp_path: Path, other: str) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ConfigError, match="cannot be combined"):
        open_sources([str(tmp_path / "f"), other])
    with pytest.raises(ConfigError, match="no source is given"):
        open_sources([])
