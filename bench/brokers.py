"""Documents a second from a broker into batches: server, source, tokenizer and feed together on one core.

2,000 bytes each, `bytes` tokenizer, one lane. The broker has its defaults (Redis: with an append-only file) and was
filled before; nothing is acknowledged in between, as between two checkpoints. The floor is the same feed over the
same documents from memory. Kafka's is the client library's mock broker, in this very process, which keeps only about
5 MB of a partition: fewer documents.

`one_core_per_s` divides by the processor time of client and server: what one core does that has nothing else to do,
however busy the machine is. The wall clock stands beside it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from tests.live.broker_servers import Server, nats_command, redis_command

from bench.record import keep
from livelm.config import FeedSettings
from livelm.feed import batches
from livelm.sources.brokers.kafka import Kafka, KafkaPublisher, KafkaSettings
from livelm.sources.brokers.message import Publisher
from livelm.sources.brokers.nats import Nats, NatsPublisher, NatsSettings
from livelm.sources.brokers.redis import Redis, RedisPublisher, RedisSettings
from livelm.tokenize.bytes import Bytes, BytesConfig
from livelm.types import Cursor, Document, Source

N_BYTES = 2000
UPDATE_TOKENS = 16_384
IN_ONE_PUBLISH = 1000
KAFKA_DOCUMENTS = 2000

Opened = tuple[Callable[[], Publisher], Callable[[], Source], Callable[[], float]]
"""How to publish, how to read, and the seconds of processor time that the broker used so far."""


class Memory:
    """The floor: documents that are there already."""

    bounded = True
    replayable = True

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        for i, document in enumerate(self._documents):
            yield document, Cursor("memory", {"i": i})

    def close(self) -> None:
        """Nothing is open."""

    def describe(self) -> str:
        return "memory"


def documents(n: int) -> list[Document]:
    """Different ones."""
    line = b"The quick brown fox jumps over the lazy dog. " * (N_BYTES // 40)
    return [Document(text=(b"%08d " % i + line)[:N_BYTES], id=f"doc-{i}", source="crawl") for i in range(n)]


@contextmanager
def nats() -> Iterator[Opened | None]:
    """A fresh nats-server."""
    with _server(nats_command()) as server:
        uri = f"nats://{server and server.place}/DOCS/docs"
        settings = NatsSettings(until_empty=True)
        yield server and (lambda: NatsPublisher(uri), lambda: Nats(uri, settings), lambda: _used_s(server.pid))


@contextmanager
def redis() -> Iterator[Opened | None]:
    """A fresh redis-server."""
    with _server(redis_command()) as server:
        uri = f"redis://{server and server.place}/docs"
        settings = RedisSettings(until_empty=True)
        yield server and (lambda: RedisPublisher(uri), lambda: Redis(uri, settings), lambda: _used_s(server.pid))


@contextmanager
def kafka() -> Iterator[Opened | None]:
    """One mock broker."""
    cluster = Producer({"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1, "log_level": 3})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    uri = f"kafka://{broker.host}:{broker.port}/docs"
    yield lambda: KafkaPublisher(uri), lambda: Kafka(uri, KafkaSettings(until_empty=True)), lambda: 0.0
    cluster.purge()


@contextmanager
def _server(command: Callable[[Path, int], list[str]] | None) -> Iterator[Server | None]:
    if command is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        server = Server(command, Path(folder) / "server")
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _used_s(pid: int) -> float:
    """Processor time of a process so far (user and system), from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BROKERS = {"nats": nats, "redis": redis, "kafka": kafka}


def into_batches(source: Source, n: int, used_s: Callable[[], float]) -> tuple[float, float]:
    """Documents a second, to the last batch, by the clock and by processor time; every byte must arrive."""
    begin, used, n_bytes = time.perf_counter(), time.process_time() + used_s(), 0
    with closing(source):
        for batch in batches(source, Bytes(BytesConfig()), FeedSettings(update_tokens=UPDATE_TOKENS), None):
            n_bytes += int(batch.n_bytes.sum())
    rates = n / (time.perf_counter() - begin), n / (time.process_time() + used_s() - used)
    if n_bytes != n * N_BYTES:
        raise RuntimeError(f"{n_bytes} bytes arrived of {n * N_BYTES}")
    return rates


def measure(name: str, n: int, repeats: int) -> dict[str, Any] | None:
    """Publish once, read several times; None where the broker is not installed."""
    with BROKERS[name]() as opened:
        if not opened:
            return None
        publisher, source, used_s = opened
        texts = documents(n)
        with closing(publisher()) as to:
            begin, used = time.perf_counter(), time.process_time() + used_s()
            for i in range(0, n, IN_ONE_PUBLISH):
                to.publish(texts[i : i + IN_ONE_PUBLISH])
            published = n / (time.perf_counter() - begin), n / (time.process_time() + used_s() - used)
        rates = [into_batches(source(), n, used_s) for _ in range(repeats)]
        alone = [into_batches(Memory(texts), n, lambda: 0.0) for _ in range(repeats)]
    return {
        "broker": name,
        "documents": n,
        "one_core_per_s": round(statistics.median(rate for _, rate in rates)),
        "clock_per_s": round(statistics.median(rate for rate, _ in rates)),
        "feed_alone_one_core_per_s": round(statistics.median(rate for _, rate in alone)),
        "published_one_core_per_s": round(published[1]),
        "published_clock_per_s": round(published[0]),
    }


def main() -> None:
    """Parse the command line, measure each broker, keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", nargs="+", default=list(BROKERS), choices=list(BROKERS))
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # the servers inherit it
    rows: list[dict[str, Any]] = []
    for name in arguments.brokers:
        row = measure(name, KAFKA_DOCUMENTS if name == "kafka" else arguments.documents, arguments.repeats)
        print(row or f"{name}: left out, its server is not installed", flush=True)
        rows += [row] if row else []
    if arguments.keep:
        figures = {f"{row['broker']}_documents_per_s": row["one_core_per_s"] for row in rows}
        keep("brokers", "How many documents of 2 KB a second come from a broker into batches?", figures, rows)


if __name__ == "__main__":
    main()
