"""Compile a function once, by numba, and keep the machine code where it can be kept."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

_jit: Any = numba.njit  # its stubs do not know all its options


class _PackageCache(FunctionCache):
    """Numba's cache on disk, which forgets when any file beside the function's changes and not only its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._sources = _sources(Path(function.__code__.co_filename).parent)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), self._sources)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code, or do without where the disk is full or has become read-only."""
        with suppress(OSError):
            super().save_overload(sig, data)


@cache
def _sources(folder: Path) -> str:
    """What all files of a package come to."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def compiled(function: Callable[..., Any]) -> Any:
    """An entry point: compiled at its first call, or read from the cache (none where no folder is writable).

    Without reference counts (`_nrt`): nothing here allocates, and counting took a quarter of the count memory's time.
    Other threads run meanwhile (`nogil`). What it calls lies in the same folder.
    """
    return _kept(function, _nrt=False)


def allocating(function: Callable[..., Any]) -> Any:
    """An entry point as `compiled`, which makes arrays of its own."""
    return _kept(function)


def unchecked(function: Callable[..., Any]) -> Any:
    """An entry point as `allocating`, where a division by zero is inf or NaN: an error at each would forbid vectors."""
    return _kept(function, error_model="numpy")


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    dispatcher: Any = _jit(nogil=True, **options)(function)
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


def reordered(function: Callable[..., Any]) -> Any:
    """As `summed`, but inf and NaN stay what they are."""
    return _jit(_nrt=False, forceinline=True, fastmath={"reassoc"})(function)
