"""Fetch one page over HTTP: checked addresses, own redirects, and a bound on everything that a server can stretch."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

import ada_url
import aiohttp
import yarl
from pydantic import Field

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.web.address import AddressSettings, Lookup, Refused, Resolver, Unresolved
from livelm.sources.web.connect import ROUTE, CheckedConnector, Route, tls_context
from livelm.sources.web.decode import ACCEPT_ENCODING, BodyDecoder, Bounds, DecodeError

DAY_S = 86400.0
REDIRECTS = frozenset((301, 302, 303, 307, 308))
MAX_URL_CHARACTERS = 2000
MAX_HEADERS = 128
_READ_BYTES = 64 << 10
"""What aiohttp may hold of a body that was not asked for yet."""

CheckRedirect = Callable[[str], Awaitable[str | None]]
CheckHead = Callable[[int, Mapping[str, str]], str | None]


class FetchSettings(Settings):
    """How pages are fetched, and when a server is given up."""

    user_agent: str = Field(min_length=1, max_length=512, pattern=r"^[\x20-\x7e]+$")
    """Who asks, with a way to reach them; there is no default."""
    in_flight: int = Field(default=600, ge=1, le=65536)
    """Most requests at once; further ones wait, and their time does not count yet."""
    connections_per_host: int = Field(default=2, ge=1, le=1024)
    """Most connections to one host and port, busy and idle together."""
    keepalive_s: float = Field(default=15.0, gt=0, le=300)
    """How long an idle connection is kept for the next page of its host."""
    max_idle: int = Field(default=1024, ge=0, le=65536)
    """Most idle connections in all; each, like each request in flight, is an open file (`ulimit -n`)."""
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """For one page with all its redirects, from the look-up of the name to the last byte."""
    connect_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """For one attempt to connect."""
    min_bytes_per_s: float = Field(default=1000.0, ge=0)
    """A body that comes more slowly than this, on average, is given up; 0 leaves it to `timeout_s`."""
    slow_grace_s: float = Field(default=5.0, ge=0)
    """Seconds in which a body need not have come at that rate."""
    max_wire_bytes: int = Field(default=2_000_000, ge=1)
    """Most bytes of a body as sent, before decoding."""
    max_body_bytes: int = Field(default=10_000_000, ge=1)
    """Most bytes of a decoded body."""
    max_ratio: float = Field(default=100.0, ge=1)
    """Most decoded bytes for each one sent, for bodies over a mebibyte."""
    max_header_bytes: int = Field(default=32768, ge=256, le=1 << 20)
    """Most bytes of all header lines of an answer together (and of any one of them)."""
    max_redirects: int = Field(default=5, ge=0, le=20)
    """Most redirects on the way to a page."""
    keep_raw: bool = False
    """Keep bodies as sent as well, for a WARC."""
    ca_file: str = ""
    """Certificates of authorities to trust besides the system's, in PEM."""
    address: AddressSettings = AddressSettings()


class FetchError(SourceError):
    """A page that could not be had.

    `reason` is a stable word: "bad_url", "refused_address", "dns", "connection", "tls", "timeout", "too_slow",
    "protocol", "incomplete", "bad_encoding", "bomb", "too_large", "bad_redirect", "redirect_loop",
    "too_many_redirects", or what `check_redirect` or `check_head` returned. `retry` says whether asking again later may
    help, `after_s` how long to wait before, where that is known.
    """

    def __init__(
        self, url: str, reason: str, detail: str, *, retry: bool = False, after_s: float | None = None
    ) -> None:
        """`detail` is a sentence for people."""
        text = f"{url[:MAX_URL_CHARACTERS]} was not fetched ({reason}): {' '.join(detail.split())[:500]}"
        super().__init__("".join(c if c.isprintable() else "?" for c in text))  # servers wrote parts of it
        self.reason = reason
        self.retry = retry
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer; bodies are read of answers 200 to 299 only."""

    url: str
    """Where the answer came from, after all redirects."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case; several lines of one name are joined by ", "."""
    body: bytes = b""
    """Decoded."""
    raw: bytes | None = None
    """As sent (but for chunked framing), when `keep_raw` is set."""
    n_wire_bytes: int = 0
    """Bytes of the body as sent."""
    truncated: bool = False
    """Whether the body had more than `read_at_most` bytes; never without that."""
    elapsed_s: float = 0.0
    """From the first look-up to the last byte, redirects included."""
    redirects: tuple[str, ...] = ()
    """The addresses that led here, the first one asked for first."""
    address: str = ""
    """The IP address that answered."""


class _Place(NamedTuple):
    """A parsed URL."""

    href: str
    host: str
    """IPv6 without brackets."""


class _Body(NamedTuple):
    """What was read after the headers."""

    decoded: bytes = b""
    raw: bytes | None = None
    n_wire_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """One hop of a `get`: what was asked for, and what the hops before it took."""

    place: _Place
    headers: Mapping[str, str]
    check_head: CheckHead | None
    read_at_most: int | None
    spent_s: float = 0.0
    hops: tuple[str, ...] = ()


