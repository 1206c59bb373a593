"""Redis Streams (also Valkey): read one by its entry ids, tell a consumer group how far a run is, and publish to one.

Reading is XREAD after the cursor, not XREADGROUP: a stream has one order and the run knows its place, so there is no
list of pending entries to grow between two checkpoints, nothing to claim from dead consumers (XAUTOCLAIM), and any
number of learners may read one stream. A commit moves the group's marker (XGROUP SETID), so that `XINFO GROUPS` shows
what is safe; with `forget` it also trims the stream. What producers trim (MAXLEN) before it was read is gone, and Redis
keeps no account of it: size the stream for the longest absence of the learner.
"""

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import redis
from pydantic import Field
from redis.backoff import NoBackoff
from redis.retry import Retry

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.brokers.address import CONNECT_S, Address, BrokerSettings, parse_address, read_secret
from livelm.sources.brokers.message import HEADER, KEY, Drops, MalformedMessage, Recent, key, pack, pieces, unpack
from livelm.sources.brokers.patience import Lost, Patience
from livelm.types import Cursor, Document, Json

PORT = 6379
BATCH = 500
BLOCK_MS = 500
"""How long one XREAD waits; `close` is noticed after it at the latest."""
IN_FLIGHT = 64
TEXT = "text"
"""The field that holds the text."""
MARKER_S = 1.0
TROUBLE = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError)
"""What another attempt may overcome."""
PUBLISH = """
if tonumber(ARGV[1]) == 0 or redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) then
  if tonumber(ARGV[2]) > 0 then
    return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
  end
  return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
end
return false
"""
"""Adds an entry unless its key was added within the window: one step for everybody else, also in the server's log."""

log = logging.getLogger(__name__)


