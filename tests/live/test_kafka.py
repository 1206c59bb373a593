"""Kafka with the mock brokers of its own client library: every message once, whatever repeats, expires or lies."""

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.live.broker_servers import documents, learn_killed, until

from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers import kafka
from livelm.sources.brokers.address import parse_address
from livelm.sources.brokers.kafka import Kafka, KafkaPublisher, KafkaSettings, connection_options
from livelm.sources.brokers.message import HEADER, KEY
from livelm.types import Cursor, Document

Pairs = list[tuple[Document, Cursor]]


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Host and port of one of three; they live as long as this producer."""
    cluster = Producer({"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 3, "log_level": 3})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    cluster.purge()


@pytest.fixture
def uri(brokers: str) -> str:
    """A topic of its own for every test."""
    return f"kafka://{brokers}/docs-{uuid4().hex}"


def publish(uri: str, batch: list[Document]) -> None:
    with closing(KafkaPublisher(uri)) as publisher:
        publisher.publish(batch)


def send(uri: str, *messages: tuple[bytes | None, dict[str, str]], partition: int = 0) -> None:
    address = parse_address(uri, "kafka", 9092, "TOPIC")
    producer = Producer({"bootstrap.servers": address.place})
    for body, headers in messages:
        producer.produce(address.path, body, headers=list(headers.items()), partition=partition)
    assert producer.flush(30) == 0


def read(uri: str, cursor: Cursor | None = None, **settings: Any) -> Pairs:
    with closing(Kafka(uri, KafkaSettings(until_empty=True, **settings))) as source:
        return list(source.read(cursor))


def test_what_is_published_comes_back_the_same(uri: str) -> None:
    batch = [
        Document(text=b"\x00\xff raw", id="a", source="crawl", at="2026-01-01T00:00:00Z", url="https://x.example/ü"),
        Document(text=b"says: yes", id="s", source="sessions", context=((0, 6),)),
        Document(text=b"", id="empty", source="crawl"),
        *documents(600),
    ]
    publish(uri, batch)
    assert sorted((d for d, _ in read(uri)), key=lambda d: d.id) == sorted(batch, key=lambda d: d.id)


def test_one_partition_is_replayable_and_resuming_after_any_document_yields_the_same_rest(uri: str) -> None:
    send(uri, *[(f"{i}".encode(), {}) for i in range(12)], partition=2)
    send(uri, (b"elsewhere", {}), partition=1)
    assert Kafka(uri, KafkaSettings(partition=2)).replayable
    whole = read(uri, partition=2)
    assert [d.text for d, _ in whole] == [f"{i}".encode() for i in range(12)]
    for k in (0, 1, 6, 10, 11):  # each look at a partition's end takes the mock half a second
        assert read(uri, whole[k][1], partition=2) == whole[k + 1 :]


def test_several_partitions_are_for_the_spool_and_every_cursor_still_continues(uri: str) -> None:
    publish(uri, documents(40))
    assert not Kafka(uri).replayable
    whole = read(uri)
    for k in (0, 13, 39):
        seen = {d.id for d, _ in whole[: k + 1]}
        rest = [d.id for d, _ in read(uri, whole[k][1])]
        assert sorted([*seen, *rest]) == sorted(f"d{i}" for i in range(40))


def test_plain_messages_of_others_are_documents_too(uri: str) -> None:
    send(uri, (b"hello", {}), (b"", {}), (None, {}), (b"world", {"other": "x"}))
    with closing(Kafka(uri, KafkaSettings(until_empty=True, partition=0))) as source:
        found = [d for d, _ in source.read(None)]
        assert source.observe()["drops"] == {"empty": 2}
    topic = uri.rpartition("/")[2]
    assert [(d.text, d.id, d.source) for d in found] == [
        (b"hello", f"{topic}/0/0", "kafka"),
        (b"world", f"{topic}/0/3", "kafka"),
    ]


@pytest.mark.parametrize("header", ["", "no json", "[]", '{"v":1,"id":5}'])
def test_a_malformed_header_is_counted_and_skipped(header: str, uri: str) -> None:
    send(uri, (b"one", {}), (b"bad", {HEADER: header}), (b"two", {}))
    with closing(Kafka(uri, KafkaSettings(until_empty=True))) as source:
        assert [d.text for d, _ in source.read(None)] == [b"one", b"two"]
        assert source.observe()["drops"] == {"malformed": 1}


def test_what_a_producer_sent_again_comes_once_also_over_a_resume(uri: str) -> None:
    send(uri, *[(name.encode(), {KEY: name}) for name in ["x", "a", "b", "c", "x", "c"]])
    settings = {"partition": 0, "dedupe_messages": 3}
    whole = read(uri, **settings)
    assert [d.text for d, _ in whole] == [b"x", b"a", b"b", b"c", b"x"], "the x is beyond the window, the c is not"
    for k in (0, 3):
        assert read(uri, whole[k][1], **settings) == whole[k + 1 :]


def test_a_document_that_is_published_again_comes_once(uri: str) -> None:
    publish(uri, documents(50))
    publish(uri, documents(60))
    assert sorted(d.id for d, _ in read(uri)) == sorted(f"d{i}" for i in range(60))


@pytest.mark.parametrize("at", [{}, {"topic": "docs", "partition": -1, "offsets": {}}])
def test_a_foreign_cursor_is_refused(at: dict[str, Any], uri: str) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor("kafka", at)):
        with pytest.raises(SourceError, match="does not belong"):
            read(uri, cursor)


def test_a_commit_tells_the_group_and_is_never_believed(uri: str) -> None:
    address = parse_address(uri, "kafka", 9092, "TOPIC")
    send(uri, *[(f"{i}".encode(), {}) for i in range(20)])
    group = Consumer({"bootstrap.servers": address.place, "group.id": "livelm"})

    def committed() -> int:
        return group.committed([TopicPartition(address.path, 0)], timeout=10)[0].offset

    with closing(Kafka(uri, KafkaSettings(partition=0))) as source:
        pairs = list(islice(source.read(None), 20))
        source.commit(pairs[14][1])
        until(lambda: committed() == 15)
    source.commit(pairs[19][1])  # after close: nothing happens
    assert committed() == 15
    group.close()
    assert len(read(uri, partition=0)) == 20
    assert len(read(uri, pairs[4][1], partition=0)) == 15


def test_what_is_gone_is_counted_and_a_topic_that_lost_its_end_is_an_error(uri: str) -> None:
    send(uri, *[(b"x" * 900_000, {}) for _ in range(12)])  # the mock brokers keep about 5 MB
    topic = uri.rpartition("/")[2]
    [*_, (last, cursor)] = read(uri, partition=0)
    assert last.id == f"{topic}/0/11"
    early = Cursor("kafka", {"topic": topic, "partition": 0, "offsets": {"0": 1}})
    with closing(Kafka(uri, KafkaSettings(until_empty=True, partition=0))) as source:
        rest = list(source.read(early))
        assert 0 < len(rest) < 11
        assert source.observe()["drops"] == {"gone before it was read": 11 - len(rest)}
    with pytest.raises(SourceError, match="ends at offset 12"):
        read(uri, Cursor("kafka", {**cursor.at, "offsets": {"0": 99}}), partition=0)


def test_a_partition_that_is_not_there_is_an_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "CONNECT_S", 1)
    send(uri, (b"x", {}))
    with pytest.raises(SourceError, match="no partition 77"):
        read(uri, partition=77)


def test_what_cannot_be_reached_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "CONNECT_S", 1)
    target = "kafka://127.0.0.1:9/docs"
    for act in (lambda: list(Kafka(target).read(None)), lambda: KafkaPublisher(target).publish(documents(1))):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:9"):
            act()


def test_a_blocked_read_ends_when_closed(uri: str) -> None:
    send(uri, (b"x", {}))
    source, ended = Kafka(uri), threading.Event()
    threading.Thread(target=lambda: (list(source.read(None)), ended.set()), daemon=True).start()
    assert not ended.wait(0.5)
    source.close()
    source.close()
    assert ended.wait(30)


def test_credentials_come_from_a_file_and_never_from_the_uri(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    address = parse_address("kafka://ann@host/docs", "kafka", 9092, "TOPIC")
    options = connection_options(address, KafkaSettings(credentials_file=str(path), tls=True))
    assert (options["security.protocol"], options["sasl.username"]) == ("sasl_ssl", "ann")
    assert options["sasl.password"] == "s3cret"
    with pytest.raises(ConfigError, match="password does not belong") as refused:
        Kafka("kafka://ann:s3cret@host/docs")
    assert "s3cret" not in str(refused.value)


@pytest.mark.slow
def test_a_killed_learner_grades_every_document_once(uri: str, tmp_path: Path) -> None:
    n = 6000
    send(uri, *[(b"text", {HEADER: f'{{"v":1,"id":"d{i}","source":"s"}}'}) for i in range(n)])
    graded = learn_killed(lambda: Kafka(uri, KafkaSettings(partition=0)), tmp_path, n, n_kills=8)
    assert graded == [f"d{i}" for i in range(n)]
