"""Tell what is new from what a feed repeats after a connection was lost."""

import base64
import binascii
import struct
from collections import deque
from hashlib import blake2b

KEY_BYTES = 8
ENTRY = struct.Struct(f">{KEY_BYTES}sq")
"""How a cursor keeps an event: its key and its time in microseconds, -1 for none."""
MEMORY_EVENTS = 65_536
"""Keys remembered while running: 5 s of the busiest public feed several times over, about 10 MB."""


def key_of(identity: bytes) -> bytes:
    """8 bytes that stand for an event; a false match among 65,536 has a chance of 1 in 10^14."""
    return blake2b(identity, digest_size=KEY_BYTES).digest()


class Window:
    """The last `capacity` keys, and in ordered feeds the time before which everything counts as seen."""

    def __init__(self, capacity: int, floor: int | None = None) -> None:
        self.floor = floor
        """Microseconds; None while no event had a time."""
        self._capacity = capacity
        self._order: deque[tuple[bytes, int | None]] = deque()
        self._keys: set[bytes] = set()

    def seen(self, key: bytes, time_us: int | None) -> bool:
        """Whether the event was added before, or is older than what is remembered."""
        return key in self._keys or (time_us is not None and self.floor is not None and time_us < self.floor)

    def add(self, key: bytes, time_us: int | None) -> None:
        """Remember an event that was not seen."""
        if time_us is not None and self.floor is None:
            self.floor = time_us  # what came before the first event was never asked for
        self._order.append((key, time_us))
        self._keys.add(key)
        while len(self._order) > self._capacity:
            old, old_us = self._order.popleft()
            self._keys.discard(old)
            if old_us is not None:
                self.floor = max(self.floor or 0, old_us + 1)

    def dump(self) -> str:
        """What is remembered, oldest first, as base64."""
        packed = (ENTRY.pack(key, -1 if time_us is None else time_us) for key, time_us in self._order)
        return base64.b64encode(b"".join(packed)).decode("ascii")


class Seam:
    """Lets each event of a feed through once, over any number of connections, and over a restart by its cursor.

    Two windows: a long one of everything that came, while running; a short one of what was delivered, in every cursor.
    In an ordered feed both are exact as long as no event comes later than as many others as the window holds; in one
    without order (SSE), as long as the server repeats no more than that. An event without identity is always new.
    """

    def __init__(self, n_cursor_events: int, seen: str = "", floor: int | None = None) -> None:
        """Continue from what `state` gave. Raises ValueError when `seen` is not of that form."""
        try:
            entries = list(ENTRY.iter_unpack(base64.b64decode(seen, validate=True)))
        except (binascii.Error, struct.error) as error:
            raise ValueError(str(error)) from None
        self._long, self._short = Window(MEMORY_EVENTS, floor), Window(n_cursor_events, floor)
        for key, time_us in entries:
            for window in (self._long, self._short):
                window.add(key, None if time_us < 0 else time_us)

    def is_new(self, key: bytes | None, time_us: int | None) -> bool:
        """Whether this event did not come before; from now on it did. `time_us` only in a feed ordered by it."""
        if key is None:
            return True
        if self._long.seen(key, time_us):
            return False
        self._long.add(key, time_us)
        return True

    def deliver(self, key: bytes | None, time_us: int | None) -> tuple[str, int | None]:
        """What a cursor after this (new) event keeps: the last keys, and the time before which all was seen."""
        if key is not None:
            self._short.add(key, time_us)
        return self._short.dump(), self._short.floor
