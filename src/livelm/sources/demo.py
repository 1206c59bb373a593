"""Text that is on every machine with Python: the standard library's own source files, in a fixed order."""

import sysconfig
from collections.abc import Iterator

from livelm.sources.files import Files
from livelm.types import Cursor, Document

_LEFT_OUT = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})


class Demo:
    """The `.py` files of this Python's standard library; its tests and what was installed beside it are left out."""

    bounded = True
    replayable = True

    def __init__(self) -> None:
        self._files = Files([sysconfig.get_path("stdlib")], source="demo", wanted=_wanted)

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the modules in sorted order. Raises SourceError when this Python came without its library's source."""
        return self._files.read(cursor)

    def close(self) -> None:
        """End `read` at the next piece."""
        self._files.close()

    def describe(self) -> str:
        """One line for people."""
        return "demo, the standard library of this Python: ends by itself, can be read again"


def _wanted(name: str) -> bool:
    if name.endswith("/"):
        return name[:-1] not in _LEFT_OUT and not name.startswith(".")
    return name.endswith(".py")
