"""Sums of the rows of hashed n-grams on the CPU: one compiled function in place of some twenty small operations.

Few tokens cost what calling torch costs, and not what is computed. The truth this is tested against is the torch code
of `models.ngrams`.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from livelm.compiled import called, compiled, compiles

NOTHING = -1
"""Stands for the token before the first one of a document."""
MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 / golden ratio, odd: Knuth's multiplicative hashing."""
SHIFT = 31


def fits(table: Float[Tensor, "V E"], tokens: Int[Tensor, "B T"]) -> bool:
    """Whether the compiled way takes this table and these tokens: float32 and int64 on the CPU."""
    return compiles() and table.is_cpu and table.dtype == torch.float32 and tokens.dtype == torch.int64


def sum_ngram_rows(
    table: nn.Parameter,
    recent: Int[Tensor, "B R"],
    tokens: Int[Tensor, "B T"],
    starts: Bool[Tensor, "B T"],
    multipliers: Int[Tensor, "N n"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Int[Tensor, "B R"]]:
    """What `NgramEmbedding.forward` says, of a (V, 2 D) table with as many rows for each order; n = R + 1.

    The rows are those that torch finds, bit for bit. The gradient is row-sparse, with an entry for every order of every
    token: a row that comes twice has two.
    """
    return _SumNgramRows.apply(table, recent, tokens, starts, multipliers)  # type: ignore[return-value]


class _SumNgramRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, *read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = [tensor.contiguous().numpy() for tensor in (table, *read)]
        shape, (n_orders, n) = given[2].shape, given[4].shape
        first, last = (np.empty((*shape, table.shape[1] // 2), np.float32) for _ in range(2))
        rows, kept = np.empty((*shape, n_orders), np.int64), np.empty((shape[0], n - 1), np.int64)
        look_up(*given, rows, first, last, kept)
        found = torch.from_numpy(first), torch.from_numpy(last), torch.from_numpy(kept)
        ctx.mark_non_differentiable(found[2])
        ctx.rows, ctx.shape = rows, table.shape
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = ctx.rows
        values = np.empty((rows.size, ctx.shape[1]), np.float32)
        spread(*(grad.contiguous().numpy() for grad in grads[:2]), values)
        entries = torch.from_numpy(rows.reshape(1, -1)), torch.from_numpy(values)
        # that the rows are in the table was seen when they were read
        return torch.sparse_coo_tensor(*entries, ctx.shape, check_invariants=False), None, None, None, None


@compiled
def look_up(table, recent, tokens, starts, multipliers, rows, first, last, kept):
    """Fill `rows` (B, T, N), their sums `first` and `last` (B, T, D), and `kept` (B, R)."""
    n_back, n_new = recent.shape[1], tokens.shape[1]
    for b in range(tokens.shape[0]):
        known = n_back  # tokens of the same document before this one
        for t in range(n_new):
            known = 0 if starts[b, t] else known
            hash_ngrams(recent[b], tokens[b], t, known, multipliers, table.shape[0] // len(multipliers), rows[b, t])
            known += 1
        for i in range(n_back):
            kept[b, i] = token_at(recent[b], tokens[b], n_new - n_back + i) if known >= n_back - i else NOTHING
    for b in range(tokens.shape[0]):
        for t in range(n_new):
            sum_both(table, rows[b, t], first[b, t], last[b, t])


@called
def token_at(recent, tokens, at):
    """Of one lane; before the batch where `at` is negative."""
    return tokens[at] if at >= 0 else recent[len(recent) + at]


@called
def hash_ngrams(recent, tokens, t, known, multipliers, n_rows, rows):
    """Into `rows` (N,): of each order, at token `t` with `known` tokens of its document before it."""
    n_back = len(recent)
    for i in range(len(multipliers)):
        mixed = np.int64(0)
        for back in range(n_back + 1):
            token = token_at(recent, tokens, t - back) if back <= known else NOTHING
            mixed += (token + 2) * multipliers[i, n_back - back]  # int64 wraps around: that is the hash
        mixed = (mixed ^ (mixed >> SHIFT)) * MULTIPLIER
        rows[i] = (mixed >> SHIFT) % n_rows + i * n_rows


@called
def sum_both(table, rows, first, last):
    """Into `first` and `last` (D,): the sums of both halves of rows, in their order."""
    width = len(first)
    first[:] = 0.0
    last[:] = 0.0
    for row in rows:
        for j in range(width):
            first[j] += table[row, j]
        for j in range(width):
            last[j] += table[row, width + j]


@compiled
def spread(first, last, values):
    """Into `values` (B T N, 2 D): for each of the N orders what came back for its token, as two halves (B, T, D)."""
    n_new, width = first.shape[1], first.shape[2]
    n_orders = len(values) // (len(first) * n_new)
    for i in range(len(values)):
        b, t = i // n_orders // n_new, i // n_orders % n_new
        for j in range(width):
            values[i, j] = first[b, t, j]
        for j in range(width):
            values[i, width + j] = last[b, t, j]
