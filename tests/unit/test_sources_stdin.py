"""Standard input as a source."""

import os
import threading
from collections.abc import Iterator

import pytest

from livelm.errors import SourceError
from livelm.sources import Stdin


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)


def test_what_arrives_is_one_document_that_ends_with_the_input(pipe: tuple[int, int]) -> None:
    data = b"\0\xff" + "é".encode()[:1] + os.urandom(300_000)

    def feed() -> None:
        for start in range(0, len(data), 7001):
            os.write(pipe[1], data[start : start + 7001])
        os.close(pipe[1])

    threading.Thread(target=feed).start()
    pieces = [document for document, _ in Stdin(pipe[0]).read(None)]
    assert b"".join(d.text for d in pieces) == data
    assert {d.id for d in pieces} == {"stdin"}
    assert max(len(d.text) for d in pieces) <= 64 << 10
    assert [d.last for d in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_resumed_input_continues_the_document(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"first")
    documents = Stdin(pipe[0]).read(None)
    _, cursor = next(documents)
    os.write(pipe[1], b"second")
    os.close(pipe[1])
    [(second, _), (end, done)] = list(Stdin(pipe[0]).read(cursor))
    assert (second.text, second.offset, end.last) == (b"second", 5, True)
    assert list(Stdin(pipe[0]).read(done)) == []


def test_an_input_in_non_blocking_mode_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    timer = threading.Timer(0.3, lambda: (os.write(pipe[1], b"late"), os.close(pipe[1])))
    timer.start()
    assert b"".join(d.text for d, _ in Stdin(pipe[0]).read(None)) == b"late"


def test_an_input_without_a_byte_is_an_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    with pytest.raises(SourceError, match="empty stream: standard input"):
        list(Stdin(pipe[0]).read(None))
