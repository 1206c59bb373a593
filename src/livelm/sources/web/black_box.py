"""Remember, across the death of a process, which page it was reading: a page that did it twice is not read again.

HTML parsers are native code; a page that crashes or hangs one must not do so again after every restart. Once proves
nothing: a process that something else killed was reading some page too. The addresses are written to a mapped file,
which outlives the process (though not the machine) and costs a microsecond.
"""

import mmap
import struct
from pathlib import Path

SIZE = 4096
"""Bytes of a place for one address, its length included."""
DEATHS = 2
"""After so many in a row a page is known for what it does."""
_LENGTH = struct.Struct(">H")
_READING, _SUSPECT, _N_DEATHS = 0, SIZE, 2 * SIZE


class BlackBox:
    """The page that is being read, if any, and the one that was being read when a process died last."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; `culprit` is what the last `DEATHS` processes that died were reading."""
        with path.open("a+b") as file:
            file.truncate(2 * SIZE + 1)
            self._map = mmap.mmap(file.fileno(), 2 * SIZE + 1)
        if read := self._get(_READING):
            again = read == self._get(_SUSPECT)
            self._map[_N_DEATHS] = min(DEATHS, self._map[_N_DEATHS] + 1) if again else 1
            self._put(_SUSPECT, read)
            self.clear()
        self.culprit = self._get(_SUSPECT).decode("utf-8", "replace") if self._map[_N_DEATHS] >= DEATHS else None

    def note(self, address: str) -> None:
        """The page at this address is about to be read."""
        self._put(_READING, address.encode()[: SIZE - _LENGTH.size])

    def clear(self) -> None:
        """It was read, and nothing happened."""
        _LENGTH.pack_into(self._map, _READING, 0)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def _get(self, place: int) -> bytes:
        begin = place + _LENGTH.size
        return self._map[begin : begin + min(*_LENGTH.unpack_from(self._map, place), SIZE - _LENGTH.size)]

    def _put(self, place: int, address: bytes) -> None:
        begin = place + _LENGTH.size
        self._map[begin : begin + len(address)] = address
        _LENGTH.pack_into(self._map, place, len(address))
