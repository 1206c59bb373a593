"""Remember, across the death of a process, which page it was reading: that page is not read again.

HTML parsers are native code; a page that crashes or hangs one must not do so again after every restart. The address
is written to a mapped file, which outlives the process (though not the machine) and costs a microsecond.
"""

import mmap
import struct
from pathlib import Path

SIZE = 8192
_LENGTH = struct.Struct(">H")


class BlackBox:
    """The page that is being read, if any."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; `culprit` is what a process before this one was reading when it died."""
        with path.open("a+b") as file:
            file.truncate(SIZE)
            self._map = mmap.mmap(file.fileno(), SIZE)
        (length,) = _LENGTH.unpack_from(self._map)
        self.culprit = self._map[2 : 2 + length].decode("utf-8", "replace") if length else None

    def note(self, address: str) -> None:
        """The page at this address is about to be read."""
        data = address.encode()[: SIZE - 2]
        self._map[2 : 2 + len(data)] = data
        _LENGTH.pack_into(self._map, 0, len(data))

    def clear(self) -> None:
        """It was read, and nothing happened."""
        _LENGTH.pack_into(self._map, 0, 0)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
