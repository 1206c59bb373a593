"""Which hosts, ports and addresses may be connected to, and what addresses a host has."""

import asyncio
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pydantic import Field

from livelm.config import Settings
from livelm.errors import SourceError

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""All addresses of a host name, as text; raises OSError, as `socket.getaddrinfo` does."""

MAX_ADDRESSES = 64
"""Addresses of one name that are checked and tried; an answer with more is refused."""


class AddressSettings(Settings):
    """What may be connected to, and how names are looked up."""

    allow: tuple[str, ...] = ()
    """Hosts, as "host" (every port) or "host:port", that may be fetched although private or on another port."""
    ports: tuple[int, ...] = (80, 443)
    """The ports that may be connected to on every other host."""
    dns_threads: int = Field(default=32, ge=1, le=1024)
    """Most look-ups under way at once."""
    dns_timeout_s: float = Field(default=10.0, gt=0, le=60)
    """A name that is not found by then counts as unreachable."""
    dns_ttl_s: float = Field(default=300.0, ge=0, le=86400)
    """How long an answer is remembered."""
    dns_failure_ttl_s: float = Field(default=60.0, ge=0, le=86400)
    """How long a failed look-up is remembered."""
    dns_entries: int = Field(default=100_000, ge=1)
    """Most names remembered; the one used longest ago goes first."""


class Refused(SourceError):
    """An address, a name or a port that must not be connected to; `reason` is a stable word such as "loopback"."""

    def __init__(self, host: str, port: int, reason: str, address: str = "") -> None:
        """`address` is the one at fault, when the host is a name."""
        shown = f"{host}:{port}" + (f" ({address})" if address and address != host else "")
        super().__init__(f"{shown} is refused: {reason}. Name it in the setting `allow` if it is meant.")
        self.reason = reason


class Unresolved(SourceError):
    """A name without an address; `temporary` says whether asking again may help."""

    def __init__(self, host: str, detail: str, *, temporary: bool) -> None:
        """`detail` is what the look-up said."""
        super().__init__(f"the host name {host!r} has no address: {detail}.")
        self.temporary = temporary


# The IANA special-purpose registries (RFC 6890 and later), with a word for each. `ipaddress.is_global` alone would let
# multicast, 6to4 and NAT64 through, and knows other ranges in every version of Python.
_SPECIAL: list[tuple[IPv4Network | IPv6Network, str]] = [
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier_nat"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link_local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "six_to_four"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "mapped_ipv4"),
        ("::ffff:0:0/96", "mapped_ipv4"),
        ("::ffff:0:0:0/96", "mapped_ipv4"),
        ("64:ff9b::/96", "nat64"),
        ("64:ff9b:1::/48", "nat64"),
        ("2001::/32", "teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "six_to_four"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link_local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
]
_UNICAST = IPv6Network("2000::/3")


@lru_cache(maxsize=65536)
def special(address: str) -> str | None:
    """Why an IP address, as text, is not a public one; None when it is. Raises ValueError for anything else.

    >>> special("169.254.169.254"), special("::ffff:8.8.8.8"), special("1.1.1.1")
    ('link_local', 'mapped_ipv4', None)
    """
    parsed = ip_address(address)
    for network, reason in _SPECIAL:
        if parsed in network:
            return reason
    if isinstance(parsed, IPv6Address) and (parsed.scope_id is not None or parsed not in _UNICAST):
        return "not_global"
    return None if parsed.is_global else "not_global"


class AddressPolicy:
    """Decides about hosts, ports and addresses; everything that is not public needs an entry in `allow`."""

    def __init__(self, settings: AddressSettings) -> None:
        """Take the two lists of the settings."""
        self._allow = frozenset(_spelled(entry) for entry in settings.allow)
        self._ports = frozenset(settings.ports)

    def allows(self, host: str, port: int) -> bool:
        """Whether a setting names this host, so that any address will do."""
        if not self._allow:
            return False
        host = _spelled(host)
        return host in self._allow or f"{host}:{port}" in self._allow

    def check_name(self, host: str, port: int) -> None:
        """Raises Refused when neither the port nor the name, whatever its addresses, may be connected to."""
        if self.allows(host, port):
            return
        if port not in self._ports:
            raise Refused(host, port, "port")
        name = _spelled(host)
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: loopback, whatever a name server says
            raise Refused(host, port, "loopback")

    def check_address(self, host: str, port: int, address: str) -> None:
        """Raises Refused when `host` is not allowed by name and `address` is not public."""
        if not self.allows(host, port) and (reason := special(address)) is not None:
            raise Refused(host, port, reason, address)


class Resolver:
    """Host to checked addresses, remembered; look-ups of one name that come together share one question."""

    def __init__(self, settings: AddressSettings, lookup: Lookup | None = None) -> None:
        """`lookup` replaces the system's name service, for tests."""
        self.policy = AddressPolicy(settings)
        self._settings = settings
        self._lookup = lookup or SystemLookup(settings.dns_threads)
        self._known: OrderedDict[str, tuple[float, tuple[str, ...] | Unresolved]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """All addresses of `host`, every one of them checked; a literal address is its own only one.

        Raises Refused when any of them may not be connected to, and Unresolved when there are none.
        """
        self.policy.check_name(host, port)
        address = literal(host)
        addresses = (address,) if address is not None else await self._find(_spelled(host))
        for address in addresses:
            self.policy.check_address(host, port, address)
        return addresses

    async def _find(self, name: str) -> tuple[str, ...]:
        expires, answer = self._known.get(name, (0.0, None))
        if answer is None or expires < time.monotonic():
            task = self._asking.get(name)
            if task is None:
                task = self._asking[name] = asyncio.create_task(self._ask(name))
                task.add_done_callback(lambda done: _forget(self._asking, name, done))
            return await asyncio.shield(task)  # whoever stops waiting must not stop the others
        self._known.move_to_end(name)
        if isinstance(answer, Unresolved):
            raise Unresolved(name, "it had none a moment ago", temporary=answer.temporary)
        return answer

    async def _ask(self, name: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(self._settings.dns_timeout_s):
                found = await self._lookup(name)
            addresses = tuple(dict.fromkeys(str(ip_address(address)) for address in found))
            if not 0 < len(addresses) <= MAX_ADDRESSES:
                raise Unresolved(name, f"the answer has {len(addresses)} addresses", temporary=False)
        except Unresolved as error:
            self._remember(name, error)
            raise
        except TimeoutError:
            error = Unresolved(name, f"no answer in {self._settings.dns_timeout_s:g} s", temporary=True)
            self._remember(name, error)
            raise error from None
        except (OSError, ValueError) as reason:
            temporary = isinstance(reason, OSError) and reason.errno == socket.EAI_AGAIN
            error = Unresolved(name, str(reason), temporary=temporary)
            self._remember(name, error)
            raise error from None
        self._remember(name, addresses)
        return addresses

    def close(self) -> None:
        """Stop waiting for answers; safe to call more than once."""
        for task in list(self._asking.values()):
            task.cancel()

    def _remember(self, name: str, answer: tuple[str, ...] | Unresolved) -> None:
        failed = isinstance(answer, Unresolved)
        ttl_s = self._settings.dns_failure_ttl_s if failed else self._settings.dns_ttl_s
        self._known[name] = (time.monotonic() + ttl_s, answer)
        self._known.move_to_end(name)
        while len(self._known) > self._settings.dns_entries:
            self._known.popitem(last=False)


class SystemLookup:
    """The system's name service, in threads that never hold up the end of the process."""

    def __init__(self, n_threads: int) -> None:
        """At most `n_threads` questions are under way; the others wait."""
        self._free = asyncio.Semaphore(n_threads)

    async def __call__(self, host: str) -> Sequence[str]:
        """Every address of `host`. Raises OSError."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def settle(found: list[str] | OSError) -> None:
            self._free.release()
            if answer.done():  # nobody waits any more
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, _getaddrinfo(host))

        # a thread for each question and not an executor, whose threads Python waits for at exit: up to 30 s in glibc
        threading.Thread(target=work, name="name-lookup", daemon=True).start()
        return await answer


def _getaddrinfo(host: str) -> list[str] | OSError:
    try:  # bytes, because the codec that Python uses for text refuses names that exist
        return [str(info[4][0]) for info in socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)]
    except OSError as error:
        return error
    except ValueError as error:  # a name outside ASCII, or one with a NUL
        return OSError(socket.EAI_NONAME, str(error))


def literal(host: str) -> str | None:
    """A host that is an IP address, in its one usual spelling; None for a name."""
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return None


def _spelled(host: str) -> str:
    """One spelling of a host, or of "host:port": IPv6 in brackets, no dot at the end, lower case."""
    host = host.lower().rstrip(".")
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def _forget(asking: dict[str, asyncio.Task[tuple[str, ...]]], name: str, done: asyncio.Task[tuple[str, ...]]) -> None:
    del asking[name]
    if not done.cancelled():
        done.exception()  # looked at: everyone who waited may have gone