class Fetcher:
    """Fetches many pages at once over shared connections. Use it within one event loop: `async with Fetcher(...)`."""

    def __init__(self, settings: FetchSettings, lookup: Lookup | None = None) -> None:
        """`lookup` replaces the system's name service, for tests."""
        self._settings = settings
        self.resolver = Resolver(settings.address, lookup)
        self._in_flight = asyncio.Semaphore(settings.in_flight)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make ready to fetch. Raises SourceError when `ca_file` cannot be read."""
        settings = self._settings
        connector = CheckedConnector(
            self.resolver.policy,
            tls_context(settings.ca_file),
            keepalive_s=settings.keepalive_s,
            per_host=settings.connections_per_host,
            max_idle=settings.max_idle,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={
                "User-Agent": settings.user_agent,
                "Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1",
                "Accept-Encoding": ACCEPT_ENCODING,
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # a proxy would connect to addresses that nobody checked
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            read_bufsize=_READ_BYTES,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=MAX_HEADERS,
        )

    async def close(self) -> None:
        """Close every connection; safe to call more than once."""
        self.resolver.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def get(
        self,
        url: str,
        *,
        etag: str | None = None,
        last_modified: str | None = None,
        check_redirect: CheckRedirect | None = None,
        check_head: CheckHead | None = None,
        read_at_most: int | None = None,
    ) -> Response:
        """Fetch `url`; with `etag` or `last_modified` of an earlier answer, the status may be 304.

        Redirects are followed when `check_redirect` (robots.txt of the target) returns no reason against it.
        `check_head` looks at status and headers before the body is read, and may return a reason to leave it. A body
        of more than `read_at_most` decoded bytes is cut there (robots.txt) instead of refused. Raises FetchError.
        """
        headers = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        wish = _Wish(
            place=_parse(url),
            headers={name: value for name, value in headers.items() if value and value.isprintable()},
            check_head=check_head,
            read_at_most=read_at_most,
        )
        while True:
            async with self._in_flight:  # not while `check_redirect` runs: it may fetch a robots.txt itself
                response = await self._within(self._settings.timeout_s - wish.spent_s, wish)
            location = response.headers.get("location")
            if response.status not in REDIRECTS or location is None:
                return response
            hops = (*wish.hops, wish.place.href)
            place = self._next(location, hops)
            # without the headers: an ETag belongs to the page it came with
            wish = replace(wish, place=place, headers={}, spent_s=response.elapsed_s, hops=hops)
            if check_redirect is not None and (reason := await check_redirect(place.href)) is not None:
                raise FetchError(hops[0], reason, f"it leads to {place.href}, which must not be fetched.")

    def _next(self, location: str, hops: tuple[str, ...]) -> _Place:
        try:
            target = _parse(location, hops[-1])
        except FetchError as error:
            raise FetchError(hops[0], "bad_redirect", str(error)) from None
        if target.href in hops:
            raise FetchError(hops[0], "redirect_loop", f"it leads back to {target.href}.")
        if len(hops) > self._settings.max_redirects:
            raise FetchError(hops[0], "too_many_redirects", f"there are more than {self._settings.max_redirects}.")
        return target

    async def _within(self, left_s: float, wish: _Wish) -> Response:
        """One request and its answer within the time; all that can go wrong becomes a FetchError."""
        fail = partial(FetchError, wish.place.href)
        limit, slow = asyncio.timeout(left_s), False
        try:
            async with limit:
                end = limit.when()
                try:
                    return await self._ask(wish, limit)
                finally:
                    slow = limit.when() != end
        except Refused as error:
            raise fail("refused_address", str(error)) from None
        except Unresolved as error:
            after_s = self._settings.address.dns_failure_ttl_s  # until then only the remembered failure comes back
            raise fail("dns", str(error), retry=error.temporary, after_s=after_s) from None
        except DecodeError as error:
            raise fail(error.reason, str(error)) from None
        except TimeoutError as error:
            if slow and limit.expired():
                raise fail("too_slow", f"less than {self._settings.min_bytes_per_s:g} bytes/s.", retry=True) from None
            raise fail("timeout", str(error) or f"no end after {self._settings.timeout_s:g} s.", retry=True) from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise fail("tls", f"{error}.") from None
        except aiohttp.ClientPayloadError as error:
            raise fail("incomplete", f"{error}.", retry=True) from None
        except (aiohttp.ClientConnectionError, OSError, RuntimeError) as error:  # uvloop raises RuntimeError too
            if (route := ROUTE.get(None)) is not None and route.refused:
                raise fail("refused_address", f"{route.refused} had not been checked.") from None
            raise fail("connection", f"{error}.", retry=True) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise fail("protocol", f"{type(error).__name__}: {error}.") from None

    async def _ask(self, wish: _Wish, limit: asyncio.Timeout) -> Response:
        if self._session is None:
            raise SourceError("the fetcher is not open: call `open` first.")
        begin = time.monotonic()
        href, host = wish.place.href, wish.place.host
        target = yarl.URL(href, encoded=True)
        if target.raw_host != host:  # what is checked is what is fetched
            raise ValueError(f"two readings of the host: {target.raw_host!r} and {host!r}")
        port = target.port or 0
        route = Route(host, port, await self.resolver.resolve(host, port))
        ROUTE.set(route)
        async with self._session.get(target, headers=wish.headers, allow_redirects=False) as answer:
            status, headers = answer.status, self._headers(answer)
            if status < 200:
                raise ValueError(f"status {status}, which nobody asked for")
            body = _Body()
            if status < 300:
                reason = None if wish.check_head is None else wish.check_head(status, headers)
                if reason is not None:
                    raise FetchError(href, reason, "its headers say so.")
                body = await self._read(answer, headers, wish.read_at_most, limit)
        return Response(
            url=href,
            status=status,
            headers=headers,
            body=body.decoded,
            raw=body.raw,
            n_wire_bytes=body.n_wire_bytes,
            truncated=body.truncated,
            elapsed_s=wish.spent_s + time.monotonic() - begin,
            redirects=wish.hops,
            address=route.peer,
        )

    def _headers(self, answer: aiohttp.ClientResponse) -> dict[str, str]:
        if sum(len(name) + len(value) for name, value in answer.raw_headers) > self._settings.max_header_bytes:
            raise ValueError(f"more than {self._settings.max_header_bytes} bytes of headers")
        headers: dict[str, str] = {}
        for name, value in answer.headers.items():
            if not value.isascii():  # aiohttp keeps bytes that are not UTF-8 as lone surrogates, which nobody can write
                value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    async def _read(
        self, answer: aiohttp.ClientResponse, headers: Mapping[str, str], at_most: int | None, limit: asyncio.Timeout
    ) -> _Body:
        settings = self._settings
        bounds = Bounds(settings.max_body_bytes if at_most is None else at_most, settings.max_ratio)
        decoder = BodyDecoder(headers.get("content-encoding", ""), bounds)
        raw: bytearray | None = bytearray() if settings.keep_raw else None
        end, begin, n_wire = limit.when(), asyncio.get_running_loop().time(), 0
        try:
            if (answer.content_length or 0) > settings.max_wire_bytes and at_most is None:
                raise DecodeError("too_large", f"it announces {answer.content_length} bytes.")
            while not answer.content.at_eof():
                if settings.min_bytes_per_s and end is not None and not answer.content.is_eof():
                    # every byte that came buys as much time as it may take at the lowest rate
                    limit.reschedule(min(end, begin + settings.slow_grace_s + n_wire / settings.min_bytes_per_s))
                piece = await answer.content.readany()
                n_wire += len(piece)
                if n_wire > settings.max_wire_bytes:
                    raise DecodeError("too_large", f"it has more than {settings.max_wire_bytes} bytes.")
                if raw is not None:
                    raw += piece
                decoder.feed(piece)
            body, truncated = decoder.finish(), False
        except DecodeError as error:
            if at_most is None or error.reason != "too_large":
                raise
            body, truncated = bytes(decoder.body), True
        return _Body(body, None if raw is None else bytes(raw), n_wire, truncated)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that an answer asks us to stay away (RFC 9110, 10.2.3: seconds, or a date), at most a day.

    `now` is Unix time. None when nothing is asked, or nothing that can be understood.

    >>> retry_after({"retry-after": "120"}, now=0.0)
    120.0
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return DAY_S if len(text) > 6 else min(float(text), DAY_S)
    try:
        asked = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(asked, 0.0), DAY_S)


def backoff_s(failures: int, chance: random.Random, *, first_s: float = 10.0, most_s: float = 3600.0) -> float:
    """Seconds to leave a host alone after `failures` (1, 2, …) in a row: exponential with full jitter.

    Evenly between 0 and `first_s` doubled at each failure, so that workers that failed together do not come back
    together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    return chance.uniform(0.0, min(most_s, first_s * 2.0 ** min(max(failures, 1) - 1, 32)))


def _parse(text: str, origin: str | None = None) -> _Place:
    """Parse as browsers do, with the library that the frontier uses too. Raises FetchError."""
    try:
        url = ada_url.URL(text, base=origin)
    except ValueError as error:
        raise FetchError(text, "bad_url", f"it cannot be parsed ({error}).") from None
    if url.protocol not in ("http:", "https:"):
        raise FetchError(text, "bad_url", f"{url.protocol!r} is neither http: nor https:.")
    if url.username or url.password:
        raise FetchError(text, "bad_url", "it has a user name or a password in it.")
    href, _, _ = url.href.partition("#")  # a fragment is never sent
    if len(href) > MAX_URL_CHARACTERS:
        raise FetchError(text, "bad_url", f"it has {len(href)} characters, more than {MAX_URL_CHARACTERS}.")
    return _Place(href, url.hostname.strip("[]"))
