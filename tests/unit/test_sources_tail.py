"""Following a file through everything that is done to logs: not one byte lost, not one doubled."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from livelm.errors import SourceError
from livelm.sources import Tail, TailSettings
from livelm.types import Cursor, Document

Items = Iterator[tuple[Document, Cursor]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def tail(log: Path) -> Iterator[Tail]:
    with closing(Tail(str(log))) as source:
        yield source


def line(n: int) -> bytes:
    return f"line {n} {'x' * (n % 50)}\n".encode()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def take(items: Items, n_bytes: int) -> tuple[dict[str, bytes], Cursor]:
    """Text by document until there are `n_bytes`, and the last cursor."""
    found: dict[str, bytes] = {}
    cursor = Cursor("none")
    stop: dict[str, int] = {}
    while sum(map(len, found.values())) < n_bytes:
        document, cursor = next(items)
        assert document.offset == stop.get(document.id, 0 if stop else document.offset)
        stop[document.id] = document.offset + len(document.text)
        found[document.id] = found.get(document.id, b"") + document.text
    return found, cursor


def test_a_growing_file_is_one_document(log: Path, tail: Tail) -> None:
    append(log, b"a\0")
    items = tail.read(None)
    assert take(items, 2)[0] == {"log@0": b"a\0"}
    append(log, b"half of " + "é".encode()[:1])
    document, _ = next(items)
    assert (document.text, document.offset, document.last) == (b"half of \xc3", 2, False)


def test_a_file_that_is_not_there_yet_is_waited_for(log: Path, tail: Tail) -> None:
    items = tail.read(None)
    append(log, b"here")
    assert take(items, 4)[0] == {"log@0": b"here"}


def test_from_end_leaves_out_what_is_there(log: Path) -> None:
    append(log, b"old")
    with closing(Tail(str(log), TailSettings(from_end=True))) as source:
        items = source.read(None)
        append_soon(log, b"new")
        document, cursor = next(items)
        assert (document.text, document.offset) == (b"new", 0)
    append(log, b"er")
    with closing(Tail(str(log))) as source:
        document, _ = next(source.read(cursor))
        assert (document.text, document.offset) == (b"er", 3)


def append_soon(path: Path, data: bytes) -> None:

    threading.Timer(0.5, append, (path, data)).start()


def test_a_truncated_file_starts_a_new_document(log: Path, tail: Tail, caplog: pytest.LogCaptureFixture) -> None:
    append(log, b"before")
    items = tail.read(None)
    take(items, 6)
    log.write_bytes(b"new")
    (end, _), (first, _) = islice(items, 2)
    assert (end.id, end.text, end.offset, end.last) == ("log@0", b"", 6, True)
    assert (first.id, first.text, first.offset) == ("log@1", b"new", 0)
    assert "truncated after 6 bytes" in caplog.text


def test_a_truncated_file_that_has_grown_past_the_old_place_is_noticed(log: Path, tail: Tail) -> None:
    append(log, b"before")
    items = tail.read(None)
    take(items, 6)
    log.write_bytes(b"after and much longer")
    assert take(items, 21)[0] == {"log@0": b"", "log@1": b"after and much longer"}


def test_a_copied_and_truncated_file_loses_nothing(log: Path, tail: Tail) -> None:
    append(log, b"read, ")
    items = tail.read(None)
    take(items, 6)
    append(log, b"not yet read")
    shutil.copy(log, f"{log}.1")
    log.write_bytes(b"new")
    assert take(items, 15)[0] == {"log@0": b"not yet read", "log@1": b"new"}


def test_an_older_rotated_file_that_begins_alike_is_not_taken_for_a_copy(log: Path, tail: Tail) -> None:
    append(Path(f"{log}.1"), b"header, old text")
    time.sleep(0.05)
    append(log, b"header")
    items = tail.read(None)
    take(items, 6)
    log.write_bytes(b"new")
    assert take(items, 3)[0] == {"log@0": b"", "log@1": b"new"}


def test_a_renamed_file_is_read_to_its_end_first(log: Path, tail: Tail) -> None:
    append(log, b"one ")
    items = tail.read(None)
    take(items, 4)
    old = log.rename(f"{log}.1")
    append(old, b"late ")
    append(log, b"new")
    append(old, b"later")
    assert take(items, 13)[0] == {"log@0": b"late later", "log@1": b"new"}


def test_a_writer_that_flushes_the_old_file_late_loses_nothing(
    log: Path, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, b"one ")
    items = tail.read(None)
    take(items, 4)
    old = log.rename(f"{log}.1")
    append(log, b"new")
    late = [b"late"]

    def write_late(_: float) -> bool:
        if late:
            append(old, late.pop())
        return False

    monkeypatch.setattr(tail._closed, "wait", write_late)  # when the tail finds nothing more in the old file
    assert take(items, 7)[0] == {"log@0": b"late", "log@1": b"new"}


def test_the_old_file_is_followed_while_the_new_one_is_empty(log: Path, tail: Tail) -> None:
    append(log, b"one ")
    items = tail.read(None)
    take(items, 4)
    old = log.rename(f"{log}.1")
    log.touch()
    append_soon(old, b"the writer has not reopened yet")
    document, _ = next(items)
    assert (document.id, document.text) == ("log@0", b"the writer has not reopened yet")


def test_two_rotations_between_two_looks_lose_nothing(log: Path, tail: Tail) -> None:
    append(log, b"first ")
    items = tail.read(None)
    take(items, 6)
    time.sleep(0.05)  # file times are coarser than this test
    for n, text in ((1, b"second "), (2, b"third ")):
        for k in range(n, 0, -1):
            if Path(f"{log}.{k}").exists():
                Path(f"{log}.{k}").rename(f"{log}.{k + 1}")
        log.rename(f"{log}.1")
        append(log, text)
        time.sleep(0.05)
    assert take(items, 13)[0] == {"log@0": b"", "log@1": b"second ", "log@2": b"third "}


def test_a_deleted_and_recreated_file_starts_a_new_document(log: Path, tail: Tail) -> None:
    append(log, b"one")
    items = tail.read(None)
    take(items, 3)
    append(log, b" more")
    log.unlink()
    append(log, b"two")
    assert take(items, 8)[0] == {"log@0": b" more", "log@1": b"two"}


def resumed(log: Path, cursor: Cursor, n_bytes: int) -> dict[str, bytes]:
    with closing(Tail(str(log))) as source:
        return take(source.read(cursor), n_bytes)[0]


@pytest.fixture
def stopped(log: Path) -> Cursor:
    """Stopped after 6 bytes; 4 more came before whatever the test does."""
    append(log, b"read, ")
    with closing(Tail(str(log))) as source:
        cursor = take(source.read(None), 6)[1]
    append(log, b"rest")
    return cursor


def test_resuming_continues_where_it_stopped(log: Path, stopped: Cursor) -> None:
    assert resumed(log, stopped, 4) == {"log@0": b"rest"}


def test_resuming_finds_the_renamed_file(log: Path, stopped: Cursor) -> None:
    log.rename(f"{log}.1")
    append(log, b"new")
    assert resumed(log, stopped, 7) == {"log@0": b"rest", "log@1": b"new"}


def test_resuming_finds_the_copy_of_a_truncated_file(log: Path, stopped: Cursor) -> None:
    shutil.copy(log, f"{log}.1")
    log.write_bytes(b"new and long enough")
    assert resumed(log, stopped, 23) == {"log@0": b"rest", "log@1": b"new and long enough"}


def test_resuming_after_the_file_is_gone_says_so_and_goes_on(
    log: Path, stopped: Cursor, caplog: pytest.LogCaptureFixture
) -> None:
    log.unlink()
    append(log, b"new")
    assert resumed(log, stopped, 3) == {"log@0": b"", "log@1": b"new"}
    assert "is gone; what was added to it is lost" in caplog.text


def test_resuming_between_two_generations_continues_with_the_next(log: Path) -> None:
    append(log, b"one")
    with closing(Tail(str(log))) as source:
        items = source.read(None)
        take(items, 3)
        log.rename(f"{log}.1")
        append(log, b"two")
        end, cursor = next(items)
    assert end.last
    append(log, b" more")
    assert resumed(log, cursor, 8) == {"log@1": b"two more"}


def test_a_writer_that_rotates_all_the_time_is_followed_exactly(log: Path) -> None:
    """Resumed at every piece, too."""
    written = b""
    read = b""
    cursor: Cursor | None = None
    for n in range(12):
        text = b"".join(line(n * 1000 + k) for k in range(500))
        append(log, text)
        written += text
        with closing(Tail(str(log))) as source:
            for document, after in source.read(cursor):
                read, cursor = read + document.text, after
                if len(read) > len(written) - 3000:
                    break
        if n % 3 == 2:
            log.rename(f"{log}.{n}")
            time.sleep(0.02)
    append(log, b"end")
    with closing(Tail(str(log))) as source:
        for document, _ in source.read(cursor):
            read += document.text
            if read.endswith(b"end"):
                break
    assert read == written + b"end"


def test_a_folder_or_a_pipe_cannot_be_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SourceError, match="not a regular file"):
            Tail(str(path))


def test_an_unreadable_file_is_an_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(log, b"x")

    def refuse(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with closing(Tail(str(log))) as source:
        monkeypatch.setattr(os, "pread", refuse)
        with pytest.raises(SourceError, match=r"log' cannot be read at byte 0: Input/output error"):
            next(source.read(None))
