"""The spool: what was stored is replayed exactly, whatever happens to the process, the disk and the reader."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from livelm.errors import SourceError, SpoolError, StorageError
from livelm.feed import spool as spool_module
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.sources import Tail
from livelm.types import Cursor, Document


class Numbers:
    """A source of `n` documents, then an end, an error, or silence."""

    bounded = True
    replayable = False

    def __init__(self, n: int, then: str = "end", size: int = 100) -> None:
        self.n, self.then, self.size = n, then, size
        self.n_read = 0
        self.closed = threading.Event()

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        first = 0 if cursor is None else int(str(cursor.at["next"]))
        for i in range(first, self.n):
            self.n_read += 1
            yield document(i, self.size), Cursor("numbers", {"next": i + 1})
        if self.then == "error":
            raise SourceError("the wire was cut")
        if self.then == "bug":
            raise ZeroDivisionError("oh")
        if self.then == "silence":
            self.closed.wait(60)

    def close(self) -> None:
        self.closed.set()

    def describe(self) -> str:
        return "numbers"


def document(i: int, size: int = 100) -> Document:
    text = f"{i}\0".encode() + b"\xff" * size
    return Document(text=text, id=f"n{i}é", source="numbers", at="2026", url="u", context=((0, 1),))


def expected(n: int, size: int = 100) -> list[Document]:
    return [document(i, size) for i in range(n)]


def drain(source: Spooled, got: list[Document]) -> None:
    """Read into `got`, which keeps what came before an error."""
    for d, _ in source.read(None):
        got.append(d)


def replay(folder: Path, cursor: Cursor | None = None, inner: Numbers | None = None) -> list[Document]:
    with closing(Spooled(inner or Numbers(0), Spool(folder))) as source:
        return [d for d, _ in source.read(cursor)]


def test_what_is_read_is_what_the_inner_source_gave_and_again_from_every_place(tmp_path: Path) -> None:
    with closing(Spooled(Numbers(30), Spool(tmp_path, segment_bytes=1000))) as source:
        whole = list(source.read(None))
        assert [d for d, _ in whole] == expected(30)
        for k, (_, cursor) in enumerate(whole):
            assert list(source.read(cursor)) == whole[k + 1 :]
    assert len(list(tmp_path.iterdir())) > 5
    inner = Numbers(99)
    assert replay(tmp_path, inner=inner) == expected(30)
    assert inner.n_read == 0, "an ended stream is not read again"


def test_a_reopened_spool_continues_the_inner_source(tmp_path: Path) -> None:
    for n in (3, 5, 5, 9):
        with closing(Spooled(Numbers(n, "silence"), Spool(tmp_path, segment_bytes=600))) as source:
            assert [d for d, _ in islice(source.read(None), n)] == expected(n)
    assert replay(tmp_path, inner=Numbers(10)) == expected(10)


def test_closing_is_not_the_end_of_the_stream(tmp_path: Path) -> None:
    class Prompt(Numbers):
        def close(self) -> None:
            super().close()
            time.sleep(0.3)  # its read has ended, and the spool is not closed yet

    with closing(Spooled(Prompt(2, "silence"), Spool(tmp_path))) as source:
        next(source.read(None))
    assert not Spool(tmp_path).ended


@pytest.mark.parametrize(("then", "kind"), [("error", SourceError), ("bug", SpoolError)])
def test_an_error_of_the_inner_source_comes_after_what_it_gave(tmp_path: Path, then: str, kind: type) -> None:
    with closing(Spooled(Numbers(4, then), Spool(tmp_path))) as source:
        for _ in range(2):
            got: list[Document] = []
            with pytest.raises(kind, match=r"the wire was cut|ZeroDivisionError: oh"):
                drain(source, got)
            assert got == expected(4)


def stored(folder: Path, n: int, **sizes: int) -> list[Path]:
    spool = Spool(folder, **sizes)
    for i in range(n):
        spool.append(document(i), Cursor("numbers", {"next": i + 1}))
    spool.close()
    return sorted(folder.iterdir())


def test_a_last_record_torn_at_any_byte_is_cut_off_and_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = stored(tmp_path / "whole", 2)
    short = path.stat().st_size
    [path] = stored(tmp_path / "three", 3)
    for size in range(short + 1, path.stat().st_size):
        shutil.copytree(tmp_path / "three", tmp_path / "torn")
        os.truncate(tmp_path / "torn" / path.name, size)
        caplog.clear()
        spool = Spool(tmp_path / "torn")
        assert f"{size - short} torn bytes" in str(spool.repaired)
        assert "torn bytes" in caplog.text
        assert spool.last == Cursor("numbers", {"next": 2})
        with closing(Spooled(Numbers(5), spool)) as source:
            assert [d for d, _ in source.read(None)] == expected(5)
        shutil.rmtree(tmp_path / "torn")


def test_a_whole_spool_is_not_repaired(tmp_path: Path) -> None:
    stored(tmp_path, 3)
    assert Spool(tmp_path).repaired is None


def test_zeros_after_the_last_record_are_a_torn_end(tmp_path: Path) -> None:
    [path] = stored(tmp_path, 3)
    with path.open("ab") as file:
        file.write(bytes(5000))
    assert replay(tmp_path, inner=Numbers(5)) == expected(5)


@pytest.mark.parametrize("n_left", [0, 1, 50])
def test_a_segment_torn_while_it_was_begun_is_begun_again(tmp_path: Path, n_left: int) -> None:
    paths = stored(tmp_path, 8, segment_bytes=600)
    os.truncate(paths[-1], n_left)
    spool = Spool(tmp_path)
    assert spool.repaired
    with closing(Spooled(Numbers(9), spool)) as source:
        assert [d for d, _ in source.read(None)] == expected(9)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_byte_flipped_anywhere_but_in_the_last_record_is_an_error_with_file_and_offset(tmp_path: Path) -> None:
    [path] = stored(tmp_path / "two", 2)
    last = path.stat().st_size
    [path] = stored(tmp_path / "three", 3)
    for at in range(0, last, 3):
        flip(path, at)
        with pytest.raises(SpoolError, match=rf"{path.name}' is damaged at byte \d+ .*whole records follow"):
            Spool(tmp_path / "three")
        flip(path, at)
    assert replay(tmp_path / "three", inner=Numbers(3)) == expected(3)


def test_a_byte_flipped_in_an_older_segment_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    paths = stored(tmp_path, 12, segment_bytes=1000)
    size = paths[1].stat().st_size
    flip(paths[1], size - 1)
    got: list[Document] = []
    message = rf"{paths[1].name}' is damaged at byte \d+ \(wrong checksum"
    with closing(Spooled(Numbers(12), Spool(tmp_path))) as source, pytest.raises(SpoolError, match=message):
        drain(source, got)
    assert got == expected(len(got))
    assert got


@pytest.mark.parametrize("harm", ["removed", "shortened"])
def test_a_missing_or_shortened_segment_is_an_error(tmp_path: Path, harm: str) -> None:
    paths = stored(tmp_path, 12, segment_bytes=1000)
    if harm == "removed":
        paths[1].unlink()
    else:
        os.truncate(paths[1], paths[1].stat().st_size - 1)
    with pytest.raises(SpoolError, match="ends at position"):
        Spool(tmp_path)


def test_a_cursor_beyond_the_end_says_that_the_end_is_missing(tmp_path: Path) -> None:
    [path] = stored(tmp_path, 3)
    with closing(Spool(tmp_path)) as spool:
        cursor = list(islice(spool.read(None), 3))[-1][1]
    os.truncate(path, path.stat().st_size - 1)
    with closing(Spool(tmp_path)) as spool, pytest.raises(SpoolError, match="its end is missing"):
        spool.read(cursor)


def test_a_newer_spool_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "VERSION", 2)
    stored(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(SpoolError, match="is version 2; upgrade"):
        Spool(tmp_path)


def until(true: Callable[[], bool]) -> None:
    stop = time.monotonic() + 60
    while not true():
        assert time.monotonic() < stop, "it never came"
        time.sleep(0.01)


def test_over_the_cap_the_source_waits_and_nothing_is_dropped(tmp_path: Path) -> None:
    inner = Numbers(200, size=1000)
    spool = Spool(tmp_path, segment_bytes=4096, max_bytes=20_000)
    with closing(Spooled(inner, spool)) as source:
        documents = source.read(None)
        got = [next(documents)]
        until(lambda: spool.n_bytes > 18_000)
        time.sleep(0.3)
        assert inner.n_read < 20
        assert spool.n_bytes <= 20_000
        n_most = 0
        for item in documents:
            got.append(item)
            source.commit(item[1])
            n_most = max(n_most, spool.n_bytes)
        assert [d for d, _ in got] == expected(200, 1000)
        assert n_most <= 20_000
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) == spool.n_bytes
        with pytest.raises(SpoolError, match="no longer kept"):
            list(source.read(got[0][1]))
        with pytest.raises(SpoolError, match="no longer kept"):
            list(source.read(None))
    last = got[-2][1]
    assert replay(tmp_path, last) == expected(200, 1000)[-1:], "after deletions it can be opened again"


def test_a_reader_that_has_everything_is_never_starved_by_the_cap(tmp_path: Path) -> None:
    """Only more text can bring the checkpoint that would release what is stored."""
    with closing(Spooled(Numbers(100, size=1000), Spool(tmp_path, segment_bytes=4096, max_bytes=8192))) as source:
        assert [d for d, _ in source.read(None)] == expected(100, 1000)


def test_the_cap_holds_while_a_reader_is_told_of_more_but_does_not_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: a reader has everything, and then sleeps on."""
    spool = Spool(tmp_path, segment_bytes=4096, max_bytes=8192)
    changed, wait, asleep = spool._changed, spool._changed.wait, threading.Event()

    def sleep_on(timeout: float) -> bool:
        if threading.current_thread().name != "reader":
            return wait(timeout)
        changed.release()
        asleep.set()
        time.sleep(0.6)
        changed.acquire()
        return True

    monkeypatch.setattr(changed, "wait", sleep_on)
    got: list[Document] = []
    with closing(Spooled(Numbers(100, size=1000), spool)) as source:
        reader = threading.Thread(target=lambda: got.extend(d for d, _ in spool.read(None)), name="reader")
        reader.start()
        assert asleep.wait(5)
        next(source.read(None))
        time.sleep(0.3)
        assert spool.n_bytes <= 8192
        source.close()
        reader.join(5)


