"""A mix keeps its shares, its documents whole or cleanly cut, and its place; nobody waits for a silent part."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path

import pytest

from livelm.config import FeedSettings
from livelm.errors import ConfigError, LivelmError, SourceError, StorageError
from livelm.feed.assemble import batches
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.sources.files import Files
from livelm.sources.mix import Mix
from livelm.tokenize.bytes import Bytes, BytesConfig
from livelm.types import Cursor, Document, Json

Read = list[tuple[Document, Cursor]]


class Counting:
    """Documents of given sizes in pieces; `n` None: for ever. Waits for `gate` before the piece number `wait_at`."""

    def __init__(
        self,
        name: str,
        size: int,
        n: int | None,
        *,
        pieces: int = 1,
        replayable: bool = True,
        wait_at: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self.bounded, self.replayable = n is not None, replayable
        self.name, self.size, self.n, self.pieces, self.wait_at, self.error = name, size, n, pieces, wait_at, error
        self.gate, self.closed, self.committed = threading.Event(), threading.Event(), list[Json]()
        self.kept: Path | None = None

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        done = 0 if cursor is None else cursor.at["done"]
        assert isinstance(done, int)
        while not self.closed.is_set() and (self.n is None or done < self.n * self.pieces):
            if done == self.wait_at:
                while not self.gate.wait(0.01):
                    if self.closed.is_set():
                        return
            number, piece = divmod(done, self.pieces)
            text = f"{self.name}{done}".encode().ljust(self.size, b".")
            last = piece == self.pieces - 1
            done += 1
            document = Document(
                text=text, id=f"d{number}", source=self.name, offset=piece * self.size, last=last, context=((0, 1),)
            )
            yield document, Cursor(self.name, {"done": done})
        if self.error is not None:
            raise self.error

    def commit(self, cursor: Cursor) -> None:
        self.committed.append(cursor.at["done"])

    def observe(self) -> dict[str, Json]:
        return {"n_seen": 7, "drops": {"why": 1}}

    def keep(self, folder: Path) -> None:
        self.kept = folder

    def close(self) -> None:
        self.closed.set()

    def describe(self) -> str:
        return self.name


def mix(*parts: Counting, weights: tuple[float, ...] = (), turn_bytes: int = 1 << 20) -> Mix:
    return Mix(parts, weights or [1.0] * len(parts), [part.name for part in parts], turn_bytes)


def some(source: Mix | Spooled, cursor: Cursor | None, n: int) -> Read:
    with closing(source):
        return list(islice(source.read(cursor), n))


def n_bytes(found: Read, source: str) -> int:
    return sum(len(document.text) for document, _ in found if document.source == source)


def check_pieces(found: Read) -> None:
    """What a feed relies on."""
    previous: Document | None = None
    for document, _ in found:
        if previous is not None and not previous.last:
            assert (document.id, document.source) == (previous.id, previous.source)
            assert document.offset == previous.offset + len(previous.text)
        else:
            assert document.offset == 0
        previous = document


@pytest.mark.parametrize("sizes", [(10, 10), (10, 1000), (1000, 10), (7, 333)])
def test_bytes_are_shared_by_weight_whatever_the_documents_sizes(sizes: tuple[int, int]) -> None:
    found = some(mix(Counting("a", sizes[0], None), Counting("b", sizes[1], None), weights=(3, 1)), None, 4000)
    assert n_bytes(found, "a") == pytest.approx(3 * n_bytes(found, "b"), abs=3 * max(sizes) + max(sizes))


def test_resuming_after_any_document_yields_the_same_rest() -> None:
    def make() -> Mix:
        parts = (Counting("a", 10, 9), Counting("b", 25, 2, pieces=4), Counting("c", 3, 11), Counting("e", 5, 0))
        return mix(*parts, weights=(1, 2.5, 0.3, 1), turn_bytes=60)

    whole = some(make(), None, 1000)
    assert len(whole) == 9 + 8 + 11
    check_pieces(whole)
    for k, (_, cursor) in enumerate(whole):
        again = Cursor(cursor.source, json.loads(json.dumps(cursor.at)))
        assert some(make(), again, 1000) == whole[k + 1 :]


def test_the_documents_of_real_sources_arrive_whole_and_resume(tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        for n in range(5):
            (tmp_path / part / f"{n}.txt").write_bytes(f"{part} {n} ".encode() * 9000)

    def make() -> Mix:
        return Mix([Files([str(tmp_path / part)]) for part in ("one", "two")], [1, 2], ["one", "two"])

    whole = some(make(), None, 1000)
    check_pieces(whole)
    texts = [b"".join(d.text for d, _ in group) for _, group in groupby(whole, lambda item: item[0].text[:5])]
    assert sum(map(len, texts)) == sum(p.stat().st_size for p in tmp_path.rglob("*.txt"))
    for k, (_, cursor) in enumerate(whole):
        assert some(make(), cursor, 1000) == whole[k + 1 :]


@pytest.mark.parametrize("replayable", [True, False])
def test_an_endless_document_is_cut_so_that_the_others_have_their_turn(replayable: bool) -> None:
    endless = Counting("endless", 10, 1, pieces=100_000, replayable=replayable)
    found = some(mix(endless, Counting("b", 10, None), turn_bytes=50), None, 300 if replayable else 900)
    check_pieces(found)
    # whole, it would leave nothing to others; what cannot be read again is read by threads, which take turns as ready
    assert n_bytes(found, "b") > (1000 if replayable else 100)
    pieces = [d for d, _ in found if d.source == "endless" and d.text]
    assert b"".join(d.text for d in pieces) == b"".join(
        f"endless{i}".encode().ljust(10, b".") for i in range(len(pieces))
    )
    assert pieces[0].id == "d0"
    assert {d.id for d in pieces} > {"d0", "d0+50", "d0+100"}
    assert all(d.context == ((0, 1),) for d in pieces)


@pytest.mark.parametrize("replayable", [True, False])
def test_a_feed_takes_every_byte_of_a_mix_with_cut_documents(replayable: bool) -> None:
    parts = (
        Counting("a", 10, 1, pieces=57),
        Counting("b", 9, 40, replayable=replayable),
        Counting("c", 31, 3, pieces=5),
    )
    source = mix(*parts, turn_bytes=70)
    total = sum(int(batch.n_bytes.sum()) for batch in batches(source, Bytes(BytesConfig()), FeedSettings(), None))
    assert total == sum(part.n * part.pieces * (part.size - 1) for part in parts if part.n)  # one byte each is context


def test_a_document_is_not_cut_when_nobody_else_is_left() -> None:
    found = some(mix(Counting("a", 10, 1), Counting("b", 10, 1, pieces=50), turn_bytes=30), None, 1000)
    ids = [d.id for d, _ in found if d.source == "b"]
    assert len(set(ids)) <= 2, "cut at most once, before the end of the other was seen"


def test_equal_ids_of_different_parts_stay_apart() -> None:
    found = some(mix(Counting("a", 10, 3, pieces=2), Counting("b", 10, 3, pieces=2)), None, 100)
    assert {d.id for d, _ in found} == {"d0", "d1", "d2"}
    check_pieces(found)


def test_a_part_that_ends_leaves_the_others_going() -> None:
    for replayable in (True, False):
        found = some(mix(Counting("a", 10, 2), Counting("b", 10, 50, replayable=replayable)), None, 1000)
        assert (n_bytes(found, "a"), n_bytes(found, "b")) == (20, 500)


@pytest.mark.parametrize("replayable", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(SourceError("gone"), SourceError), (StorageError("full"), StorageError), (SourceError("empty"), LivelmError)],
)
def test_an_error_of_a_part_names_it(error: Exception, kind: type[LivelmError], replayable: bool) -> None:
    source = mix(Counting("fine", 10, None), Counting("broken", 10, 3, replayable=replayable, error=error))
    with pytest.raises(kind, match=f"'broken', a part of the mix: {error}"):
        list(source.read(None))


def test_a_failure_that_nobody_expected_ends_the_mix_too() -> None:
    source = mix(Counting("fine", 10, None), Counting("broken", 10, 3, replayable=False, error=ValueError("bug")))
    with pytest.raises(SourceError, match="'broken', a part of the mix, failed: ValueError: bug"):
        list(source.read(None))


def test_what_the_others_had_ready_is_delivered_before_the_error() -> None:
    fine = Counting("fine", 10, None, replayable=False)
    found: Read = []
    with pytest.raises(SourceError, match="broken"):
        found.extend(mix(fine, Counting("broken", 10, 1, replayable=False, error=SourceError("gone"))).read(None))
    assert fine.closed.is_set()
    assert n_bytes(found, "broken") == 10


def test_a_silent_part_blocks_nobody_and_earns_one_turn_at_most() -> None:
    silent = Counting("silent", 10, None, replayable=False, wait_at=0)
    source = mix(silent, Counting("b", 10, None), turn_bytes=100)
    with closing(source):
        documents = source.read(None)
        assert {d.source for d, _ in islice(documents, 500)} == {"b"}
        silent.gate.set()
        time.sleep(0.1)  # its thread fills the queue
        found = list(islice(documents, 400))
    first = [d.source for d, _ in found]
    # all 400 if it caught up what it missed; on a busy machine the other part's thread is late now and then
    assert first.count("silent") <= 350


def test_a_part_that_falls_silent_inside_a_document_is_cut_and_goes_on_later() -> None:
    halting = Counting("halting", 10, 1, pieces=6, replayable=False, wait_at=3)
    source = mix(halting, Counting("b", 10, 400))
    found: Read = []
    with closing(source):
        for item in source.read(None):
            found.append(item)
            if len(found) > 100:
                halting.gate.set()
    check_pieces(found)
    pieces = [d for d, _ in found if d.source == "halting"]
    assert [(d.id, d.offset, len(d.text), d.last) for d in pieces] == [
        ("d0", 0, 10, False),
        ("d0", 10, 10, False),
        ("d0", 20, 10, False),
        ("d0", 30, 0, True),
        ("d0+30", 0, 10, False),
        ("d0+30", 10, 10, False),
        ("d0+30", 20, 10, True),
    ]


def test_a_live_mix_in_a_spool_loses_and_doubles_nothing(tmp_path: Path) -> None:
    def make() -> Spooled:
        parts = (Counting("a", 10, 20, pieces=3, replayable=False), Counting("b", 10, 40))
        return Spooled(mix(*parts, turn_bytes=20), Spool(tmp_path))

    found: Read = []
    cursor: Cursor | None = None
    for n in (1, 3, 10, 17, 1000):
        found += some(make(), cursor, n)
        cursor = found[-1][1]
    for name in ("a", "b"):
        text = b"".join(d.text for d, _ in found if d.source == name)
        assert text == b"".join(f"{name}{i}".encode().ljust(10, b".") for i in range(60 if name == "a" else 40))


def test_each_part_is_told_what_is_durable() -> None:
    parts = Counting("a", 10, 3), Counting("b", 10, 3, replayable=False)
    found = some(mix(*parts), None, 100)
    source = mix(*parts)
    for _, cursor in found:
        source.commit(cursor)
    assert parts[0].committed[-1] == parts[1].committed[-1] == 3
    assert parts[0].committed == sorted(parts[0].committed)  # type: ignore[type-var]


def test_each_part_is_seen_and_has_a_folder_of_its_own(tmp_path: Path) -> None:
    parts = Counting("tail:/var/log/x", 30, 3), Counting("crawl:https://example.org/", 30, 3)
    source = mix(*parts)
    source.keep(tmp_path)
    kept = [part.kept for part in parts]
    assert [k.parent for k in kept if k] == [tmp_path, tmp_path]
    assert kept[0] != kept[1]
    list(source.read(None))
    assert source.observe() == {
        part.name: {"n_seen": 7, "drops": {"why": 1}, "mixed_documents": 3, "mixed_bytes": 90} for part in parts
    }


@pytest.mark.parametrize("replayable", [True, False])
def test_closing_ends_a_blocked_read_and_what_follows(replayable: bool) -> None:
    source = mix(Counting("a", 10, None, wait_at=2, replayable=replayable), Counting("b", 10, 5))
    ended = threading.Event()

    def run() -> None:
        list(source.read(None))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert not ended.wait(0.3)
    source.close()
    source.close()
    assert ended.wait(30)
    again = mix(Counting("a", 10, None, replayable=replayable), Counting("b", 10, None))
    documents = again.read(None)
    next(documents)
    again.close()
    assert list(documents) == []


def test_it_ends_and_replays_only_if_all_its_parts_do() -> None:
    for n in (3, None):
        for replayable in (True, False):
            source = mix(Counting("a", 10, 3), Counting("b", 10, n, replayable=replayable), weights=(3, 1))
            assert (source.bounded, source.replayable) == (n is not None, replayable)
            line = source.describe()
            assert "75% a, 25% b" in line
            assert ("never ends" in line) is not source.bounded
            assert ("cannot be read again" in line) is not replayable


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2), (1, float("nan")), (1, float("inf"))])
def test_weights_that_make_no_sense_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"source\.mix\.weights"):
        Mix([Counting("a", 1, 1), Counting("b", 1, 1)], weights, ["a", "b"])


def test_a_mix_of_nothing_or_of_the_same_thing_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Mix([], [], [])
    with pytest.raises(ConfigError, match="more than once"):
        mix(Counting("a", 1, 1), Counting("a", 1, 1))


def test_a_foreign_cursor_is_refused() -> None:
    [(_, own)] = some(mix(Counting("a", 10, 3), Counting("b", 10, 3)), None, 1)
    broken = [{**own.at, name: value} for name, value in (("cursors", 3), ("current", 2), ("open", {"x": 1}))]
    for cursor in (Cursor("elsewhere", own.at), Cursor("mix", {}), *(Cursor("mix", at) for at in broken)):
        with pytest.raises(SourceError, match="does not belong"):
            some(mix(Counting("a", 10, 3), Counting("b", 10, 3)), cursor, 1)
    with pytest.raises(SourceError, match="does not belong"):
        some(mix(Counting("b", 10, 3), Counting("a", 10, 3)), own, 1)
