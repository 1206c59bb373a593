"""What the conformance suite reads: for every source of SOURCES something small and real, behind real servers."""

import asyncio
import io
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import websockets.asyncio.server as ws_server
from confluent_kafka import Producer
from tests.conformance.surroundings import NOBODY, Fixture, Make, Surroundings
from tests.live.broker_servers import documents
from tests.live.feed_servers import HOST, OK, Answers, header, is_post, jetstream, post, serving, sse, time_of
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from livelm.sources import Files, Mix, Stdin, Tail
from livelm.sources.archives import Archives, ArchivesSettings
from livelm.sources.brokers.kafka import Kafka, KafkaPublisher, KafkaSettings
from livelm.sources.brokers.nats import Nats, NatsPublisher
from livelm.sources.brokers.redis import Redis, RedisPublisher
from livelm.sources.demo import Demo, DemoSettings
from livelm.sources.sessions import Sessions, SessionsSettings
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.filters import FilterSettings
from livelm.sources.web.frontier import FrontierSettings
from livelm.types import Source

PIECE = 64 << 10
ANY_TEXT = FilterSettings(min_characters=0, min_words=0, min_stop_words=0, min_punctuated_lines=0.0)


def files(at: Surroundings) -> Fixture:
    at.path("text/a.txt", b"alpha")
    at.path("text/b.bin", os.urandom(2 * PIECE + 9))
    at.path("text/deep/c.jsonl", b'{"text": "one"}\nbroken\n{"text": "two"}\n')
    at.path("text/z.txt", "ζ".encode()[:1])
    return Fixture(
        make=lambda: Files([str(at.folder / "text")]), n=7, broken=lambda: Files([str(at.folder / "missing")])
    )


def stdin(at: Surroundings) -> Fixture:
    path = at.path("input", os.urandom(6 * PIECE + 5))

    def make() -> Source:
        fd = os.open(path, os.O_RDONLY)
        at.stack.callback(os.close, fd)
        return Stdin(fd)

    def silent() -> Source:
        read_end, write_end = os.pipe()
        at.stack.callback(os.close, read_end)
        at.stack.callback(os.close, write_end)
        return Stdin(read_end)

    def broken() -> Source:
        return Stdin(os.open(path, os.O_WRONLY))

    return Fixture(make=make, n=7, broken=broken, silent=silent)


def tail(at: Surroundings) -> Fixture:
    path = at.path("log", os.urandom(6 * PIECE + 5))
    missing = str(at.folder / "missing" / "log")
    return Fixture(
        make=lambda: Tail(str(path)),
        n=7,
        broken=lambda: Tail(missing),
        silent=lambda: Tail(str(at.folder / "later")),
    )


def warc(at: Surroundings) -> Fixture:
    """Pages with their HTTP heads, a text record, and records without text, each a gzip member."""
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    head = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
    for k in range(5):
        page = f"<html><body><main><p>{_words(k)}</p></main></body></html>".encode()
        url = f"http://example.org/{k}"
        writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(page), http_headers=head))
        writer.write_record(writer.create_warc_record(url, "metadata", io.BytesIO(b"fetch: ok")))
    writer.write_record(
        writer.create_warc_record(
            "http://example.org/6", "conversion", io.BytesIO(b"plain"), warc_content_type="text/plain"
        )
    )
    path = at.path("archives/pages.warc.gz", buffer.getvalue())
    settings = ArchivesSettings(allow=(HOST,))
    return Fixture(
        make=lambda: Archives(str(path.parent)),
        n=6,
        broken=lambda: Archives(str(at.folder / "missing.warc.gz")),
        silent=lambda: Archives(f"http://{HOST}:{at.mute_port()}/pages.warc.gz", settings),
    )


def sessions_once(at: Surroundings) -> Fixture:
    path = _session_logs(at) / "b.jsonl"
    return Fixture(
        make=lambda: Sessions(str(path), SessionsSettings(piece_bytes=64)),
        n=7,
        broken=lambda: Sessions(str(at.folder / "missing")),
    )


def sessions_followed(at: Surroundings) -> Fixture:
    folder = _session_logs(at)
    settings = SessionsSettings(poll_s=0.01, settle_s=0.0)
    return Fixture(
        make=lambda: Sessions(str(folder), settings),
        n=7,
        broken=lambda: Sessions(str(at.folder / "missing"), settings),
    )


