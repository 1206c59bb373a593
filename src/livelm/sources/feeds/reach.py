"""Connect to checked addresses only: a name is looked up once for each connection, and what was found is used."""

import socket
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import AddrInfoType

from livelm.sources.feeds.reconnect import Broken
from livelm.sources.web.address import AddressSettings, Refused, Resolver, Unresolved


class Reach:
    """Looks names up and refuses private addresses unless a setting names the host."""

    def __init__(self, allow: Sequence[str], port: int | None) -> None:
        """`port` is the one that the user wrote, so it may be used; redirects may lead to it, 80 and 443."""
        ports = (80, 443) if port is None else (80, 443, port)
        self._resolver = Resolver(
            AddressSettings(allow=tuple(allow), ports=ports, dns_threads=1, dns_ttl_s=0, dns_failure_ttl_s=0)
        )

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses to which one may connect. Raises Broken."""
        try:
            return tuple(await self._resolver.resolve(host, port))
        except Refused as error:
            raise Broken(str(error), lasting=True) from None
        except Unresolved as error:
            raise Broken(str(error), lasting=not error.temporary) from None


class Pinned(AbstractResolver):
    """Answers aiohttp with the checked addresses, and makes sockets to no other (it asks nobody about literals)."""

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """What was checked, whatever the host."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self.addresses
        ]

    def socket_to(self, info: AddrInfoType) -> socket.socket:
        """A socket for aiohttp. Raises OSError for an address that was not checked."""
        family, kind, protocol, _, target = info
        if str(target[0]) not in self.addresses:
            raise OSError(f"{target[0]} was not checked")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    async def close(self) -> None:
        """Nothing is held."""
