"""What a protocol gives to a feed: events, and connections that can continue where the last one ended."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

Place = str | int | None
"""Continue after this event id, or from this time in microseconds; None: from now."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came."""

    data: bytes
    """Empty: nothing but a new id."""
    id: str | None = None
    """What the server sent with it as the place to continue from."""


class Wire(Protocol):
    """One server to which one connects again and again."""

    def begin(self) -> Place:
        """Where a new run begins."""
        ...

    def check(self, place: Place) -> Place:
        """The place of a cursor. Raises ValueError when it cannot be one of this protocol."""
        ...

    def order(self, time_us: int | None, shape: str) -> int | None:
        """The time of an event where a time says how far one has read; None where that is not so."""
        ...

    def open(self, place: Place) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Connect and continue after `place`. Entering and iterating raise `Broken`, which is also how events end."""
        ...