def _session_logs(at: Surroundings) -> Path:
    """Two conversations of three messages; in one is a secret, in the other a line that is none."""
    for name, more in (("a", b"{broken\n"), ("b", b"")):
        rows: list[bytes] = [more]
        for k, role in enumerate(("user", "assistant", "user")):
            row: dict[str, Any] = {"type": role, "uuid": f"{name}{k}", "parentUuid": f"{name}{k - 1}" if k else None}
            row |= {"sessionId": name, "timestamp": f"2026-01-0{k + 1}T00:00:00Z"}
            row["message"] = {
                "role": role,
                "content": f"{name}{k}: " + "AKIAIOSFODNN7EXAMPLE word " * 2 * k,
                "id": None,
            }
            rows.append(json.dumps(row).encode() + b"\n")
        at.path(f"sessions/{name}.jsonl", b"".join(rows))
    return at.folder / "sessions"


def mix(at: Surroundings) -> Fixture:
    """Two parts that can be read again."""
    one = files(at).make
    at.path("other/lines.jsonl", b"".join(b'{"text": "line %d"}\n' % k for k in range(4)))

    def make() -> Source:
        return Mix([one(), Files([str(at.folder / "other")])], (1.0, 2.0), ("one", "other"), turn_bytes=PIECE)

    def broken() -> Source:
        empty = at.folder / "empty"
        empty.mkdir()
        return Mix([one(), Files([str(empty)])], (1.0, 1.0), ("one", "empty"))

    return Fixture(make=make, n=11, broken=broken)


def mix_live(at: Surroundings) -> Fixture:
    """A part that never ends beside one that does."""
    feed = sse_feed(at)
    at.path("other/lines.jsonl", b"".join(b'{"text": "line %d"}\n' % k for k in range(3)))

    def mixed(live: Make | None) -> Source:
        assert live is not None
        return Mix([Files([str(at.folder / "other")]), live()], (1.0, 1.0), ("other", "feed"))

    return Fixture(
        make=lambda: mixed(feed.make),
        n=3 + feed.n,
        broken=lambda: mixed(feed.broken),
        ordered=False,
    )


def sse_feed(at: Surroundings) -> Fixture:
    n = 6

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        first = int(header(head, "Last-Event-ID") or -1) + 1
        writer.write(OK)
        writer.writelines(b'id: %d\ndata: {"text": "event %d"}\n\n' % (k, k) for k in range(first, n))
        await writer.drain()
        await asyncio.sleep(600)  # until the reader leaves

    @cache
    def port() -> int:
        return at.stack.enter_context(serving(Answers(answer)))

    return Fixture(
        make=lambda: sse(port(), idle_timeout_s=60.0),
        n=n,
        broken=lambda: sse(1, start_tries=2, contact="x@example.org"),
    )


def websocket(at: Surroundings) -> Fixture:
    n = 12

    async def serve(connection: ws_server.ServerConnection) -> None:
        assert connection.request is not None
        _, _, cursor = connection.request.path.partition("&cursor=")
        for k in range(n):
            if time_of(k) >= int(cursor or 0):
                await connection.send(json.dumps(post(k)))
        await connection.wait_closed()

    async def start(listening: socket.socket) -> Any:
        return await ws_server.serve(serve, sock=listening, ping_interval=None)

    @cache
    def port() -> int:
        return at.stack.enter_context(serving(start))

    return Fixture(
        make=lambda: jetstream(port(), idle_timeout_s=60.0),
        n=sum(map(is_post, range(n))),
        broken=lambda: jetstream(1, start_tries=2),
    )


def nats(at: Surroundings) -> Fixture:
    @cache
    def uri() -> str:
        made = f"nats://{at.brokers.nats()}/docs-{(name := uuid4().hex)}/{name}"
        with closing(NatsPublisher(made)) as publisher:
            publisher.publish(documents(6))
        return made

    return Fixture(make=lambda: Nats(uri()), n=6, broken=lambda: Nats(f"nats://{NOBODY}/docs/docs"))


def redis(at: Surroundings) -> Fixture:
    @cache
    def uri() -> str:
        made = f"redis://{at.brokers.redis()}/{uuid4().hex}"
        with closing(RedisPublisher(made)) as publisher:
            publisher.publish(documents(6))
        return made

    return Fixture(make=lambda: Redis(uri()), n=6, broken=lambda: Redis(f"redis://{NOBODY}/docs"))