class RedisSettings(BrokerSettings):
    """How a stream is read and written."""

    group: str = Field(default="livelm", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """The consumer group whose last delivered id shows what is durable here."""
    text_field: str = TEXT
    """The field of an entry that holds the text."""
    forget: bool = False
    """Delete from the stream what is durable here (XTRIM MINID), since it lives in RAM; for one reader."""
    max_entries: int = Field(default=0, ge=0)
    """Published streams are trimmed to about so many entries, read or not; 0: never."""
    duplicate_window_s: float = Field(default=600.0, ge=0, le=86_400)
    """How long what is published again is recognised; 0: not at all."""


class Redis:
    """Reads `redis://[user@]host:port/STREAM`; a stream that is not there yet is waited for.

    Entries are whole documents as `RedisPublisher` writes them, or plain ones: the field `text`, or the only one.
    """

    Config: ClassVar[type[Settings]] = RedisSettings
    replayable = True  # one stream has one order

    def __init__(self, target: str, settings: RedisSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI, or a file that cannot be read."""
        self._settings = settings or RedisSettings()
        self._address = parse_address(target, "redis", PORT, "STREAM")
        self.bounded = self._settings.until_empty
        self._client = _client(self._address, self._settings)
        self._closed = threading.Event()
        self._drops = Drops(str(self._address))
        self._recent = Recent(self._settings.dedupe_messages)
        self._patience = Patience(str(self._address), self._settings.patience_s, self._closed)
        self._marker = _Marker(self._client, self._address.path, self._settings)
        self._n_read = self._place = 0

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what comes after `cursor`, until `close` or, with `until_empty`, the end of what is there.

        Raises SourceError when Redis cannot be reached at first, or for longer than `patience_s` later.
        """
        last = "0-0" if cursor is None else self._parse(cursor)
        fresh = True
        while not self._closed.is_set():
            try:
                if fresh:
                    self._begin(last)
                    fresh = False
                entries = self._entries(last)
            except TROUBLE as error:
                if not self._closed.is_set():
                    self._lost(error)
                fresh = True
                continue
            except redis.RedisError as error:
                raise SourceError(f"{self._address} cannot be read: {error}.") from None
            if not entries and self.bounded:
                return
            for name, fields in entries:
                document = self._document(name, fields)
                last = name
                if self._closed.is_set():
                    return
                if document is not None:
                    self._n_read += 1
                    yield document, Cursor("redis", {"stream": self._address.path, "id": name})

    def commit(self, cursor: Cursor) -> None:
        """Show (and with `forget` use) that everything up to `cursor` is safe; returns at once."""
        self._marker.move(self._parse(cursor))

    def observe(self) -> dict[str, Json]:
        """What was read, and how often Redis was away."""
        return {"n_read": self._n_read, "n_reconnects": self._patience.n_losses, "drops": self._drops.counts()}

    def close(self) -> None:
        """End `read` within half a second, after the last commit was sent."""
        self._closed.set()
        self._marker.close()
        self._client.close()

    def describe(self) -> str:
        """One line for people."""
        ends = "ends when it is empty" if self.bounded else "never ends"
        return f"Redis stream {self._address.path} at {self._address.place}: {ends}, can be read again"

    def _begin(self, last: str) -> None:
        """After a connection was made: is the stream the one we know? And read the window of keys again."""
        found = self._client.type(self._address.path)
        if found not in (b"stream", b"none"):
            raise SourceError(f"{self._address} is a {found.decode()}, not a stream. Name the key of a stream.")
        if found == b"none":
            if last != "0-0" or self.bounded:
                raise SourceError(f"{self._address}: there is no such stream; it was deleted, lost, or never written.")
            log.info("%s: there is no such stream yet; waiting for it", self._address)
        else:
            end = _field(self._client.xinfo_stream(self._address.path), "last-generated-id").decode()
            if _order(end) < _order(last):
                raise SourceError(
                    f"{self._address} ends at {end}, but {last} was read before: Redis lost its end (is `appendonly` "
                    "on?), or the stream was made again. Start a new run, or `livelm fork` this one."
                )
        self._patience.reached()
        self._recent.clear()
        self._place = 0
        if last != "0-0" and self._settings.dedupe_messages:
            before = self._client.xrevrange(self._address.path, last, "-", self._settings.dedupe_messages)
            for _, fields in reversed(before):
                self._repeats(fields)

    def _entries(self, last: str) -> list[tuple[str, dict[bytes, bytes]]]:
        block = None if self.bounded else BLOCK_MS
        answer: Any = self._client.xread({self._address.path: last}, count=BATCH, block=block)
        self._patience.reached()
        found = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
        entries: list[tuple[str, dict[bytes, bytes]]] = []
        for part in found:
            # the newer protocol nests the entries of a stream once more
            for name, fields in part[0] if part and isinstance(part[0], list) else part:
                entries.append((name.decode(), fields or {}))
        return entries

    def _document(self, name: str, fields: dict[bytes, bytes]) -> Document | None:
        """The document of an entry; None when it repeats another or is none."""
        if self._repeats(fields):
            self._drops.add("published twice", f"entry {name}", level=logging.INFO)
            return None
        text = fields.get(self._settings.text_field.encode())
        if (header := fields.get(HEADER.encode())) is not None:
            try:
                return unpack(header, text or b"")
            except MalformedMessage as error:
                self._drops.add("malformed", f"entry {name}, which has {error}")
                return None
        if text is None and len(fields) == 1:
            (text,) = fields.values()
        if text is None:
            self._drops.add("no text", f"entry {name}, which has no field {self._settings.text_field!r}")
            return None
        if not text:
            self._drops.add("empty", f"entry {name}")
            return None
        milliseconds = int(name.partition("-")[0])
        at = datetime.fromtimestamp(milliseconds / 1e3, UTC).isoformat() if milliseconds < 1 << 42 else None
        return Document(text=text, id=f"{self._address.path}/{name}", source="redis", at=at)

    def _repeats(self, fields: dict[bytes, bytes]) -> bool:
        self._place += 1
        name = fields.get(KEY.encode())
        return self._recent.repeats(None if name is None else name.decode("latin-1"), self._place)

    def _lost(self, error: Exception) -> None:
        self._client.close()
        if isinstance(error, redis.BusyLoadingError):  # after a crash, for seconds per gigabyte
            self._patience.answered()
        self._patience.wait(Lost(f"Redis at {self._address.place} cannot be reached: {error}."))

    def _parse(self, cursor: Cursor) -> str:
        match dict(cursor.at):
            case {"stream": str(stream), "id": str(name)} if (
                cursor.source == "redis" and stream == self._address.path and re.fullmatch(r"\d{1,20}-\d{1,20}", name)
            ):
                return name
        raise SourceError(
            f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to {self._address}: "
            "this run was reading something else."
        )


class _Marker:
    """Tells the group in a thread of its own how far the run is; only the newest place counts."""

    def __init__(self, client: Any, stream: str, settings: RedisSettings) -> None:
        self._client, self._stream, self._settings = client, stream, settings
        self._changed = threading.Condition()
        self._wanted = self._done = "0-0"
        self._closed = False
        self._thread: threading.Thread | None = None

    def move(self, name: str) -> None:
        with self._changed:
            if self._closed or _order(name) <= _order(self._wanted):
                return
            self._wanted = name
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="livelm-redis", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=MARKER_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._wanted == self._done and not self._closed:
                    self._changed.wait()
                if self._wanted == self._done:
                    return
                name, last = self._wanted, self._closed
            try:
                self._tell(name)
                self._done = name
            except redis.RedisError as error:  # a marker only: the cursor of the run is what counts
                log.warning(
                    "redis stream %s: the group %s was not moved: %s", self._stream, self._settings.group, error
                )
                if last:
                    return
                with self._changed:
                    self._changed.wait(MARKER_S)

    def _tell(self, name: str) -> None:
        try:
            self._client.xgroup_setid(self._stream, self._settings.group, name)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._client.xgroup_create(self._stream, self._settings.group, name)
        if self._settings.forget:
            self._client.xtrim(
                self._stream, minid=name, approximate=False
            )  # keeps `name`: the window of keys ends there


class RedisPublisher:
    """Publishes to `redis://[user@]host:port/STREAM`.

    A script adds each document together with a key that lives for `duplicate_window_s`, so what is published again,
    by this process or the next one after a crash, is stored once. How durable "stored" is, the server's `appendfsync`
    decides: with `everysec` the death of the server loses nothing, a power failure the last second.
    """

    def __init__(self, target: str, settings: RedisSettings | None = None) -> None:
        """Raises ConfigError for what is not such a URI, or a file that cannot be read."""
        self._settings = settings or RedisSettings()
        self._address = parse_address(target, "redis", PORT, "STREAM")
        self._client = _client(self._address, self._settings)
        self._script = self._client.register_script(PUBLISH)
        self._closed = threading.Event()
        self._patience = Patience(str(self._address), self._settings.patience_s, self._closed)

    def publish(self, batch: Sequence[Document]) -> None:
        """Store them all, in this order. Raises SourceError when Redis stays away, or refuses."""
        parts = [piece for document in batch for piece in pieces(document, 64 << 20)]
        for start in range(0, len(parts), IN_FLIGHT):
            while not self._store(parts[start : start + IN_FLIGHT]):
                if self._closed.is_set():
                    raise SourceError(f"{self._address} was closed with {len(parts) - start} documents not published.")

    def close(self) -> None:
        """Leave the server."""
        self._closed.set()
        self._client.close()

    def _store(self, documents: Sequence[Document]) -> bool:
        stream, window_ms = self._address.path, int(self._settings.duplicate_window_s * 1000)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for document in documents:
                    name = key(document)
                    keys = [stream, f"livelm:{{{stream}}}:{name}"]  # braces: both on one node of a cluster
                    fields = [HEADER, pack(document), KEY, name, self._settings.text_field, document.text]
                    self._script(keys, [window_ms, self._settings.max_entries, *fields], client=pipeline)
                pipeline.execute()
            self._patience.reached()
            return True
        except TROUBLE as error:
            self._client.close()
            if isinstance(error, redis.BusyLoadingError):
                self._patience.answered()
            self._patience.wait(Lost(f"Redis at {self._address.place} cannot be reached: {error}."))
            return False
        except redis.RedisError as error:
            raise SourceError(f"{self._address} does not store what is published: {error}.") from None


def _client(address: Address, settings: BrokerSettings) -> Any:  # its own types mix text, bytes and coroutines
    options: dict[str, Any] = {"ssl": True, "ssl_ca_certs": settings.ca_file or None} if settings.tls else {}
    return redis.Redis(
        address.host,
        address.port,
        username=address.user or None,
        password=read_secret(settings) or None,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=CONNECT_S,
        retry=Retry(NoBackoff(), 0),  # `Patience` tries again, and says so
        **options,
    )


def _order(name: str) -> tuple[int, int]:
    milliseconds, _, sequence = name.partition("-")
    return int(milliseconds), int(sequence)


def _field(values: Any, name: str) -> bytes:
    """From an answer whose keys are text or bytes, as the protocol has it."""
    value = values.get(name, values.get(name.encode()))
    return value if isinstance(value, bytes) else str(value).encode()
