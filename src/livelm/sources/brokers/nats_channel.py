"""One connection to NATS and one durable pull consumer on it, in the thread of an event loop; ends at the first doubt.

How a learner holds on to hundreds of thousands of messages between two checkpoints:

- The server delivers each message once, in order, and numbers what it delivers. A number that is missing means that
  something was lost on the way or taken by somebody else: the channel ends, and the next one seeks back. So no
  delivery has to be repeated by a timer: `ACK_WAIT_S` is a day, nothing has to prolong a lease (`in_progress`), and
  what is repeated all the same is recognised by its sequence and skipped.
- Acknowledgements: AckPolicy ALL, one message for everything up to a checkpoint. A work queue allows only EXPLICIT,
  one small message for each document. `max_ack_pending` is `max_unacknowledged`: then the server waits.
- Seeking: the consumer is deleted and made again at the wanted place. Where acknowledged messages are deleted
  (interest, work queue) that place is after the last *committed* one, and what was read since comes again and is
  skipped; with limits, it is after the last one read. Interest must not lapse meanwhile: a second consumer holds it.
"""

import asyncio
import json
import threading
from array import array
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy, RetentionPolicy, StreamInfo
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from livelm.errors import SourceError, Unavailable
from livelm.sources.brokers.address import CONNECT_S, Address, BrokerSettings, read_secret, tls_context
from livelm.sources.brokers.patience import Lost

ACK_WAIT_S = 86_400.0
BATCH = 500
BATCH_BYTES = 8 << 20
"""A request asks for so many messages, or as many as fit into so many bytes."""
HEARTBEAT_S = 1.0
EXPIRES_S = 5.0
MADE_BY = "livelm: one learner; its place is kept in the run"
TROUBLE = (nats.errors.Error, APIError, OSError, asyncio.TimeoutError, EOFError)
"""What may go wrong between client and server."""

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own: heartbeats and acknowledgements go on while the reader is busy."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it there. Raises RuntimeError once stopped."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise

    def stop(self) -> None:
        """End the thread; what still runs is cancelled."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message and what the server says about it."""

    message: Msg
    sequence: int
    """In the stream."""
    at_ns: int
    """When it was stored, nanoseconds since 1970."""
    n_behind: int
    """How many more there were when it was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which consumer to make, and where it begins."""

    stream: str
    subject: str
    """A filter; empty: all of the stream."""
    durable: str
    max_unacknowledged: int
    read: int
    """The last sequence that was read."""
    committed: int
    """The last sequence that is durable here; at most `read`."""
    reach: int
    """How many sequences before that to deliver again, for the window of message ids."""
    created: str
    """The birth of the stream, as the cursor has it; empty: any."""
    mine: str
    """The birth of the consumer, when this learner made it before; else empty."""


