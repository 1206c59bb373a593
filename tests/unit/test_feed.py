"""Documents to batches: nothing lost, nothing twice, and a cursor that continues exactly."""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.config import FeedSettings
from livelm.errors import ContractError
from livelm.feed import FeedCursor, Prefetch, batches
from livelm.feed.assemble import SLICE_BYTES
from livelm.tokenize.bytes import Bytes
from livelm.types import Batch, Cursor, Document


class Listed:
    """A source of given documents."""

    bounded = replayable = True

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self.closed = False

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        first = 0 if cursor is None else int(cursor.at["n"])  # type: ignore[arg-type]
        for n, document in enumerate(self.documents[first:], first + 1):
            yield document, Cursor("listed", {"n": n})

    def close(self) -> None:
        self.closed = True

    def describe(self) -> str:
        return "a list"


def whole(text: bytes, name: str = "a", context: tuple[tuple[int, int], ...] = ()) -> Document:
    return Document(text=text, id=name, source="listed", context=context)


def pieces(text: bytes, name: str, cuts: Sequence[int]) -> list[Document]:
    bounds = [0, *sorted(cuts), len(text)]
    return [
        Document(text=text[a:b], id=name, source="listed", offset=a, last=i == len(bounds) - 2)
        for i, (a, b) in enumerate(pairwise(bounds))
    ]


TOKENIZER = Bytes(Bytes.Config())


def read(
    documents: Sequence[Document], lanes: int = 1, tokens: int = 8, cursor: FeedCursor | None = None
) -> list[Batch]:
    feed_settings = FeedSettings(lanes=lanes, update_tokens=tokens)
    return list(batches(Listed(documents), TOKENIZER, feed_settings, cursor))


def graded_text(found: Sequence[Batch], lane: int) -> bytes:
    ids = torch.cat([b.tokens[lane][b.graded[lane]] for b in found])
    return TOKENIZER.decode(ids.tolist())


def same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("tokens", "starts", "graded", "n_bytes"))
    return tensors and (a.index, a.spans, a.begun) == (b.index, b.spans, b.begun)


texts = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@given(texts, st.integers(1, 9))
def test_one_lane_reads_every_byte_once_and_in_order(parts: list[bytes], n_tokens: int) -> None:
    found = read([whole(t, str(i)) for i, t in enumerate(parts)], tokens=n_tokens)
    assert graded_text(found, 0) == b"".join(parts)
    assert sum(int(b.n_bytes.sum()) for b in found) == len(b"".join(parts))
    assert [b.index for b in found] == list(range(len(found)))
    assert [d.id for b in found for d in b.begun] == [str(i) for i in range(len(parts))]


@given(texts, st.integers(2, 4), st.integers(1, 9))
def test_several_lanes_read_every_document_whole(parts: list[bytes], lanes: int, n_tokens: int) -> None:
    found = read([whole(t, str(i)) for i, t in enumerate(parts)], lanes=lanes, tokens=n_tokens)
    got: dict[int, bytes] = {}
    for batch in found:
        for s in batch.spans:
            ids = batch.tokens[s.lane, s.start : s.stop][batch.graded[s.lane, s.start : s.stop]]
            got[s.ordinal] = got.get(s.ordinal, b"") + TOKENIZER.decode(ids.tolist())
    assert [got[i] for i in range(len(parts))] == parts


@settings(max_examples=60)
@given(texts, st.integers(1, 3), st.integers(1, 9), st.data())
def test_a_saved_cursor_continues_with_the_batch_that_would_have_come(
    parts: list[bytes], lanes: int, n_tokens: int, data: st.DataObject
) -> None:
    documents = []
    for i, text in enumerate(parts):
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=3))
        documents += pieces(text, str(i), cuts)
    expected = read(documents, lanes, n_tokens)
    for k, batch in enumerate(expected):
        saved = FeedCursor.from_json(json.loads(json.dumps(batch.cursor.to_json())))
        rest = read(documents, lanes, n_tokens, saved)
        assert len(rest) == len(expected) - k - 1
        assert all(same(a, b) for a, b in zip(rest, expected[k + 1 :], strict=True))


