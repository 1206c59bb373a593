"""Find the addresses that a feed may be read from: a name is looked up once for each connection."""

from collections.abc import Sequence

from livelm.sources.feeds.reconnect import Broken
from livelm.sources.web.address import AddressPolicy, AddressSettings, Refused, Resolver, Unresolved


class Reach:
    """Looks names up and refuses private addresses unless a setting names the host."""

    def __init__(self, allow: Sequence[str], port: int | None) -> None:
        """`port` is the one that the user wrote, so it may be used; redirects may lead to it, 80 and 443."""
        ports = (80, 443) if port is None else (80, 443, port)
        self._resolver = Resolver(
            AddressSettings(allow=tuple(allow), ports=ports, dns_threads=1, dns_ttl_s=0, dns_failure_ttl_s=0)
        )

    @property
    def policy(self) -> AddressPolicy:
        """What decides about them."""
        return self._resolver.policy

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses to which one may connect. Raises Broken."""
        try:
            return tuple(await self._resolver.resolve(host, port))
        except Refused as error:
            raise Broken(str(error), lasting=True) from None
        except Unresolved as error:
            raise Broken(str(error), lasting=not error.temporary) from None