def kafka(at: Surroundings) -> Fixture:
    """A whole topic: several partitions, in no order of their own."""

    @cache
    def uri() -> str:
        made = f"kafka://{at.brokers.kafka()}/{uuid4().hex}"
        with closing(KafkaPublisher(made)) as publisher:
            publisher.publish(documents(5))
        return made

    return Fixture(make=lambda: Kafka(uri()), n=5, broken=lambda: Kafka(f"kafka://{NOBODY}/docs"), ordered=False)


def kafka_partition(at: Surroundings) -> Fixture:
    @cache
    def uri() -> str:
        place, topic = at.brokers.kafka(), uuid4().hex
        producer = Producer({"bootstrap.servers": place})
        for k in range(5):
            producer.produce(topic, b"text %d" % k, partition=2)
        assert producer.flush(30) == 0
        return f"kafka://{place}/{topic}"

    settings = KafkaSettings(partition=2)
    return Fixture(make=lambda: Kafka(uri(), settings), n=5, broken=None)


def crawl(at: Surroundings) -> Fixture:
    """Four pages in a tree."""
    n = 4

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        path = head.split(" ")[1].lstrip("/")
        k = int(path) if path.isdigit() and int(path) < n else None
        links = "" if k is None else "".join(f'<a href="/{child}">on</a>' for child in (2 * k + 1, 2 * k + 2))
        body = f"<html><body><main><p>{_words(k or 0)}</p>{links}</main></body></html>".encode()
        status = "404 Not Found" if k is None else "200 OK"
        kind = f"Content-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}"
        writer.write(f"HTTP/1.1 {status}\r\n{kind}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()

    @cache
    def port() -> int:
        return at.stack.enter_context(serving(Answers(answer)))

    def crawled(port: int) -> Source:
        settings = CrawlSettings(
            contact="https://example.org",
            allow=(f"{HOST}:{port}",),
            gap_s=0.0,
            answer_factor=0.0,
            niceness=0,
            frontier=FrontierSettings(tries=1),
            filters=ANY_TEXT,
        )
        return Crawl(f"http://{HOST}:{port}/0", settings)

    return Fixture(
        make=lambda: crawled(port()),
        n=n,
        broken=lambda: crawled(1),
        silent=lambda: crawled(at.mute_port()),
    )


def demo(at: Surroundings) -> Fixture:
    """Some pages of it; its site never falls silent, but takes minutes to be read."""

    def broken() -> Source:
        """The port of its site, which stands in the addresses of the frontier, was taken by somebody else."""
        at.path("taken/site.json", json.dumps({"port": at.mute_port()}).encode())
        source = Demo()
        source.keep(at.folder / "taken")
        return source

    return Fixture(make=lambda: Demo("", DemoSettings(max_pages=3)), n=3, broken=broken, silent=Demo)


def _words(k: int) -> str:
    """Text that no other number has, and long enough to be a page's main one."""
    chooser = random.Random(k)
    return " ".join("".join(chooser.choices("abdefgiklmnoprstu", k=6)) for _ in range(60)).capitalize() + "."


SLOW = pytest.mark.slow
"""Real brokers and processes."""
CASES: dict[str, tuple[str, Callable[[Surroundings], Fixture], bool]] = {
    "crawl": ("crawl", crawl, True),
    "demo": ("demo", demo, True),
    "files": ("files", files, False),
    "kafka": ("kafka", kafka, True),
    "kafka partition": ("kafka", kafka_partition, True),
    "mix": ("mix", mix, False),
    "mix live": ("mix", mix_live, False),
    "nats": ("nats", nats, True),
    "redis": ("redis", redis, True),
    "sessions followed": ("sessions", sessions_followed, False),
    "sessions once": ("sessions", sessions_once, False),
    "sse": ("sse", sse_feed, False),
    "stdin": ("stdin", stdin, False),
    "tail": ("tail", tail, False),
    "warc": ("warc", warc, False),
    "ws": ("ws", websocket, False),
}
"""Every source of SOURCES at least once: its name there, what it reads, and whether that takes seconds to start."""


def parameters() -> Iterator[Any]:
    """One for each case."""
    for case, (_, _, slow) in CASES.items():
        yield pytest.param(case, marks=[SLOW] if slow else [])
