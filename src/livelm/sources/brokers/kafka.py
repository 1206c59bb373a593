"""Kafka: read a topic by the offsets that a run's checkpoints hold, and publish to one.

Partitions are assigned, not subscribed to: the run knows its offsets and seeks to them, no group decides who reads what
and nothing is rebalanced. What is committed to the group is a hint for people and tools (lag), never read back.

A topic of several partitions has no order of its own: what is read depends on which partition answers first. So such a
topic is not replayable and the spool keeps the order it was read in; one partition (`partition`) is replayable.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import Field

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.brokers.address import CONNECT_S, Address, BrokerSettings, parse_address, read_secret
from livelm.sources.brokers.message import HEADER, KEY, Drops, MalformedMessage, Recent, key, pack, pieces, unpack
from livelm.sources.brokers.patience import Lost, Patience
from livelm.types import Cursor, Document, Json

PORT = 9092
BATCH = 500
POLL_S = 0.2
CLOSE_S = 0.5
METADATA_S = 30.0
"""How often to look for partitions that were added."""
QUEUED_KIB = 16 << 10
"""What the library may fetch ahead, per partition; its own default is 64 MiB."""
HEADER_ROOM = 72 << 10

log = logging.getLogger(__name__)


Confirm = Callable[[KafkaError | None, Message], None]


class _Closed(Exception):
    """The source was closed while it read."""


class KafkaSettings(BrokerSettings):
    """How a topic is read and written."""

    group: str = Field(default="livelm", pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    """The consumer group that is told which offsets are durable here."""
    partition: int = Field(default=-1, ge=-1, le=1_000_000)
    """Read only this partition, which is replayable; -1: all of them, kept in the spool."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How `user@` and the password in `credentials_file` are proved."""
    max_message_bytes: int = Field(default=1_000_000, ge=100_000, le=64 << 20)
    """A longer document is published in parts; the limit of the broker must be as high."""


