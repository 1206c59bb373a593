"""Architectures: one file each, with its frozen settings and its module."""

from typing import Any

from livelm.models.bit import Bit
from livelm.models.looped import Looped
from livelm.models.rwkv7 import RWKV7
from livelm.models.transformer import Transformer
from livelm.models.worker import Worker

MODELS: dict[str, type[Any]] = {
    "bit": Bit,
    "looped": Looped,
    "rwkv7": RWKV7,
    "transformer": Transformer,
    "worker": Worker,
}
"""Built-in architectures by recipe name; each is a `livelm.types.Model` built from (settings, vocabulary size)."""
