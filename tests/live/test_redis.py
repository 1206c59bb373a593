"""Redis Streams with a real server: every entry once, whatever dies, repeats or lies."""

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.live.broker_servers import Server, documents, learn_killed, read_while_killed, redis_command, until

from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers.message import HEADER, KEY
from livelm.sources.brokers.redis import Redis, RedisPublisher, RedisSettings
from livelm.types import Cursor, Document

UNTIL_EMPTY = RedisSettings(until_empty=True)
Pairs = list[tuple[Document, Cursor]]


def started(folder: Path, *options: str) -> Server:
    command = redis_command(*options)
    if command is None:
        pytest.skip("needs a Redis server on the path: apt install redis-server")
    server = Server(command, folder)
    server.start()
    return server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = started(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The one server of this file, empty."""
    yield shared_server
    client(shared_server).flushall()


def client(server: Server) -> Any:
    return redis.Redis("127.0.0.1", server.port)


def uri(server: Server) -> str:
    return f"redis://{server.place}/docs"


def publish(server: Server, batch: list[Document], settings: RedisSettings | None = None) -> None:
    with closing(RedisPublisher(uri(server), settings)) as publisher:
        publisher.publish(batch)


def read(server: Server, cursor: Cursor | None = None, settings: RedisSettings = UNTIL_EMPTY) -> Pairs:
    with closing(Redis(uri(server), settings)) as source:
        return list(source.read(cursor))


def test_what_is_published_comes_back_the_same_and_in_order(server: Server) -> None:
    batch = [
        Document(text=b"\x00\xff raw", id="a", source="crawl", at="2026-01-01T00:00:00Z", url="https://x.example/ü"),
        Document(text=b"says: yes", id="s", source="sessions", context=((0, 6),)),
        Document(text=b"", id="empty", source="crawl"),
        *documents(1300),
    ]
    publish(server, batch)
    assert [document for document, _ in read(server)] == batch


def test_plain_entries_of_others_are_documents_too(server: Server) -> None:
    to = client(server)
    names = [
        to.xadd("docs", fields).decode()
        for fields in ({"text": "hello", "x": "y"}, {"only": "world"}, {"a": "1", "b": "2"}, {"text": ""})
    ]
    with closing(Redis(uri(server), UNTIL_EMPTY)) as source:
        found = [d for d, _ in source.read(None)]
        assert source.observe()["drops"] == {"no text": 1, "empty": 1}
    assert [(d.text, d.id, d.source) for d in found] == [
        (b"hello", f"docs/{names[0]}", "redis"),
        (b"world", f"docs/{names[1]}", "redis"),
    ]


@pytest.mark.parametrize("header", ["", "no json", "[]", '{"v":1,"id":5}'])
def test_a_malformed_header_is_counted_and_skipped(header: str, server: Server) -> None:
    for fields in ({"text": "one"}, {"text": "bad", HEADER: header}, {"text": "two"}):
        client(server).xadd("docs", fields)
    with closing(Redis(uri(server), UNTIL_EMPTY)) as source:
        assert [d.text for d, _ in source.read(None)] == [b"one", b"two"]
        assert source.observe()["drops"] == {"malformed": 1}


def test_resuming_after_any_document_yields_the_same_rest(server: Server) -> None:
    publish(server, documents(12))
    whole = read(server)
    assert len(whole) == 12
    for k, (_, cursor) in enumerate(whole):
        assert read(server, cursor) == whole[k + 1 :]


@pytest.mark.parametrize("at", [{}, {"stream": "docs", "id": "x"}, {"stream": "other", "id": "1-1"}])
def test_a_foreign_cursor_is_refused(at: dict[str, Any], server: Server) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor("redis", at)):
        with pytest.raises(SourceError, match="does not belong"):
            read(server, cursor)


def test_what_is_published_again_is_stored_once(server: Server) -> None:
    publish(server, documents(100))
    publish(server, documents(120))
    assert client(server).xlen("docs") == 120


def test_what_was_stored_twice_all_the_same_comes_once_also_over_a_resume(server: Server) -> None:
    for name in ["x", "a", "b", "c", "x", "c"]:
        client(server).xadd("docs", {"text": name, KEY: name})
    settings = RedisSettings(until_empty=True, dedupe_messages=3)
    whole = read(server, None, settings)
    assert [d.text for d, _ in whole] == [b"x", b"a", b"b", b"c", b"x"], "the x is beyond the window, the c is not"
    for k in range(5):
        assert read(server, whole[k][1], settings) == whole[k + 1 :]


def test_a_commit_shows_in_the_group_and_may_forget(server: Server) -> None:
    publish(server, documents(50))
    for settings, left in ((RedisSettings(), 50), (RedisSettings(forget=True), 21)):
        with closing(Redis(uri(server), settings)) as source:
            pairs = list(islice(source.read(None), 40))
            source.commit(pairs[29][1])
        source.commit(pairs[39][1])  # after close: nothing happens
        [group] = client(server).xinfo_groups("docs")
        assert group["last-delivered-id"].decode() == pairs[29][1].at["id"]
        assert client(server).xlen("docs") == left
    assert [d.id for d, _ in read(server, pairs[29][1])] == [f"d{i}" for i in range(30, 50)]


def test_a_stream_that_lost_its_end_is_not_gone_on_with(server: Server) -> None:
    publish(server, documents(9))
    [*_, (_, cursor)] = read(server)
    client(server).delete("docs")
    with pytest.raises(SourceError, match="no such stream"):
        read(server, cursor)
    client(server).xadd("docs", {"text": "again"}, id="5-1")
    with pytest.raises(SourceError, match="ends at 5-1"):
        read(server, cursor)
    client(server).delete("docs")
    client(server).set("docs", "text")
    with pytest.raises(SourceError, match="not a stream"):
        read(server)


def test_a_stream_that_comes_later_is_waited_for_and_a_blocked_read_ends_when_closed(server: Server) -> None:
    source, got, ended = Redis(uri(server)), [], threading.Event()

    def run() -> None:
        got.extend(d.id for d, _ in source.read(None))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert not ended.wait(0.3)
    publish(server, documents(3))
    until(lambda: source.observe()["n_read"] == 3)
    source.close()
    source.close()
    assert ended.wait(30)
    assert got == ["d0", "d1", "d2"]


def test_what_cannot_be_reached_is_an_error_that_names_it() -> None:
    target = "redis://127.0.0.1:9/docs"
    for act in (lambda: list(Redis(target).read(None)), lambda: RedisPublisher(target).publish(documents(1))):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:9"):
            act()


def test_only_a_file_tells_who_may_read(tmp_path: Path) -> None:
    server = started(tmp_path / "redis", "--requirepass", "s3cret")
    try:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_text("s3cret\n")
        wrong.write_text("wr0ng\n")
        publish(server, documents(2), RedisSettings(credentials_file=str(right)))
        assert len(read(server, None, RedisSettings(credentials_file=str(right), until_empty=True))) == 2
        with pytest.raises(SourceError) as refused:
            read(server, None, RedisSettings(credentials_file=str(wrong)))
        assert "wr0ng" not in str(refused.value)
        with pytest.raises(ConfigError, match="password does not belong") as stored:
            Redis(f"redis://ann:s3cret@{server.place}/docs")
        assert "s3cret" not in str(stored.value)
    finally:
        server.kill()


@pytest.mark.slow
def test_a_killed_learner_grades_every_document_once(server: Server, tmp_path: Path) -> None:
    n = 6000
    publish(server, documents(n))
    graded = learn_killed(lambda: Redis(uri(server)), tmp_path, n, n_kills=8)
    assert graded == [f"d{i}" for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_killed_server_loses_nothing_and_doubles_nothing(fsync: str, tmp_path: Path) -> None:
    n, server = 8000, started(tmp_path / "redis", "--appendfsync", fsync)
    source = Redis(uri(server))
    try:
        publish(server, documents(1))
        got, _ = read_while_killed(server, lambda: RedisPublisher(uri(server)), source, n)
    finally:
        server.kill()
    n_reconnects = source.observe()["n_reconnects"]
    assert isinstance(n_reconnects, int)
    assert n_reconnects >= 3
    assert sorted(got) == sorted(f"d{i}" for i in range(n))


@pytest.mark.slow
def test_a_learner_and_a_server_that_die_together_grade_every_document_once(tmp_path: Path) -> None:
    n, server = 12_000, started(tmp_path / "redis", "--appendfsync", "always")
    (tmp_path / "run").mkdir()
    publish(server, documents(n))

    def die() -> None:
        server.kill()
        server.start()  # it may still load what it has when the next learner asks

    try:
        graded = learn_killed(lambda: Redis(uri(server)), tmp_path / "run", n, 8, die)
    finally:
        server.kill()
    assert graded == [f"d{i}" for i in range(n)]


def test_a_server_that_still_loads_is_waited_for_and_not_taken_for_absent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, documents(3))
    source, ask, n_asked = Redis(uri(server), UNTIL_EMPTY), Redis._begin, 0

    def begin(self: Redis, last: str) -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked < 3:
            raise redis.BusyLoadingError("Redis is loading the dataset in memory")
        ask(self, last)

    monkeypatch.setattr(Redis, "_begin", begin)
    with closing(source):
        assert [d.id for d, _ in source.read(None)] == ["d0", "d1", "d2"]
    assert n_asked == 3