class Kafka:
    """Reads `kafka://[user@]host:port/TOPIC`, or one partition of it.

    Every message is read once per run: the cursor holds the next offset of each partition. A message with the same
    `livelm-key` as one of the last `dedupe_messages` is skipped; after a resume that window is read again.
    """

    Config: ClassVar[type[Settings]] = KafkaSettings

    def __init__(self, target: str, settings: KafkaSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI, or a file that cannot be read."""
        self._settings = settings or KafkaSettings()
        self._address = parse_address(target, "kafka", PORT, "TOPIC")
        self.bounded = self._settings.until_empty
        self.replayable = self._settings.partition >= 0
        self._options = connection_options(self._address, self._settings) | {
            "group.id": self._settings.group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",  # never somewhere else in silence
            "queued.max.messages.kbytes": QUEUED_KIB,
        }
        self._consumer: Consumer | None = None
        self._guard, self._using = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._drops = Drops(str(self._address))
        self._recent: dict[int, Recent] = {}
        self._patience = Patience(str(self._address), self._settings.patience_s, self._closed)
        self._is_down = False
        self._n_read = 0
        self._offsets: dict[int, int] = {}
        """The next offset of each partition; what is below was read."""
        self._ends: set[int] = set()
        """Partitions whose end was reached."""

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what comes after `cursor`, until `close` or, with `until_empty`, the end of what is there.

        Raises SourceError when no broker can be reached at first, or for longer than `patience_s` later.
        """
        self._offsets = {} if cursor is None else self._parse(cursor)
        self._ends.clear()
        try:
            with self._guard:
                if not self._closed.is_set() and self._consumer is None:
                    self._consumer = Consumer(self._options | {"error_cb": self._note}, logger=log)
            self._assign(self._look(CONNECT_S))
            looked = time.monotonic()
            while not self._closed.is_set() and not (self.bounded and self._ends >= self._offsets.keys()):
                for message in self._consume():
                    document = self._document(message)
                    if document is not None and not self._closed.is_set():
                        self._n_read += 1
                        yield document, self._cursor()
                if self._is_down or time.monotonic() - looked > METADATA_S:
                    self._look_again()
                    looked = time.monotonic()
        except KafkaException as error:
            raise SourceError(f"{self._address} cannot be read: {error.args[0].str()}.") from None
        except _Closed:
            return

    def commit(self, cursor: Cursor) -> None:
        """Tell the group that everything up to `cursor` is safe; returns at once."""
        offsets = self._parse(cursor)
        with self._guard:
            if self._consumer is not None and not self._closed.is_set():
                places = [TopicPartition(self._address.path, p, offset) for p, offset in offsets.items()]
                try:
                    self._consumer.commit(offsets=places, asynchronous=True)
                except KafkaException as error:  # a hint only: the cursor of the run is what counts
                    log.warning("%s: the group was not told: %s", self._address, error.args[0].str())

    def observe(self) -> dict[str, Json]:
        """What was read, from how many partitions, and how often the brokers were away."""
        return {
            "n_read": self._n_read,
            "n_partitions": len(self._offsets),
            "n_reconnects": self._patience.n_losses,
            "drops": self._drops.counts(),
        }

    def close(self) -> None:
        """End `read` within a second."""
        self._closed.set()
        with self._guard:
            consumer, self._consumer = self._consumer, None
        if consumer is not None:
            leaving = threading.Thread(target=self._leave, args=[consumer], name="livelm-kafka", daemon=True)
            leaving.start()
            leaving.join(timeout=CLOSE_S)  # brokers that are away must not hold us up

    def describe(self) -> str:
        """One line for people."""
        ends = "ends when it is empty" if self.bounded else "never ends"
        again = "can be read again" if self.replayable else "cannot be read again (kept in the spool)"
        which = f" partition {self._settings.partition}" if self.replayable else ""
        return f"Kafka topic {self._address.path}{which} at {self._address.place}: {ends}, {again}"

    def _leave(self, consumer: Consumer) -> None:
        with self._using:  # the library must not be closed while it delivers
            consumer.close()

    def _consume(self) -> list[Message]:
        with self._using:
            return self._open().consume(BATCH, POLL_S)

    def _open(self) -> Consumer:
        consumer = self._consumer
        if consumer is None:
            raise _Closed
        return consumer

    def _look(self, seconds: float) -> set[int]:
        """The partitions to read. Raises SourceError when no broker answers or the topic is not there."""
        until = time.monotonic() + seconds
        while True:
            try:
                with self._using:
                    topic = self._open().list_topics(self._address.path, timeout=POLL_S * 2).topics[self._address.path]
            except KafkaException as error:
                if time.monotonic() > until:
                    raise SourceError(
                        f"Kafka at {self._address.place} cannot be reached: {error.args[0].str()}. Is a broker "
                        "running there, and do `user@`, credentials_file and tls say who may use it?"
                    ) from None
                continue
            partitions = set(topic.partitions)
            if self._settings.partition >= 0:
                partitions &= {self._settings.partition}
            if partitions:
                self._patience.reached()
                return partitions
            if time.monotonic() > until:
                which = f"no partition {self._settings.partition}" if topic.partitions else "no partitions"
                raise SourceError(f"{self._address} has {which}: create the topic, or correct its name.")

    def _look_again(self) -> None:
        """Whether there are partitions that were added; and while brokers are away, whether they are back."""
        try:
            partitions = self._look(0)
        except SourceError as error:
            if self._is_down:
                self._patience.wait(Lost(str(error)))
            return
        self._is_down = False
        if partitions - self._offsets.keys():
            self._assign(partitions | self._offsets.keys())

    def _assign(self, partitions: set[int]) -> None:
        """Seek to the offsets of the run, and as far before them as the window of keys reaches."""
        places: list[TopicPartition] = []
        for partition in sorted(partitions | self._offsets.keys()):
            place = TopicPartition(self._address.path, partition)
            with self._using:
                found = self._open().get_watermark_offsets(place, timeout=CONNECT_S)
            low, high = found or (0, 0)
            fresh = partition not in self._offsets
            offset = self._offsets.setdefault(partition, low)
            if offset > high:
                raise SourceError(
                    f"{self._address}: partition {partition} ends at offset {high}, but {offset} comes next: the topic "
                    "was made again or lost its end. Start a new run, or `livelm fork` this one."
                )
            if offset < low:
                self._drops.add("gone before it was read", f"partition {partition}, offsets to {low}", low - offset)
                self._offsets[partition] = offset = low
            self._recent[partition] = Recent(self._settings.dedupe_messages)
            place.offset = offset if fresh else max(low, offset - self._settings.dedupe_messages)
            places.append(place)
        with self._using:
            self._open().assign(places)

    def _document(self, message: Message) -> Document | None:
        """The document of a message; None when it was read before, repeats another, is none, or is an event."""
        if (error := message.error()) is not None:
            self._event(error, message)
            return None
        partition, offset, body = message.partition() or 0, message.offset() or 0, message.value() or b""
        self._ends.discard(partition)
        if partition not in self._offsets:
            return None  # from before the last `assign`
        where, headers = f"partition {partition} offset {offset}", _headers(message)
        name = headers.get(KEY)
        repeats = self._recent[partition].repeats(None if name is None else name.decode("latin-1"), offset)
        if offset < self._offsets[partition]:
            return None
        self._offsets[partition] = offset + 1
        if repeats:
            self._drops.add("published twice", where, level=logging.INFO)
            return None
        if (header := headers.get(HEADER)) is not None:
            try:
                return unpack(header, body)
            except MalformedMessage as error:
                self._drops.add("malformed", f"{where}, which has {error}")
                return None
        if not body:
            self._drops.add("empty", where)
            return None
        _, milliseconds = message.timestamp()
        at = datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat() if 0 <= milliseconds < 1 << 42 else None
        return Document(text=body, id=f"{self._address.path}/{partition}/{offset}", source="kafka", at=at)

    def _event(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._ends.add(message.partition() or 0)
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._assign(set(self._offsets))  # what was next is gone: says so, and goes on with what there is
        elif error.fatal() or code in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
        ):
            raise SourceError(f"{self._address} cannot be read: {error.str()}.")
        else:
            self._note(error)

    def _note(self, error: KafkaError) -> None:
        """Errors that the library overcomes by itself, but for all brokers being away for long."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            self._is_down = True

    def _cursor(self) -> Cursor:
        offsets = {str(partition): offset for partition, offset in sorted(self._offsets.items())}
        at: dict[str, Json] = {"topic": self._address.path, "partition": self._settings.partition}
        return Cursor("kafka", at | {"offsets": offsets})

    def _parse(self, cursor: Cursor) -> dict[int, int]:
        match dict(cursor.at):
            case {"topic": str(topic), "partition": int(partition), "offsets": dict(offsets)} if (
                cursor.source == "kafka"
                and (topic, partition) == (self._address.path, self._settings.partition)
                and offsets
                and all(isinstance(p, str) and p.isdecimal() for p in offsets)
                and all(isinstance(offset, int) and offset >= 0 for offset in offsets.values())
            ):
                return {int(p): offset for p, offset in offsets.items()}
        raise SourceError(
            f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to {self._address}: "
            "this run was reading something else."
        )


class KafkaPublisher:
    """Publishes to `kafka://[user@]host:port/TOPIC` with an idempotent producer; stored by all in-sync replicas.

    What the library sends again is stored once. What is published again after a crash comes with the same
    `livelm-key`, goes to the same partition and is skipped by the reader within its window.
    """

    def __init__(self, target: str, settings: KafkaSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI, or a file that cannot be read."""
        self._settings = settings or KafkaSettings()
        self._address = parse_address(target, "kafka", PORT, "TOPIC")
        timeout_ms = int(min(max(self._settings.patience_s, CONNECT_S) * 1000, 2**31 - 1))
        self._producer = Producer(
            connection_options(self._address, self._settings)
            | {
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": timeout_ms,
                "message.max.bytes": self._settings.max_message_bytes,
            },
            logger=log,
        )
        self._reached = False

    def publish(self, batch: Sequence[Document]) -> None:
        """Store them all, in order per partition. Raises SourceError when no broker answers, or one refuses."""
        failures: list[str] = []

        def confirm(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error.str())

        try:
            if not self._reached:
                self._producer.list_topics(self._address.path, timeout=CONNECT_S)
                self._reached = True
            for document in batch:
                for piece in pieces(document, self._settings.max_message_bytes - HEADER_ROOM):
                    name = key(piece)
                    headers: list[tuple[str, str | bytes | None]] = [(HEADER, pack(piece)), (KEY, name)]
                    self._produce(piece.text, name, headers, confirm)
            while self._producer.flush(CONNECT_S):
                continue  # the library gives up on each message after `patience_s`
        except KafkaException as error:
            failures.append(error.args[0].str())
        if failures:
            raise SourceError(
                f"Kafka at {self._address.place} does not store what is published: {failures[0]} "
                f"({len(failures)} of {len(batch)} documents). Publish them again when it is back."
            )

    def close(self) -> None:
        """Everything was stored already: there is nothing to wait for."""
        self._producer.purge()

    def _produce(self, text: bytes, name: str, headers: list[tuple[str, str | bytes | None]], confirm: Confirm) -> None:
        while True:
            try:
                self._producer.produce(self._address.path, text, name, headers=headers, on_delivery=confirm)
                self._producer.poll(0)
                return
            except BufferError:  # the library's queue is full: that is the pipelining
                self._producer.poll(POLL_S)


def connection_options(address: Address, settings: KafkaSettings) -> dict[str, Any]:
    """Where the brokers are and who asks, in the words of the library. Raises ConfigError."""
    protocol = "ssl" if settings.tls else "plaintext"
    options: dict[str, Any] = {"bootstrap.servers": address.place, "client.id": "livelm"}
    if settings.ca_file:
        options["ssl.ca.location"] = settings.ca_file
    if address.user:
        secret = {"sasl.username": address.user, "sasl.password": read_secret(settings)}
        protocol, options = f"sasl_{protocol}", options | secret | {"sasl.mechanism": settings.sasl_mechanism}
    return options | {"security.protocol": protocol}


def _headers(message: Message) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, value in message.headers() or []:
        found[name] = value.encode() if isinstance(value, str) else value or b""
    return found
