"""NATS JetStream: read a stream by a durable consumer that a run's checkpoints acknowledge, and publish to one."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from nats.aio.client import Client
from nats.js.api import DiscardPolicy, PubAck, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import Field

from livelm.config import Settings
from livelm.errors import ConfigError, SourceError
from livelm.sources.brokers.address import CONNECT_S, Address, BrokerSettings, parse_address
from livelm.sources.brokers.message import HEADER, Drops, MalformedMessage, Recent, key, pack, pieces, unpack
from livelm.sources.brokers.nats_channel import TROUBLE, Channel, Delivery, Loop, Wanted, connect, said
from livelm.sources.brokers.patience import Lost, Patience
from livelm.types import Cursor, Document, Json

PORT = 4222
MESSAGE_ID = "Nats-Msg-Id"
POLL_S = 0.2
FLUSH_S = 1.0
IN_FLIGHT = 64
"""Messages published and not yet confirmed; 512 were slower (11,042/s instead of 20,000/s)."""
HEADER_ROOM = 72 << 10
"""Bytes of the largest message that are left to the headers."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class NatsSettings(BrokerSettings):
    """How a JetStream stream is read and written."""

    durable: str = Field(default="livelm", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """The durable consumer that remembers on the server what was acknowledged; one learner each."""
    max_unacknowledged: int = Field(default=1_000_000, ge=1000, le=100_000_000)
    """Messages read since the last checkpoint at which the server stops to deliver more."""
    max_message_bytes: int = Field(default=1 << 20, ge=4096, le=64 << 20)
    """A longer document is published in parts; the limit of the server (1 MiB unless changed) also holds."""
    duplicate_window_s: float = Field(default=120.0, ge=0.1, le=86_400)
    """How long the server recognises what is published again, in a stream that livelm makes."""


@dataclass(slots=True)
class _Reading:
    """How far one `read` is."""

    sequence: int = 0
    created: str = ""
    consumer: str = ""
    drained: bool = False
    recent: Recent = field(default_factory=lambda: Recent(0))


class Nats:
    """Reads `nats://[user@]host:port/STREAM/SUBJECT` (SUBJECT may have wildcards; without it: all of the stream).

    Every message is read once per run: its stream sequence is the cursor, a resumed run seeks there, and the server is
    told with each checkpoint what it may forget (see `nats_channel` for how). A message that repeats the Nats-Msg-Id
    of one at most `dedupe_messages` sequences before is skipped: its producer tried again after the server's own
    window. After a resume that window is read again, except from a work queue, which no longer has it.

    One learner per durable consumer: a second one is refused while the first one asks for messages, and otherwise
    takes over, which the first one notices and reports.
    """

    Config: ClassVar[type[Settings]] = NatsSettings
    replayable = True  # one stream has one order, and what is not acknowledged is kept

    def __init__(self, target: str, settings: NatsSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI."""
        self._settings = settings or NatsSettings()
        self._address, self._stream, self._subject = _parse_target(target)
        self.bounded = self._settings.until_empty
        self._closed = threading.Event()
        self._guard = threading.Lock()
        self._loop: Loop | None = None
        self._channel: Channel | None = None
        self._committed = 0
        self._n_read = self._n_reconnects = 0
        self._drops = Drops(str(self._address))

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what comes after `cursor`, until `close` or, with `until_empty`, the end of what is there.

        Raises SourceError when the server cannot be reached at first, or for longer than `patience_s` later.
        """
        reading = _Reading(recent=Recent(self._settings.dedupe_messages))
        if cursor is not None:
            reading.sequence, reading.created = self._parse(cursor)
        self._committed = reading.sequence
        for deliveries in self._deliveries(reading):
            for delivery in deliveries:
                document = self._document(delivery, reading)
                reading.sequence = max(reading.sequence, delivery.sequence)
                reading.drained = delivery.n_behind == 0
                if document is not None and not self._closed.is_set():
                    self._n_read += 1
                    yield document, self._cursor(reading)
            if deliveries and deliveries[0].sequence <= self._committed:  # came again though it is durable here
                self._acknowledge(self._committed)

    def commit(self, cursor: Cursor) -> None:
        """Acknowledge everything up to `cursor`; returns at once. Raises SourceError for a foreign cursor."""
        sequence, _ = self._parse(cursor)
        self._committed = max(self._committed, sequence)
        self._acknowledge(sequence)

    def observe(self) -> dict[str, Json]:
        """What was read, what waits at the server, what waits for a checkpoint."""
        channel = self._channel
        return {
            "n_read": self._n_read,
            "n_behind": 0 if channel is None else channel.n_behind,
            "n_unacknowledged": 0 if channel is None else channel.n_unacknowledged,
            "n_reconnects": self._n_reconnects,
            "drops": self._drops.counts(),
        }

    def close(self) -> None:
        """End `read`, send the last acknowledgements, and leave. Safe from any thread, more than once."""
        self._closed.set()
        with self._guard:
            loop, channel = self._loop, self._channel
            self._loop = self._channel = None
        if loop is not None:
            if channel is not None:
                wait([loop.submit(channel.close())], timeout=FLUSH_S)
            loop.stop()

    def describe(self) -> str:
        """One line for people."""
        ends = "ends when it is empty" if self.bounded else "never ends"
        subject = f" subject {self._subject}" if self._subject else ""
        return f"NATS stream {self._stream}{subject} at {self._address.place}: {ends}, can be read again"

    def _deliveries(self, reading: _Reading) -> Iterator[list[Delivery]]:
        """Messages in order, over as many connections as it takes; each list is used up before the next is made."""
        patience = Patience(str(self._address), self._settings.patience_s, self._closed)
        while (channel := self._begin()) is not None:
            try:
                self._result(self._submit(channel.open(self._address, self._settings, self._wanted(reading))))
                patience.reached()
                self._check(channel, reading)
                ahead = self._submit(channel.fetch())
                while not self._closed.is_set() and not (self.bounded and reading.drained):
                    deliveries = self._result(ahead)
                    patience.reached()
                    ahead = self._submit(channel.fetch())  # the next ones arrive while these are read
                    yield deliveries
                return
            except CancelledError:
                return  # closed
            except Lost as error:
                if self._closed.is_set():
                    return
                with suppress(CancelledError):
                    self._submit(channel.close())
                patience.wait(error)
                self._n_reconnects = patience.n_losses

    def _begin(self) -> Channel | None:
        """A fresh channel; None once closed."""
        with self._guard:
            if self._closed.is_set():
                return None
            self._loop, self._channel = self._loop or Loop("livelm-nats"), Channel()
            return self._channel

    def _check(self, channel: Channel, reading: _Reading) -> None:
        """Note what the server says when a channel is open: who we are, what is missing, whether there is anything."""
        n_gone = channel.first - 1 - reading.sequence
        if reading.sequence and n_gone > 0 and channel.keeps:
            self._drops.add("gone before it was read", f"{n_gone} messages before {channel.first}", n_gone)
        reading.created, reading.consumer = channel.stream, channel.consumer
        reading.drained = not channel.n_behind
        reading.recent.clear()

    def _wanted(self, reading: _Reading) -> Wanted:
        return Wanted(
            stream=self._stream,
            subject=self._subject,
            durable=self._settings.durable,
            max_unacknowledged=self._settings.max_unacknowledged,
            read=reading.sequence,
            committed=self._committed,
            reach=self._settings.dedupe_messages,
            created=reading.created,
            mine=reading.consumer,
        )

    def _document(self, delivery: Delivery, reading: _Reading) -> Document | None:
        """The document of a message; None when it was read before, repeats another or is none."""
        message, where = delivery.message, f"message {delivery.sequence}"
        headers = message.headers or {}
        repeats = reading.recent.repeats(headers.get(MESSAGE_ID), delivery.sequence)
        if delivery.sequence <= reading.sequence:
            return None
        if repeats:
            self._drops.add("published twice", where, level=logging.INFO)
            return None
        if (header := headers.get(HEADER)) is not None:
            try:
                return unpack(header, message.data)
            except MalformedMessage as error:
                self._drops.add("malformed", f"{where}, which has {error}")
                return None
        if not message.data:
            self._drops.add("empty", where)
            return None
        at = datetime.fromtimestamp(delivery.at_ns / 1e9, UTC).isoformat()
        return Document(text=message.data, id=f"{self._stream}/{delivery.sequence}", source="nats", at=at)

    def _cursor(self, reading: _Reading) -> Cursor:
        at: dict[str, Json] = {"stream": self._stream, "subject": self._subject}
        return Cursor("nats", at | {"created": reading.created, "sequence": reading.sequence})

    def _parse(self, cursor: Cursor) -> tuple[int, str]:
        match dict(cursor.at):
            case {
                "stream": str(stream),
                "subject": str(subject),
                "created": str(created),
                "sequence": int(sequence),
            } if cursor.source == "nats" and (stream, subject) == (self._stream, self._subject) and sequence > 0:
                return sequence, created
        raise SourceError(
            f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to {self._address}: "
            "this run was reading something else."
        )

    def _acknowledge(self, sequence: int) -> None:
        with self._guard:
            if self._channel is not None and self._loop is not None:
                self._loop.submit(self._channel.acknowledge(sequence))

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        with self._guard:
            if self._loop is None:
                work.close()
                raise CancelledError
            return self._loop.submit(work)

    def _result(self, future: "Future[T]") -> T:
        """Wait for it. Raises CancelledError once closed."""
        while not wait([future], timeout=POLL_S).done:
            if self._closed.is_set():
                future.cancel()
        return future.result()


class NatsPublisher:
    """Publishes to `nats://[user@]host:port/STREAM/SUBJECT`; makes the stream when there is none (kept in files).

    Each message carries a Nats-Msg-Id made of what it is (`message.key`), so a document that is published again,
    by this process or the next one after a crash, is stored once. It is stored when `publish` returns: safe against
    the death of the server; against a power failure only if the server runs with `sync_interval: always`.
    """

    def __init__(self, target: str, settings: NatsSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI with a subject without wildcards."""
        self._settings = settings or NatsSettings()
        self._address, self._stream, self._subject = _parse_target(target)
        if not self._subject or re.search(r"[*>]", self._subject):
            raise ConfigError(
                f"{target!r} names no subject to publish to. Write it as nats://host:port/STREAM/SUBJECT."
            )
        self._closed = threading.Event()
        self._loop = Loop("livelm-nats-publish")
        self._client: Client | None = None
        self._jetstream: JetStreamContext | None = None
        self._most = 0
        self._patience = Patience(str(self._address), self._settings.patience_s, self._closed)

    def publish(self, batch: Sequence[Document]) -> None:
        """Store them all. Raises SourceError when the server stays away, or refuses."""
        rest = list(batch)
        while rest and not self._closed.is_set():
            try:
                rest = self._loop.submit(self._store(rest)).result()
                self._patience.reached()
            except Lost as error:
                self._patience.wait(error)
        if rest:
            raise SourceError(f"{self._address} was closed with {len(rest)} documents not published.")

    def close(self) -> None:
        """Leave the server."""
        if not self._closed.is_set():
            self._closed.set()
            if self._client is not None:
                wait([self._loop.submit(self._client.close())], timeout=FLUSH_S)
            self._loop.stop()

    async def _store(self, documents: list[Document]) -> list[Document]:
        """Publish them, `IN_FLIGHT` at a time; returns those to try again. Raises Lost when not one was stored."""
        jetstream, client = await self._connected(), self._client
        sent: list[tuple[int, asyncio.Future[PubAck]]] = []
        failed, trouble = set(range(len(documents))), ""
        try:
            for i, document in enumerate(documents):
                for piece in pieces(document, self._most):
                    if len(sent) >= IN_FLIGHT:
                        await _settle(client, sent[-IN_FLIGHT][1])
                    headers = {MESSAGE_ID: key(piece), HEADER: pack(piece)}
                    sent.append((i, await jetstream.publish_async(self._subject, piece.text, headers=headers)))
                failed.discard(i)
            for _, future in sent[-IN_FLIGHT:]:
                await _settle(client, future)
        except TROUBLE as error:
            trouble = said(error)
        for i, future in sent:
            if not future.done():
                failed.add(i)
            elif (error := future.exception()) is not None:
                failed.add(i)
                trouble = said(error)
        if len(failed) == len(documents) > 0:
            raise Lost(f"NATS at {self._address.place} does not store what is published: {trouble}.")
        return [documents[i] for i in sorted(failed)]

    async def _connected(self) -> JetStreamContext:
        if self._jetstream is None or self._client is None or not self._client.is_connected:
            if self._client is not None:
                await self._client.close()
            self._client = await connect(self._address, self._settings, _nothing)
            largest = await self._prepare(self._client)
            self._most = max(1024, min(self._settings.max_message_bytes, largest - HEADER_ROOM))
            self._jetstream = self._client.jetstream(timeout=CONNECT_S)
        return self._jetstream

    async def _prepare(self, client: Client) -> int:
        """Make the stream if there is none; returns the size of its largest message."""
        jetstream = client.jetstream(timeout=CONNECT_S)
        try:
            try:
                stream = await jetstream.stream_info(self._stream)
            except NotFoundError:
                window_s = self._settings.duplicate_window_s
                stream = await jetstream.add_stream(
                    StreamConfig(
                        name=self._stream,
                        subjects=[self._subject],
                        storage=StorageType.FILE,
                        discard=DiscardPolicy.NEW,  # a limit that somebody sets later makes us wait, and loses nothing
                        duplicate_window=window_s,
                    )
                )
                log.info("%s: made the stream (duplicates are recognised for %g s)", self._address, window_s)
            # asked once here: a header for it (Nats-Expected-Stream) would cost every reader of every message
            found = await jetstream.find_stream_name_by_subject(self._subject)
        except TROUBLE as error:
            raise Lost(f"NATS at {self._address.place} has no stream {self._stream!r}: {said(error)}.") from None
        if found != self._stream:
            raise SourceError(
                f"{self._address}: the subject {self._subject!r} goes to the stream {found!r}, not there."
            )
        largest = stream.config.max_msg_size or 0
        return min(client.max_payload, largest) if largest > 0 else client.max_payload


async def _settle(client: Client | None, future: "asyncio.Future[PubAck]") -> None:
    """Wait until this message is confirmed or refused. Raises OSError when that cannot happen any more."""
    until = time.monotonic() + CONNECT_S
    while not future.done():
        if client is None or not client.is_connected or time.monotonic() > until:
            raise ConnectionError("the confirmation does not come")
        await asyncio.wait([future], timeout=POLL_S)


async def _nothing() -> None:
    """A lost connection is noticed by the next `publish`."""


def _parse_target(target: str) -> tuple[Address, str, str]:
    """Broker, stream, and subject (may be empty). Raises ConfigError."""
    address = parse_address(target, "nats", PORT, "STREAM/SUBJECT")
    stream, _, subject = address.path.partition("/")
    if not re.fullmatch(r"[^\s.*>/\\]+", stream) or re.search(r"\s|^\.|\.\.|\.$", subject):
        raise ConfigError(f"{str(address)!r} names no stream and subject. Write nats://host:port/STREAM/SUBJECT.")
    return address, stream, subject
