"""Architectures: one file each, with its frozen settings and its module."""

from typing import Any

from livelm.models.transformer import Transformer

MODELS: dict[str, type[Any]] = {
    "transformer": Transformer,
}
"""Built-in architectures by recipe name; each is a `livelm.types.Model` built from (settings, vocabulary size)."""
