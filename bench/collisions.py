"""Text made to collide: an attack on the hash tables of a count memory whose salt is known."""

import random

import numpy as np

from livelm.memory.contexts import finish

PLACES = 1 << 16
"""Parts of the range of hashes that an attacker tells apart: a part is two or three neighbourhoods of a usual table."""


def colliding_text(n: int, salt: int = 0) -> bytes:
    """`n` bytes of three-letter tokens whose order-3 contexts all fall into one of `PLACES` parts of the table.

    Some 250 tokens fight over a dozen places, so the table forgets most before they return.
    """
    return b"".join(random.Random(0).choices(colliding_tokens(salt), k=n // 3 + 1))[:n]


def colliding_tokens(salt: int) -> list[bytes]:
    """Every token of three bytes whose context, hashed with `salt`, falls into the first part of the table."""
    keys = np.arange(1 << 24, dtype=np.int64)
    with np.errstate(over="ignore"):
        places = (finish.py_func(keys + np.int64(salt)) >> 32 & 0xFFFFFFFF) * PLACES >> 32
    return [int(key).to_bytes(3, "big") for key in keys[places == 0]]
