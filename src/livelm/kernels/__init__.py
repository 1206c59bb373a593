"""Kernels for a card that Triton compiles: never used before they were checked against torch on that very card.

A kernel is a second way to compute what torch computes. Whether it is right depends on the card, the driver and the
compiler, so whoever uses them (`learn.captured`) first does the same work both ways; everyone else works without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

_used = False


@contextmanager
def kernels(use: bool) -> Iterator[None]:
    """Use kernels inside, where there are some, or do without."""
    global _used
    before, _used = _used, use
    try:
        yield
    finally:
        _used = before


def kernels_of(module: str) -> Any | None:
    """The module with kernels, where they are used; None elsewhere, and without Triton, which torch for CUDA brings."""
    return _import(module) if _used else None


@cache
def _import(module: str) -> Any | None:
    try:
        return import_module(module)
    except ImportError:
        return None
