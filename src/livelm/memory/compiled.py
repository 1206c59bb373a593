"""Compile a function once, and keep the machine code where it can be kept."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

_jit: Any = numba.njit  # its stubs do not know all its options

_SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


class _PackageCache(FunctionCache):
    """Numba's cache on disk, which forgets when any file of the package changes and not only the function's own."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _SOURCES)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code, or do without where the disk is full or has become read-only."""
        with suppress(OSError):
            super().save_overload(sig, data)


def compiled(function: Callable[..., Any]) -> Any:
    """An entry point: compiled at its first call, or read from the cache (none where no folder is writable).

    Without reference counts (`_nrt`): nothing here allocates, and counting took a quarter of the time. Other threads
    run meanwhile (`nogil`).
    """
    dispatcher: Any = _jit(_nrt=False, nogil=True)(function)
    try:
        dispatcher._cache = _PackageCache(function)
    except RuntimeError:  # numba found no folder that it may write to
        return dispatcher
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """A part of an entry point, written into it: the tables are some fifty arrays, too many to pass at every bit."""
    return _jit(_nrt=False, forceinline=True)(function)


def called(function: Callable[..., Any]) -> Any:
    """A part of an entry point that stays a function of its own."""
    return _jit(_nrt=False)(function)


def summed(function: Callable[..., Any]) -> Any:
    """As `inlined`, and sums may be taken in any order, which is what makes vectors of them."""
    return _jit(_nrt=False, forceinline=True, fastmath=True)(function)
