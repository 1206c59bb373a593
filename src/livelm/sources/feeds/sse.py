"""Server-sent events: the line protocol (html.spec.whatwg.org, 9.2) and its connection, with Last-Event-ID."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import aiohttp
from yarl import URL

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.feeds.live import Live
from livelm.sources.feeds.reach import Reach
from livelm.sources.feeds.reconnect import Backoff, Broken, refusal, user_agent
from livelm.sources.feeds.settings import SseSettings
from livelm.sources.feeds.tally import Tally
from livelm.sources.feeds.wire import Event, Place
from livelm.sources.web.address import Refused
from livelm.sources.web.connect import ROUTE, CheckedConnector, Route, tls_context

MAX_REDIRECTS = 5
MAX_ID_BYTES = 16 << 10
"""An id is sent back as a header, and servers refuse long ones; that of EventStreams has some hundred bytes."""
FIELD_BYTES = 64
"""More than any field's name and what surrounds it; a line may be so much longer than an event's data."""


@dataclass(slots=True)
class _Pending:
    """The event whose lines are arriving."""

    data: list[bytes]
    n_bytes: int = 0
    id: str | None = None
    too_large: bool = False


class Sse(Live):
    """The events of one URL, `sse:https://…`: continues by Last-Event-ID, waits as `retry:` says.

    Events without an id cannot be continued: a lost connection is then a gap, and counted as one.
    """

    Config: ClassVar[type[Settings]] = SseSettings

    def __init__(self, target: str, settings: SseSettings | None = None) -> None:
        """`target` is the URL. Raises SourceError when it is none of http or https."""
        chosen = settings or SseSettings()
        super().__init__("sse", target, chosen, lambda tally, backoff: SseWire(target, chosen, tally, backoff))


class SseParser:
    """Bytes to events, whatever the cuts between them. Bounded; an event cut off by the end is not delivered."""

    def __init__(self, max_event_bytes: int) -> None:
        self.retry_s: float | None = None
        """What the last `retry:` field asked for."""
        self.n_too_large = 0
        self._max_bytes = max_event_bytes
        self._line = bytearray()
        self._skips_line = False  # the line is too long: forget it up to its end
        self._after_cr = False
        self._at_start = True
        self._pending = _Pending([])

    def feed(self, piece: bytes) -> list[Event]:
        """The events that are complete with this piece."""
        events: list[Event] = []
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or piece.endswith(b"\r")
        lines = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for n, part in enumerate(lines):
            self._extend(part)
            if n < len(lines) - 1:
                event = self._end_line()
                if event is not None:
                    events.append(event)
        return events

    def _extend(self, part: bytes) -> None:
        if len(self._line) + len(part) > max(self._max_bytes, MAX_ID_BYTES) + FIELD_BYTES:
            self._line.clear()
            self._skips_line = True
        elif not self._skips_line:
            self._line += part

    def _end_line(self) -> Event | None:
        line = bytes(self._line)
        self._line.clear()
        if self._skips_line:
            self._skips_line = False
            self._pending.too_large = True
            self._pending.data.clear()
            return None
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        self._set_field(name, value.removeprefix(b" "))  # a comment is a field without a name
        return None

    def _set_field(self, name: bytes, value: bytes) -> None:
        pending = self._pending
        if name == b"data":
            pending.n_bytes += len(value) + 1
            pending.too_large = pending.too_large or pending.n_bytes - 1 > self._max_bytes
            if pending.too_large:
                pending.data.clear()
            else:
                pending.data.append(value)
        elif name == b"id" and b"\0" not in value and len(value) <= MAX_ID_BYTES:
            pending.id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_s = int(value[:12]) / 1000

    def _dispatch(self) -> Event | None:
        pending, self._pending = self._pending, _Pending([])
        if pending.too_large:
            self.n_too_large += 1
        if pending.data or pending.id is not None:
            return Event(b"\n".join(pending.data), pending.id)
        return None


class SseWire:
    """Connects to one URL of server-sent events, again and again."""

    def __init__(self, target: str, settings: SseSettings, tally: Tally, backoff: Backoff) -> None:
        """Raises SourceError when the target is no http(s) URL."""
        try:
            self._url = URL(target)
            known = self._url.scheme in ("http", "https") and bool(self._url.host)
        except ValueError:
            known = False
        if not known:
            raise SourceError(f"'sse:{target}' is no http or https URL. Write it as sse:https://HOST/PATH.")
        self._settings, self._tally, self._backoff = settings, tally, backoff
        self._reach = Reach(settings.allow, self._url.port)

    def begin(self) -> Place:
        """The id after which a new run begins."""
        return self._settings.from_cursor or None

    def check(self, place: Place) -> Place:
        """Raises ValueError for what is no id."""
        if isinstance(place, int):
            raise ValueError(f"{place} is no event id")
        return place

    def order(self, time_us: int | None, shape: str) -> int | None:
        """None: an id, not a time, says where to continue."""
        return None

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncIterator[AsyncIterator[Event]]:
        """Connect, continuing after `place`; gives the events. Raises Broken."""
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Cache-Control": "no-store",
            "User-Agent": user_agent(self._settings.contact),
        }
        if place is not None:
            headers["Last-Event-ID"] = str(place)
        connector = CheckedConnector(self._reach.policy, tls_context(""), keepalive_s=1, per_host=1, max_idle=1)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout) as session:
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    response = await self._follow(session, headers)
            except TimeoutError:
                raise Broken(f"no answer within {self._settings.connect_timeout_s:g} s") from None
            except Refused as error:
                raise Broken(str(error), lasting=True) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise Broken(f"cannot be reached: {error}") from None
            async with response:
                yield self._events(response)

    async def _follow(self, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Ask, and follow redirects, each to an address that was checked."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            host, port = url.host or "", url.port or 0
            ROUTE.set(Route(host, port, await self._reach.resolve(host, port)))
            response = await session.get(url, headers=headers, allow_redirects=False)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                self._check(response)
                return response
            response.close()
            target = url.join(URL(location))
            if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
                raise Broken(f"it redirects to {target}, which is no better than {url.scheme}", lasting=True)
            url = target
        raise Broken(f"more than {MAX_REDIRECTS} redirects", lasting=True)

    def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise refusal(response.status, response.reason or "", response.headers)
        if response.content_type != "text/event-stream":
            raise Broken(f"it answers with {response.content_type}, not with text/event-stream", lasting=True)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise Broken(f"it answers in the encoding {encoding}, which was not asked for", lasting=True)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
        parser = SseParser(self._settings.max_event_bytes)
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_timeout_s):
                    piece = await response.content.readany()
            except TimeoutError:
                raise Broken(f"nothing came for {self._settings.idle_timeout_s:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise Broken(f"broke off: {error}") from None
            if not piece:
                raise Broken("the server ended it")
            self._tally.n_bytes += len(piece)
            events = parser.feed(piece)
            for _ in range(parser.n_too_large):
                self._tally.drop("too_large")
            parser.n_too_large = 0
            self._backoff.asked_s = parser.retry_s if parser.retry_s is not None else self._backoff.asked_s
            for event in events:
                yield event
