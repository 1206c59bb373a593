"""Feeds over WebSockets, continued by a time in the query where the server takes one (Bluesky's Jetstream)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urlsplit

import zstandard
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import CloseCode
from websockets.uri import parse_uri

from livelm.config import Settings
from livelm.errors import ConfigError, SourceError
from livelm.sources.feeds.live import Live
from livelm.sources.feeds.reach import Reach
from livelm.sources.feeds.reconnect import Broken, refusal, user_agent
from livelm.sources.feeds.select import JETSTREAM
from livelm.sources.feeds.settings import WebSocketSettings
from livelm.sources.feeds.tally import Tally
from livelm.sources.feeds.wire import Event, Place

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_WINDOW_BYTES = 8 << 20
"""What a zstd frame may ask of memory (RFC 8878 has every decoder support 8 MB)."""
FRAMES = 8
"""Frames that wait in the library before it stops reading from the network."""
OVERSIZE = 4
"""The library must end a connection at a message over its limit, so that lies this many times above ours."""
AHEAD_US = 60_000_000
"""A clock may be a minute ahead; a time further in the future is wrong and says nothing about how far one has read."""


class WebSocket(Live):
    """The messages of one WebSocket, `wss://…`: continues by time where the server can (Jetstream's `cursor`).

    Where it cannot, a lost connection is a gap, and counted as one.
    """

    Config: ClassVar[type[Settings]] = WebSocketSettings

    def __init__(self, target: str, settings: WebSocketSettings | None = None) -> None:
        """`target` is the whole URL. Raises SourceError when it is none of ws or wss, ConfigError for a dictionary."""
        chosen = settings or WebSocketSettings()
        super().__init__("ws", target, chosen, lambda tally, _: WebSocketWire(target, chosen, tally))


class WebSocketWire:
    """Connects to one WebSocket, again and again."""

    def __init__(self, target: str, settings: WebSocketSettings, tally: Tally) -> None:
        """Raises SourceError when the target is no ws(s) URL, ConfigError when the dictionary cannot be used."""
        try:
            self._uri = parse_uri(target)
        except (InvalidURI, ValueError):
            raise SourceError(f"{target!r} is no WebSocket URL. Write it as wss://HOST/PATH.") from None
        self._target, self._settings, self._tally = target, settings, tally
        self._reach = Reach(settings.allow, self._uri.port)
        self._zstd = _decompressor(settings.zstd_dictionary)

    def begin(self) -> Place:
        """The time at which a new run begins."""
        return int(self._settings.from_cursor) if self._settings.from_cursor else None

    def check(self, place: Place) -> Place:
        """Raises ValueError for what is no time."""
        if isinstance(place, str | bool) or (place is not None and place < 0):
            raise ValueError(f"{place!r} is no time")
        return place

    def order(self, time_us: int | None, shape: str) -> int | None:
        """The event's time, when the server takes one to continue from."""
        parameter = self._settings.cursor_parameter
        continues = shape == JETSTREAM.name if parameter == "auto" else bool(parameter)
        if not continues or time_us is None or time_us > time.time() * 1e6 + AHEAD_US:
            return None
        return time_us

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncIterator[AsyncIterator[Event]]:
        """Connect, continuing a little before `place`; gives the events. Raises Broken."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                connection = await self._connect(self._address(place))
        except TimeoutError:
            raise Broken(f"no answer within {self._settings.connect_timeout_s:g} s") from None
        try:
            yield self._events(connection)
        finally:
            connection.transport.abort()  # a polite close could wait for a server that is gone

    async def _connect(self, uri: str) -> ClientConnection:
        """Try each checked address in turn."""
        failure: Exception | None = None
        for address in await self._reach.resolve(self._uri.host, self._uri.port):
            try:
                return await connect(
                    uri,
                    host=address,
                    port=self._uri.port,
                    proxy=None,  # a proxy of the environment would connect to an address of its own choice
                    user_agent_header=user_agent(self._settings.contact),
                    max_size=OVERSIZE * self._settings.max_event_bytes,
                    max_queue=FRAMES,
                    open_timeout=None,
                    ping_timeout=None,  # pongs are not read while the learner is slower; silence is judged by events
                )
            except InvalidStatus as error:
                response = error.response
                raise refusal(
                    response.status_code, response.reason_phrase, dict(response.headers.raw_items())
                ) from None
            except (OSError, WebSocketException, ValueError, EOFError) as error:
                failure = error
        raise Broken(f"cannot be reached: {failure}")

    def _address(self, place: Place) -> str:
        """The target, with the parameters that this connection adds in place of those of the same name."""
        added: dict[str, str] = {}
        if isinstance(place, int) and self._settings.cursor_parameter:
            name = "cursor" if self._settings.cursor_parameter == "auto" else self._settings.cursor_parameter
            added[name] = str(max(0, place - round(self._settings.rewind_s * 1e6)))
        if self._zstd is not None:
            added["compress"] = "true"
        parts = urlsplit(self._target)
        kept = [part for part in parts.query.split("&") if part and part.partition("=")[0] not in added]
        query = "&".join([*kept, *(f"{name}={quote(value)}" for name, value in added.items())])
        return parts._replace(query=query, fragment="").geturl()

    async def _events(self, connection: ClientConnection) -> AsyncIterator[Event]:
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_timeout_s):
                    message = await connection.recv(decode=False)
            except TimeoutError:
                raise Broken(f"nothing came for {self._settings.idle_timeout_s:g} s") from None
            except ConnectionClosed as error:
                raise self._ended(error) from None
            self._tally.n_bytes += len(message)
            data = self._plain(message)
            if data is None:
                self._tally.drop("malformed_frame")
            else:
                yield Event(data)

    def _ended(self, error: ConnectionClosed) -> Broken:
        if error.rcvd is None and error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
            self._tally.drop("too_large")
            limit = OVERSIZE * self._settings.max_event_bytes
            return Broken(f"a message was over {limit} bytes; raise max_event_bytes", stuck=True)
        return Broken(f"broke off: {error}")

    def _plain(self, message: bytes) -> bytes | None:
        """The message without its compression; None when it cannot be undone within the bounds."""
        if self._zstd is None or not message.startswith(ZSTD_MAGIC):
            return message
        limit = OVERSIZE * self._settings.max_event_bytes
        try:
            if zstandard.frame_content_size(message) > limit:  # believed by the library without a limit
                return None
            return self._zstd.decompress(message, max_output_size=limit)
        except zstandard.ZstdError:
            return None


def _decompressor(dictionary: str) -> zstandard.ZstdDecompressor | None:
    if not dictionary:
        return None
    try:
        known = zstandard.ZstdCompressionDict(Path(dictionary).expanduser().read_bytes())
    except (OSError, zstandard.ZstdError) as error:
        raise ConfigError(f"zstd_dictionary is {dictionary!r}, which cannot be read: {error}.") from None
    return zstandard.ZstdDecompressor(dict_data=known, max_window_size=MAX_WINDOW_BYTES)
