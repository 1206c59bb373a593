"""A connector for aiohttp that connects to the checked address of a host and to no other."""

import asyncio
import errno
import socket
import ssl
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.tracing import Trace

from livelm.errors import SourceError
from livelm.sources.web.address import AddressPolicy, Refused, literal

MAX_ANSWERS = 16
"""Interim answers (status 1xx) and the final one that are taken for one request."""


@dataclass(slots=True)
class Route:
    """Where the request of the running task may go."""

    host: str
    port: int
    addresses: tuple[str, ...]
    """The checked ones."""
    peer: str = field(default="", init=False)
    """The one that was connected to."""
    refused: str = field(default="", init=False)
    """What was not connected to, because it had not been checked."""


ROUTE: ContextVar[Route] = ContextVar("ROUTE")
"""Set before each request; the connector reads it in the same task (or in one that it started)."""


class CheckedConnector(aiohttp.TCPConnector):
    """Connects only to the addresses of `ROUTE`, whatever aiohttp makes of the host, and looks at who answered.

    aiohttp asks no resolver about literal addresses, so the last word has the socket factory, which sees them all.
    How many connections are busy is up to the caller; idle ones are bounded here, per host and in all.
    """

    def __init__(
        self, policy: AddressPolicy, tls: ssl.SSLContext, *, keepalive_s: float, per_host: int, max_idle: int
    ) -> None:
        """A connection waits `keepalive_s` for its next request; `per_host` at most, `max_idle` in all."""
        super().__init__(
            ssl=tls,
            resolver=_Pinned(),
            use_dns_cache=False,  # the addresses of ROUTE, not those of an earlier request
            socket_factory=_socket_to_checked,
            keepalive_timeout=keepalive_s,
            limit=0,
            limit_per_host=per_host,
        )
        self._factory = partial(_Handler, loop=asyncio.get_running_loop())
        self._policy = policy
        self._max_idle = max_idle
        self._idle: OrderedDict[ResponseHandler, None] = OrderedDict()

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        """A new connection or one kept from before; either way its peer is checked before anything is sent."""
        connection = await super().connect(req, traces, timeout)
        protocol, transport, route = connection.protocol, connection.transport, ROUTE.get()
        peer = transport.get_extra_info("peername") if transport is not None else None
        if protocol is None or peer is None:
            connection.close()
            raise aiohttp.ServerDisconnectedError("the connection was lost before it was used")
        try:
            self._policy.check_address(route.host, route.port, peer[0])
        except Refused:
            connection.close()
            raise
        route.peer = peer[0]
        self._idle.pop(protocol, None)
        connection.add_callback(lambda: self._rest(protocol))
        return connection

    def _rest(self, protocol: ResponseHandler) -> None:
        """The request is over. What can be used again counts; of too many, the one that waited longest is closed."""
        if not protocol.should_close:
            self._idle[protocol] = None
        while len(self._idle) > self._max_idle:
            self._idle.popitem(last=False)[0].close()  # aiohttp drops it from its pool when it comes across it


class _Handler(ResponseHandler):
    """Hangs up on a server that answers more often than it was asked.

    aiohttp takes "100 Continue" for ever, without letting anybody else work, and collects whole answers that come on
    an idle connection.
    """

    _n_answers = 0

    def set_response_params(self, **options: Any) -> None:
        """A new request begins."""
        self._n_answers = 0
        super().set_response_params(**options)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Called by the parser for each answer."""
        self._n_answers += 1
        if self._n_answers <= MAX_ANSWERS:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.set_exception(HttpProcessingError(message=f"more than {MAX_ANSWERS} answers to one request"))
            self.transport.abort()


class _Pinned(AbstractResolver):
    """Gives aiohttp what was checked; it never looks anything up, so no second answer can differ from the first."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in ROUTE.get().addresses
        ]

    async def close(self) -> None:
        pass  # it holds nothing


def _socket_to_checked(info: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, place = info
    route = ROUTE.get()
    if place[1] != route.port or literal(str(place[0])) not in route.addresses:
        route.refused = f"{place[0]}:{place[1]}"
        raise PermissionError(errno.EACCES, f"{route.refused} was not checked")  # aiohttp expects an OSError here
    return socket.socket(family, kind, protocol)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Certificates are always verified; `ca_file` ("" for none) adds authorities. Raises SourceError."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise SourceError(f"ca_file is {ca_file!r}, which holds no certificates in PEM: {error}.") from None
    return context
