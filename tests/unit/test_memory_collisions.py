"""Streams made to collide cost the count memory some bits at most, and a salt takes their aim from them."""

import random

import numpy as np
import pytest
from bench.collisions import colliding_text, colliding_tokens

from livelm.memory import CountMemory, CountMemorySettings
from livelm.memory.contexts import INDEX
from livelm.memory.slots import find_run

ORDER_3 = INDEX["order 3"]


def kept_runs(memory: CountMemory, tokens: list[bytes]) -> int:
    """How many of the tokens the table of order 3 holds a run for."""
    tables = memory._tables
    i = tables.active.tolist().index(ORDER_3)
    kept = 0
    for token in tokens:
        hashed = spread(int.from_bytes(token, "big") + int(tables.salt[0]))
        kept += find_run.py_func(tables.runs, int(tables.run_first[i]), int(tables.run_groups[i]), hashed)[1]
    return kept


def spread(x: int) -> int:
    """`finish` in plain integers, of 64 bits without a sign."""
    mask = (1 << 64) - 1
    x &= mask
    x ^= x >> 32
    x = x * 0x1E3779B97F4A7C15 & mask
    x ^= x >> 29 & 0x7FFFFFFFF
    x = x * 0x56E8FEB86659FD93 & mask
    return x ^ x >> 32


def test_what_collides_under_one_salt_is_kept_under_another() -> None:
    tokens = colliding_tokens(salt=0)
    assert len(tokens) > 100
    text = b"".join(random.Random(0).sample(tokens, k=len(tokens)))
    plain, salted = CountMemory(), CountMemory(CountMemorySettings(salt=0x5EED_0F_5A17))
    assert np.isfinite(plain.score(text)).all()
    assert np.isfinite(salted.score(text)).all()
    assert kept_runs(plain, tokens) < 20
    assert kept_runs(salted, tokens) > 0.95 * len(tokens)


def test_text_made_to_collide_costs_little_more_than_the_same_text_salted() -> None:
    text = colliding_text(12_000)
    plain = CountMemory().score(text).mean()
    salted = CountMemory(CountMemorySettings(salt=12345)).score(text).mean()
    assert plain < 1.05 * salted


def test_a_restored_memory_keeps_the_salt_it_was_made_with() -> None:
    text = b"The sea was calm; the wind was not.\n" * 20
    made, other = CountMemory(CountMemorySettings(salt=77)), CountMemory()
    made.score(text)
    other.load_state_dict(made.state_dict())
    assert np.array_equal(made.score(text), other.score(text))


@pytest.mark.parametrize("salt", [0, (1 << 63) - 1])
def test_any_salt_serves(salt: int) -> None:
    costs = CountMemory(CountMemorySettings(salt=salt)).score(b"abcd" * 300)
    assert costs[-300:].mean() < 0.2
