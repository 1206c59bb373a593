"""Adagrad for the rows of a sparse gradient in one compiled pass: torch sorts, copies and adds up in ten."""

import math

import numpy as np
from torch import Tensor
from torch.autograd.graph import increment_version

from livelm.compiled import unchecked
from livelm.compiled.addresses import flat, floats_at, integers_at, prefetch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing


def step(table: Tensor, sums: Tensor, gradient: Tensor, rate: float, eps: float) -> bool:
    """w <- w - rate g / (sqrt(s) + eps) after s <- s + g^2, in place, for the rows of a sparse gradient.

    What a row gets several times is added up in the order in which it comes. Returns false, and changes nothing, where
    the tensors are not (V, D) and (N, D) of float32 on the CPU without gaps. Raises IndexError, before anything has
    changed, for a row that the table does not have.
    """
    rows, values = gradient._indices(), gradient._values()
    if not (flat(table) and flat(sums) and flat(values) and rows.is_contiguous()):
        return False
    if len(rows) != 1 or values.dim() != 2:
        return False
    n, width = values.shape
    at = (rows.data_ptr(), values.data_ptr(), table.data_ptr(), sums.data_ptr())
    if not _step(*at, n, len(table), width, float(rate), float(eps)):
        raise IndexError(f"a gradient names a row that is not among the {len(table)} of its table.")
    increment_version(table)  # so that torch refuses to differentiate a graph from before
    return True


@unchecked
def _step(
    rows_at: int, values_at: int, table_at: int, sums_at: int, n: int, n_rows: int, width: int, rate: float, eps: float
) -> bool:
    rows = integers_at(rows_at)
    shift = np.uint64(63)
    while (np.int64(1) << np.int64(np.uint64(64) - shift)) < 2 * n:  # at most half of the slots are used
        shift -= np.uint64(1)
    n_slots = np.int64(1) << np.int64(np.uint64(64) - shift)
    work, total = np.empty(n_slots + 2 * n, np.int64), np.empty(width, np.float32)
    # chains of places with the same row: `work` has a hash table of their first places, then the last place of each
    # chain, then the next place of each
    last, following = n_slots, n_slots + n
    for slot in range(n_slots):
        work[slot] = -1
    for i in range(n):
        row = rows[i]
        if row < 0 or row >= n_rows:
            return False
        slot = np.int64((np.uint64(row) * _GOLDEN) >> shift)
        while work[slot] >= 0 and rows[work[slot]] != row:
            slot = (slot + 1) & (n_slots - 1)
        first = work[slot]
        work[following + i] = -1
        if first < 0:
            work[slot], work[last + i] = i, i
            # rows lie anywhere in hundreds of megabytes: asked for all at once, they take a quarter less of the time
            for line in range(0, 4 * width, 64):
                prefetch(sums_at + 4 * width * row + line)
                prefetch(table_at + 4 * width * row + line)
        else:
            work[following + work[last + first]] = i
            work[last + first], work[last + i] = i, -1
    step, least = np.float32(rate), np.float32(eps)
    for i in range(n):
        if work[last + i] < 0:  # not the first place of its row
            continue
        w, s, g = (
            floats_at(table_at + 4 * width * rows[i]),
            floats_at(sums_at + 4 * width * rows[i]),
            floats_at(values_at + 4 * width * i),
        )
        for j in range(width):
            total[j] = g[j]
        more = work[following + i]
        while more >= 0:
            g = floats_at(values_at + 4 * width * more)
            for j in range(width):
                total[j] += g[j]
            more = work[following + more]
        for j in range(width):
            s[j] += total[j] * total[j]
            w[j] -= step * total[j] / (math.sqrt(s[j]) + least)
    return True
