"""What every source of SOURCES promises: exact resumption, stable ids, cursors that survive, and an end when closed."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import pytest

from livelm.errors import LivelmError, SourceError
from livelm.feed.spool import Spool, Spooled
from livelm.sources import SOURCES, Demo, Files, Stdin, Tail
from livelm.types import Cursor, Document, Source

N = 7
"""Documents or pieces that the fixtures of endless sources hold."""
Make = Callable[[], Source]


@pytest.fixture(params=sorted(SOURCES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def _files(folder: Path, stack: ExitStack) -> Make:
    text = folder / "text"
    (text / "deep").mkdir(parents=True)
    (text / "a.txt").write_bytes(b"alpha")
    (text / "b.bin").write_bytes(os.urandom(150_000))
    (text / "deep" / "c.jsonl").write_text('{"text": "one"}\nbroken\n{"text": "two"}\n')
    (text / "z.txt").write_bytes("ζ".encode()[:1])
    return lambda: Files([str(text)])


def _stdin(folder: Path, stack: ExitStack) -> Make:
    path = folder / "input"
    path.write_bytes(os.urandom((N - 1) * (64 << 10) + 5))

    def make() -> Source:
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        return Stdin(fd)

    return make


def _tail(folder: Path, stack: ExitStack) -> Make:
    path = folder / "log"
    path.write_bytes(os.urandom((N - 1) * (64 << 10) + 5))
    return lambda: Tail(str(path))


@pytest.fixture
def make(name: str, tmp_path: Path) -> Iterator[Make]:
    """Opens the source over the same text every time."""
    with ExitStack() as stack:
        yield Demo if name == "demo" else {"files": _files, "stdin": _stdin, "tail": _tail}[name](tmp_path, stack)


def replayable(source: Source, folder: Path) -> Source:
    return source if source.replayable else Spooled(source, Spool(folder))


def some(source: Source, cursor: Cursor | None, n: int) -> list[tuple[Document, Cursor]]:
    with closing(source):
        return list(islice(source.read(cursor), n))


def test_resuming_after_any_document_yields_the_same_rest(make: Make, tmp_path: Path) -> None:
    whole = some(replayable(make(), tmp_path / "spool"), None, N)
    assert len(whole) >= 6
    for k in range(len(whole)):
        rest = some(replayable(make(), tmp_path / "spool"), whole[k][1], len(whole) - k - 1)
        assert rest == whole[k + 1 :]


def test_a_fresh_copy_resumed_from_the_sources_own_cursor_yields_the_same_rest(name: str, make: Make) -> None:
    if name == "stdin":
        pytest.skip("standard input gives each byte once: only its spool can be resumed")
    whole = some(make(), None, N)
    for k in range(len(whole)):
        rest = some(make(), whole[k][1], len(whole) - k - 1)
        assert [document for document, _ in rest] == [document for document, _ in whole[k + 1 :]]


def test_a_cursor_survives_json(make: Make, tmp_path: Path) -> None:
    whole = some(replayable(make(), tmp_path / "spool"), None, N)
    for k, (_, cursor) in enumerate(whole[:-1]):
        again = Cursor(cursor.source, json.loads(json.dumps(cursor.at)))
        assert again == cursor
        assert some(replayable(make(), tmp_path / "spool"), again, 1) == [whole[k + 1]]


@pytest.mark.parametrize("at", [{}, {"path": "x"}, {"offset": "1"}])
def test_a_foreign_cursor_is_refused(name: str, make: Make, at: dict) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor(name, at)):
        with pytest.raises(SourceError, match="does not belong"):
            some(make(), cursor, 1)


def test_the_spool_refuses_the_cursor_of_another_spool(make: Make, tmp_path: Path) -> None:
    [(_, cursor)] = some(Spooled(make(), Spool(tmp_path / "one")), None, 1)
    with pytest.raises(SourceError, match="does not belong"):
        some(Spooled(make(), Spool(tmp_path / "two")), cursor, 1)


def test_ids_are_the_same_in_every_read(make: Make) -> None:
    first, second = (some(make(), None, N) for _ in range(2))
    assert [d.id for d, _ in first] == [d.id for d, _ in second]
    assert first[0][0].source in SOURCES


def test_pieces_of_a_document_continue_one_another(make: Make) -> None:
    previous: Document | None = None
    for document, _ in some(make(), None, N):
        if previous is not None and not previous.last:
            assert (document.id, document.offset) == (previous.id, previous.offset + len(previous.text))
        else:
            assert document.offset == 0
        previous = document


def test_a_blocked_read_ends_when_closed(name: str, tmp_path: Path) -> None:
    if name in ("demo", "files"):
        pytest.skip("reading files never blocks")
    read_end, write_end = os.pipe()
    for wrap in (lambda source: source, lambda source: Spooled(source, Spool(tmp_path / "spool"))):
        source = wrap(Stdin(read_end) if name == "stdin" else Tail(str(tmp_path / "never")))
        ended = threading.Event()

        def read(source: Source = source, ended: threading.Event = ended) -> None:
            list(source.read(None))
            ended.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        assert not ended.wait(0.3), "it should wait for text"
        source.close()
        source.close()
        assert ended.wait(30)
    os.close(read_end)
    os.close(write_end)


def test_a_closed_read_delivers_nothing_more(make: Make) -> None:
    source = make()
    documents = source.read(None)
    next(documents)
    source.close()
    assert list(documents) == []


def test_what_cannot_be_reached_is_an_error_and_no_hang(name: str, tmp_path: Path) -> None:
    closed, other = os.pipe()
    os.close(closed)
    os.close(other)
    broken: dict[str, Make] = {
        "files": lambda: Files([str(tmp_path / "missing")]),
        "stdin": lambda: Stdin(closed),
        "tail": lambda: Tail(str(tmp_path / "missing" / "log")),
    }
    if name not in broken:
        pytest.skip("the standard library is where Python is")
    with pytest.raises(LivelmError):
        some(broken[name](), None, 1)


def test_it_says_in_one_line_what_is_read(make: Make) -> None:
    line = make().describe()
    assert "\n" not in line
    assert ("never ends" in line) is not make().bounded
    assert ("cannot be read again" in line) is not make().replayable
