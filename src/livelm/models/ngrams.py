"""Hashed n-gram embeddings: what the last n tokens mean together, looked up instead of computed."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from livelm.models.ops.ngram_rows import MULTIPLIER, NOTHING, SHIFT, fits, sum_ngram_rows


class NgramEmbedding(nn.Module):
    """One table per order n, indexed by a hash of the last n tokens; their rows are summed.

    A row has two halves: one is added to the token embedding, where all layers can use it; the other to what the
    head reads, where one update suffices to change the prediction (a low-rank form of the n-gram features of
    Mikolov et al. 2011). Gradients are row-sparse: a batch touches at most len(orders) rows per token, however
    large the tables are. Colliding n-grams share a row.
    """

    multipliers: Tensor

    def __init__(self, orders: tuple[int, ...], n_rows: int, d_model: int) -> None:
        super().__init__()
        self.orders = orders
        self.n_rows = n_rows
        self.n_back = max(orders) - 1
        self.table = nn.Parameter(torch.zeros(len(orders) * n_rows, 2 * d_model))
        self.register_buffer("multipliers", _multipliers(orders), persistent=False)

    def forward(
        self, recent: Int[Tensor, "B R"], tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Int[Tensor, "B R"]]:
        """What to add first and last at each position, and the tokens the next batch must look back on."""
        if fits(self.table, tokens):
            return sum_ngram_rows(self.table, recent, tokens, starts, self.multipliers)
        return self.look_up(recent, tokens, starts)

    def look_up(
        self, recent: Int[Tensor, "B R"], tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Int[Tensor, "B R"]]:
        """The same by torch, on any device and in any type."""
        n_new = tokens.shape[1]
        read = torch.cat([recent, tokens], dim=1)
        document = F.pad(starts.cumsum(dim=1), (self.n_back, 0))
        rows = self.rows(read, document)
        first, last = F.embedding_bag(rows.flatten(0, 1), self.table, mode="sum", sparse=True).chunk(2, dim=-1)
        kept = read[:, n_new:].where(document[:, n_new:] == document[:, -1:], NOTHING)
        return first.unflatten(0, tokens.shape), last.unflatten(0, tokens.shape), kept

    def rows(self, read: Int[Tensor, "B S"], document: Int[Tensor, "B S"]) -> Int[Tensor, "B T N"]:
        """The table row of each order at each of the last S - R positions.

        n-grams do not reach across the start of a document: what lies before counts as nothing.
        """
        n = self.n_back + 1
        window, owner = read.unfold(1, n, 1), document.unfold(1, n, 1)  # (B, T, n), the newest token last
        codes = (window + 2).where(owner == owner[..., -1:], NOTHING + 2)
        mixed = (codes[..., None, :] * self.multipliers).sum(dim=-1)  # int64 wraps around: that is the hash
        mixed = (mixed ^ (mixed >> SHIFT)) * MULTIPLIER
        offsets = torch.arange(len(self.orders), device=read.device) * self.n_rows
        return ((mixed >> SHIFT) % self.n_rows) + offsets


def _multipliers(orders: tuple[int, ...]) -> Int[Tensor, "N n"]:
    """(orders, longest order) odd factors, one per place; 0 where the order does not look."""
    longest = max(orders)
    factors = torch.zeros(len(orders), longest, dtype=torch.int64)
    for i, order in enumerate(orders):
        for back in range(order):
            factors[i, longest - 1 - back] = _wrap((2 * back + 3) ** 27 * 2 + 1)
    return factors


def _wrap(number: int) -> int:
    """The number modulo 2^64, as a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