def test_a_cursor_inside_a_long_document_continues_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.feed.assemble.SLICE_BYTES", 10)
    documents = [whole(bytes(range(95)), "long", context=((12, 18), (50, 91))), whole(b"short", "b")]
    expected = read(documents, tokens=7)
    for k, batch in enumerate(expected):
        rest = read(documents, tokens=7, cursor=batch.cursor)
        assert all(same(a, b) for a, b in zip(rest, expected[k + 1 :], strict=True))


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_how_a_document_was_cut_into_pieces_does_not_show_in_one_lane(text: bytes, cuts: list[int]) -> None:
    cut = pieces(text, "a", [c for c in cuts if c <= len(text)])
    assert all(same(a, b) for a, b in zip(read(cut), read([whole(text)]), strict=True))


def test_context_is_read_but_not_graded_wherever_the_pieces_are_cut() -> None:
    text = b"0123456789abcdef"
    expected = b"01" + b"56789" + b"ef"
    assert graded_text(read([whole(text, context=((2, 5), (10, 14)))], tokens=5), 0) == expected
    halves = [
        Document(text=text[:4], id="a", source="listed", last=False, context=((2, 4),)),
        Document(text=text[4:], id="a", source="listed", offset=4, context=((0, 1), (6, 10))),
    ]
    assert graded_text(read(halves, tokens=5), 0) == expected


def test_the_mark_opens_every_document_and_is_news_except_at_the_very_beginning() -> None:
    batch = read([whole(b"ab", "x"), whole(b"c", "y")])[0]
    assert batch.tokens[0].tolist() == [256, 97, 98, 256, 99]
    assert batch.starts[0].tolist() == [True, False, False, True, False]
    assert batch.graded[0].tolist() == [False, True, True, True, True]
    assert batch.n_bytes[0].tolist() == [0, 1, 1, 0, 1]


def test_a_lane_that_ends_early_is_filled_with_ungraded_marks() -> None:
    last = read([whole(b"a" * 20, "x"), whole(b"b", "y")], lanes=2)[-1]
    assert not last.graded[1].any()
    assert int(last.n_bytes[1].sum()) == 0


def test_a_piece_of_an_unknown_document_is_refused() -> None:
    with pytest.raises(ContractError, match="without having begun"):
        read([Document(text=b"x", id="a", source="listed", offset=5)])


def test_what_waits_is_bounded_however_long_a_document_is() -> None:
    long = whole(b"x" * 1_000_000)
    feed = batches(Listed([long]), TOKENIZER, FeedSettings(lanes=1, update_tokens=32), None)
    waiting = [sum(map(len, next(feed).cursor.lanes[0])) for _ in range(5000)]
    assert max(waiting) <= SLICE_BYTES + 1


def test_what_a_cursor_brought_along_does_not_wait_for_the_source() -> None:
    class Silent(Listed):
        def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
            if cursor is not None:
                raise AssertionError("nothing more was needed")
            yield from super().read(cursor)

    source, feed_settings = Silent([whole(b"x" * 100)]), FeedSettings(update_tokens=10)
    first = next(batches(source, TOKENIZER, feed_settings, None))
    rest = batches(source, TOKENIZER, feed_settings, first.cursor)
    assert [next(rest).index for _ in range(9)] == list(range(1, 10))


def test_prefetch_delivers_the_same_batches_and_the_error_that_ended_them() -> None:
    documents = [whole(b"hello world, hello", str(i)) for i in range(9)]

    def failing() -> Iterator[Batch]:
        yield from read(documents)
        raise ValueError("the wire was cut")

    ahead = Prefetch(failing, n_ahead=3)
    got = [ahead.next(lambda: False) for _ in read(documents)]
    with pytest.raises(ValueError, match="the wire was cut"):
        ahead.next(lambda: False)
    assert all(a is not None and same(a, b) for a, b in zip(got, read(documents), strict=True))
    ahead.close()


def test_a_wait_for_the_next_batch_ends_when_it_should() -> None:
    calls = iter([False, False, True])
    ahead = Prefetch(_never, n_ahead=1)
    assert ahead.next(lambda: next(calls)) is None
    ahead.close()


def _never() -> Iterator[Batch]:
    time.sleep(1.0)
    yield from ()
