"""Compile a function once, by numba, and keep the machine code where it can be kept."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache

_jit: Any = numba.njit  # its stubs do not know all its options


def _nobody(folder: Path | None) -> None:
    """Hears nothing."""


_listener: Callable[[Path | None], None] = _nobody


def tell_compiling(listener: Callable[[Path | None], None]) -> None:
    """Have `listener` called once, before the first function that must be compiled: that takes seconds to a minute.

    It is told the folder where the machine code is kept; None if there is none, so that every process compiles.
    """
    global _listener
    _listener = listener


def _tell(folder: Path | None) -> None:
    global _listener
    listener, _listener = _listener, _nobody
    listener(folder)


class _PackageCache(FunctionCache):
    """Numba's cache on disk, which forgets when any file of the function's package changes and not only its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        here, file = Path(__file__).parent, Path(function.__code__.co_filename)
        ours = file.is_relative_to(here.parent)
        package = here.parent / file.relative_to(here.parent).parts[0] if ours else file.parent
        self._sources = _sources(package) + _sources(here)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), self._sources)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code that was kept; where there is none, numba compiles next, which is told."""
        found = super().load_overload(sig, target_context)
        if found is None:
            _tell(Path(self.cache_path))
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code, or do without where the disk is full or has become read-only."""
        with suppress(OSError):
            super().save_overload(sig, data)


class _NoCache(NullCache):
    """Keeps nothing, for want of a folder."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        """There is nothing, so numba compiles next."""
        _tell(None)


@cache
def _sources(folder: Path) -> str:
    """What all files of a package of ours come to, `models` or `memory`."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()


_used = True


@contextmanager
def in_torch() -> Iterator[None]:
    """Inside, what is there twice is computed by torch: the slow twin, to compare with."""
    global _used
    before, _used = _used, False
    try:
        yield
    finally:
        _used = before


def compiles() -> bool:
    """Whether compiled functions are used where torch could do the same."""
    return _used


def compiled(function: Callable[..., Any]) -> Any:
    """An entry point: compiled at its first call, or read from the cache (none where no folder is writable).

    Without reference counts (`_nrt`): nothing here allocates, and counting took a quarter of the count memory's time.
    Other threads run meanwhile (`nogil`). What it calls lies in the same package of ours.
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
        dispatcher._cache = _NoCache()
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """A part of an entry point, written into it: the tables are some fifty arrays, too many to pass at every bit."""
    return _jit(_nrt=False, forceinline=True)(function)


def called(function: Callable[..., Any]) -> Any:
    """A part of an entry point that stays a function of its own."""
    return _jit(_nrt=False)(function)


def returning(function: Callable[..., Any]) -> Any:
    """As `called`, and may make arrays and return them."""
    return _jit()(function)


def added(function: Callable[..., Any]) -> Any:
    """As `called`, and sums may be taken in any order, the same each time; NaN stays NaN."""
    return _jit(_nrt=False, fastmath={"reassoc", "nsz", "contract"})(function)


def summed(function: Callable[..., Any]) -> Any:
    """As `inlined`, and sums may be taken in any order, which is what makes vectors of them."""
    return _jit(_nrt=False, forceinline=True, fastmath=True)(function)


def reordered(function: Callable[..., Any]) -> Any:
    """As `summed`, but inf and NaN stay what they are."""
    return _jit(_nrt=False, forceinline=True, fastmath={"reassoc"})(function)