class _Encrypted(Client):
    """Says nothing secret to a server that does not ask for TLS: the library would go on in the clear."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        return super()._connect_command()


async def connect(address: Address, settings: BrokerSettings, ended: Callable[[], Awaitable[None]]) -> Client:
    """A connection that never repairs itself: `ended` is called instead. Raises Lost naming host and port."""
    secret, options = read_secret(settings), {}
    if "BEGIN NATS USER JWT" in secret:
        options["user_credentials"] = settings.credentials_file
    elif address.user:
        options |= {"user": address.user, "password": secret}
    elif secret:
        options["token"] = secret
    if (tls := tls_context(settings)) is not None:
        options |= {"tls": tls, "tls_hostname": address.host}
    client = _Encrypted() if settings.tls else Client()
    heard: list[Exception] = []

    async def hear(error: Exception) -> None:
        heard[:] = [error]

    try:
        await asyncio.wait_for(
            client.connect(
                f"{'tls' if settings.tls else 'nats'}://{address.place}",
                name="livelm",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_S,
                ping_interval=20,
                error_cb=hear,
                closed_cb=ended,
                **options,
            ),
            CONNECT_S,
        )
    except ModuleNotFoundError as error:
        raise Unavailable(f"a NATS .creds file needs {error.name}: pip install nkeys.") from None
    except TROUBLE as error:
        await client.close()
        cause = heard[0] if heard and isinstance(error, nats.errors.NoServersError) else error
        raise Lost(
            f"NATS at {address.place} cannot be reached: {said(cause)}. Is `nats-server -js` running there, and do "
            "`user@` and credentials_file name who may use it?"
        ) from None
    return client


class Channel:
    """Delivers what `fetch` asks for and acknowledges; lives in the thread of the loop."""

    def __init__(self) -> None:
        self.client = Client()
        self.stream = self.consumer = ""
        """When they were made; a stream or consumer of the same name that was made again is another one."""
        self.keeps = True
        """Whether the stream keeps what is acknowledged."""
        self.first = 0
        """The first sequence that the stream still has."""
        self.n_behind = 0
        self._durable = ("", "")
        self._explicit = False
        self._messages: list[Delivery] = []
        self._arrived = asyncio.Event()
        self._lost: str | None = None
        self._n_requested = 0
        self._delivered = 0
        self._prefix = self._suffix = ""
        self._sequences, self._numbers = array("Q"), array("Q")
        """Of what is not acknowledged yet, in order: place in the stream, number of the delivery."""

    async def open(self, address: Address, settings: BrokerSettings, wanted: Wanted) -> None:
        """Connect and seek. Raises SourceError for what another attempt would not change, Lost for what it might."""
        self.client = await connect(address, settings, self._ended)
        jetstream = self.client.jetstream(timeout=CONNECT_S)
        try:
            stream = await jetstream.stream_info(wanted.stream)
            self._check(stream, wanted)
            await self._claim(jetstream, wanted)
            inbox = self.client.new_inbox()
            await self.client.subscribe(inbox, cb=self._take, pending_bytes_limit=0)
            consumer = await self._seek(jetstream, stream, wanted)
        except NotFoundError:
            raise Lost(
                f"NATS at {address.place} has no stream {wanted.stream!r}. Publish to it with `livelm crawl --to`, or "
                f"make it: nats stream add {wanted.stream} --subjects {wanted.subject or '...'!r}"
            ) from None
        except TROUBLE as error:
            raise Lost(f"NATS at {address.place} does not deliver {wanted.stream!r}: {said(error)}.") from None
        self.consumer, self.n_behind = str(consumer.created), consumer.num_pending or 0
        self._durable = (f"$JS.API.CONSUMER.MSG.NEXT.{wanted.stream}.{wanted.durable}", inbox)

    async def fetch(self) -> list[Delivery]:
        """The next messages, in order, as soon as there are any. Raises Lost once those before it were fetched."""
        while not self._messages:
            if self._lost is not None:
                raise Lost(self._lost)
            self._arrived.clear()
            await self._request()
            try:
                await asyncio.wait_for(self._arrived.wait(), 3 * HEARTBEAT_S)
            except TimeoutError:
                self._lost = f"no heartbeat for {3 * HEARTBEAT_S:g} s"
        messages, self._messages = self._messages, []
        await self._request()
        return messages

    async def acknowledge(self, sequence: int) -> None:
        """Let the server forget everything up to this place that was delivered here."""
        cut = bisect_right(self._sequences, sequence)
        sequences, numbers = self._sequences[:cut], self._numbers[:cut]
        del self._sequences[:cut], self._numbers[:cut]
        try:
            for i in range(0 if self._explicit else max(0, cut - 1), cut):
                await self.client.publish(f"{self._prefix}.1.{sequences[i]}.{numbers[i]}.0.0{self._suffix}")
                if i % BATCH == 0:
                    await asyncio.sleep(0)  # a work queue may have many: the heartbeats must not wait for them
        except TROUBLE:
            return  # the connection is gone; what was not acknowledged comes again, and is acknowledged then

    @property
    def n_unacknowledged(self) -> int:
        """Messages that the server holds for us."""
        return len(self._sequences)

    async def close(self) -> None:
        """Send what is waiting to be sent, and leave."""
        try:
            if self.client.is_connected:
                await self.client.flush(timeout=1)
        except TROUBLE:
            pass  # nothing more can be said to it
        finally:
            await self.client.close()

    def _check(self, stream: StreamInfo, wanted: Wanted) -> None:
        self.stream = str(stream.created)
        if wanted.created and wanted.created != self.stream:
            raise SourceError(
                f"the stream {wanted.stream!r} was made at {self.stream}, but the run was reading one made at "
                f"{wanted.created}: it was deleted and made again. Start a new run, or `livelm fork` this one."
            )
        if stream.state.last_seq < wanted.read:
            raise SourceError(
                f"the stream {wanted.stream!r} ends at message {stream.state.last_seq}, but {wanted.read} was read "
                "before: the server lost its end. Restore it, or start a new run."
            )
        self.keeps, self.first = stream.config.retention == RetentionPolicy.LIMITS, stream.state.first_seq
        self._explicit = stream.config.retention == RetentionPolicy.WORK_QUEUE

    async def _claim(self, jetstream: JetStreamContext, wanted: Wanted) -> None:
        """Make sure that nobody else learns by this durable consumer. Raises SourceError."""
        info = await _consumer(jetstream, wanted)
        if info is None or wanted.mine == str(info.created):
            return
        if not str(info.config.description).startswith("livelm"):
            raise SourceError(
                f"the consumer {wanted.durable!r} of stream {wanted.stream!r} was not made by livelm, which would have "
                "to delete it. Choose another name in `durable`."
            )
        for _ in range(int(EXPIRES_S) + 2):  # the requests of a learner that was killed are gone by then
            if wanted.mine or info is None or not info.num_waiting:
                break
            await asyncio.sleep(1)
            info = await _consumer(jetstream, wanted)
        if wanted.mine or (info is not None and info.num_waiting):
            raise SourceError(
                f"another learner reads stream {wanted.stream!r} by the consumer {wanted.durable!r}. Each needs its "
                "own: choose another name in `durable`, or stop the other one."
            )

    async def _seek(self, jetstream: JetStreamContext, stream: StreamInfo, wanted: Wanted) -> ConsumerInfo:
        base = wanted.read if self.keeps else wanted.committed
        start = max(1, base + 1 - wanted.reach)
        config = ConsumerConfig(
            durable_name=wanted.durable,
            description=MADE_BY,
            deliver_policy=DeliverPolicy.ALL if self._explicit or start == 1 else DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=None if self._explicit or start == 1 else start,
            ack_policy=AckPolicy.EXPLICIT if self._explicit else AckPolicy.ALL,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=wanted.max_unacknowledged,
            filter_subject=wanted.subject or None,
        )
        holds = stream.config.retention == RetentionPolicy.INTEREST
        hold = f"{wanted.durable}-hold"
        if holds:  # without an expiry: should we die here, the next learner finds everything still held
            await _remove(jetstream, wanted.stream, hold)
            held = config.evolve(durable_name=hold, ack_policy=AckPolicy.EXPLICIT)
            await jetstream.add_consumer(wanted.stream, held)
        await _remove(jetstream, wanted.stream, wanted.durable)
        info = await jetstream.add_consumer(wanted.stream, config)
        if holds:
            await _remove(jetstream, wanted.stream, hold)
        return info

    async def _request(self) -> None:
        if self._n_requested or self._lost is not None or len(self._messages) >= BATCH:
            return
        self._n_requested = BATCH
        wish = {
            "batch": BATCH,
            "max_bytes": max(BATCH_BYTES, 2 * self.client.max_payload),
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        subject, inbox = self._durable
        try:
            await self.client.publish(subject, json.dumps(wish).encode(), inbox)
        except TROUBLE as error:
            self._lost = said(error)

    async def _take(self, message: Msg) -> None:
        self._arrived.set()
        if not message.reply.startswith("$JS.ACK."):
            self._note_status(message)
        elif self._lost is None:
            tokens = message.reply.split(".")
            at = 5 if len(tokens) == 9 else 7  # the longer form names domain and account first
            sequence, number = int(tokens[at]), int(tokens[at + 1])
            if number != self._delivered + 1:
                self._lost = f"delivery {self._delivered + 1} is missing, {number} came"
                return
            self._delivered = number
            self._n_requested -= 1
            self._prefix, self._suffix = ".".join(tokens[: at - 1]), "".join("." + t for t in tokens[at + 4 :])
            if not self._sequences or sequence > self._sequences[-1]:
                self._sequences.append(sequence)
                self._numbers.append(number)
            self.n_behind = int(tokens[at + 3])
            self._messages.append(Delivery(message, sequence, int(tokens[at + 2]), self.n_behind))
            if not self._n_requested:
                await self._request()

    def _note_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":
            return  # a heartbeat
        ended = status in ("404", "408") or "MaxBytes" in description or "Batch Completed" in description
        self._n_requested = 0
        if not ended:
            self._lost = f"the server says {status} {description}".strip()

    async def _ended(self) -> None:
        self._lost = self._lost or "the connection was closed"
        self._arrived.set()


def said(error: BaseException) -> str:
    """What an error of client or server says, in a few words."""
    if isinstance(error, APIError):
        return error.description or type(error).__name__
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {CONNECT_S:g} s"
    return str(error).removeprefix("nats: ") or type(error).__name__


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _consumer(jetstream: JetStreamContext, wanted: Wanted) -> ConsumerInfo | None:
    try:
        return await jetstream.consumer_info(wanted.stream, wanted.durable)
    except NotFoundError:
        return None


async def _remove(jetstream: JetStreamContext, stream: str, consumer: str) -> None:
    try:
        await jetstream.delete_consumer(stream, consumer)
    except NotFoundError:
        return