def test_closing_ends_a_source_that_waits_for_room(tmp_path: Path) -> None:
    inner = Numbers(10_000, size=1000)
    source = Spooled(inner, Spool(tmp_path, segment_bytes=4096, max_bytes=8192))
    next(source.read(None))
    until(lambda: inner.n_read >= 6)
    source.close()
    source.close()
    assert not any(thread.name == "livelm-spool" for thread in threading.enumerate())


def test_a_full_disk_stops_the_reader_after_what_was_stored_and_a_resumed_run_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 3000
    write = os.write

    def full(file: int, data: bytes) -> int:
        nonlocal room
        n = min(room, len(data))
        if not n:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= n
        return write(file, bytes(data[:n]))

    monkeypatch.setattr(os, "write", full)
    got: list[Document] = []
    with closing(Spooled(Numbers(50), Spool(tmp_path))) as source:
        with pytest.raises(StorageError, match="No space left on device"):
            drain(source, got)
        source.sync()  # what was stored can still be made durable
    assert 5 < len(got) < 20
    assert got == expected(len(got))
    monkeypatch.undo()
    spool = Spool(tmp_path)
    assert spool.repaired is None, "the half record was taken back"
    with closing(Spooled(Numbers(50), spool)) as source:
        assert [d for d, _ in source.read(None)] == expected(50)


def test_a_disk_that_does_not_sync_is_never_called_durable_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(document(0), Cursor("numbers", {"next": 1}))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        spool.sync()
    monkeypatch.undo()
    with pytest.raises(StorageError):
        spool.sync()
    spool.close()


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        Spool(tmp_path / "file" / "spool")


def test_a_checkpoint_can_count_on_what_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[str, int] = {}
    fsync = os.fsync

    def note(file: int) -> None:
        path = str(Path(f"/proc/self/fd/{file}").readlink())
        synced[path] = os.fstat(file).st_size
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    spool = Spool(tmp_path, segment_bytes=1000)
    for i in range(20):
        spool.append(document(i), Cursor("numbers", {"next": i + 1}))
    spool.sync()
    assert {str(p): p.stat().st_size for p in tmp_path.iterdir()} == {
        p: synced[p] for p in synced if p != str(tmp_path)
    }
    assert str(tmp_path) in synced, "the folder too, or the files could be nameless"
    spool.close()


KILLED = """
import sys
from pathlib import Path
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.sources import Tail

source = Spooled(Tail(sys.argv[1]), Spool(Path(sys.argv[2]), segment_bytes=200_000))
for document, _ in source.read(None):
    print(document.offset, flush=True)
"""


def test_killing_the_process_that_spools_a_growing_file_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "spool"
    log.write_bytes(written := os.urandom(1000))
    for n in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(log), str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun, and it replays what is there
        for _ in range(40):
            piece = os.urandom(5000)
            written += piece
            with log.open("ab") as file:
                file.write(piece)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if n == 1:
            log.rename(f"{log}.1")
    read = b""
    with closing(Spooled(Tail(str(log)), Spool(folder))) as source:
        for d, _ in source.read(None):
            read += d.text
            if len(read) >= len(written):
                break
    assert read == written
