"""What layers of the looped transformer read besides a token: the pair it ends, its values, its neighbour."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from livelm.models.layers import linear
from livelm.models.ngrams import NOTHING

N_GATE_CHANNELS = 12
"""Channels from which the token-wise smear gate is computed."""


class BigramEmbedding(nn.Module):
    """A row for the last two tokens, by hash, projected to the stream. Colliding pairs share a row.

    The table begins at zero and the projection does not: with both at zero, as published, neither has a gradient.
    """

    def __init__(self, n_rows: int, width: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(n_rows, width))
        self.project = linear(width, d_model)
        self.scale = nn.Parameter(torch.tensor([0.05]))

    def forward(self, tokens: Int[Tensor, "B T"], before: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What the pair (before, token) means; `before` is NOTHING at the start of a document."""
        rows = bigram_rows(tokens, before, self.table.shape[0])
        return self.project(F.embedding(rows, self.table, sparse=True)) * self.scale


def bigram_rows(tokens: Int[Tensor, "B T"], before: Int[Tensor, "B T"], n_rows: int) -> Int[Tensor, "B T"]:
    """((36313 token) xor (27191 before)) mod (n_rows - 1), as published; the last row where nothing is before."""
    rows = ((36_313 * tokens) ^ (27_191 * before)) % (n_rows - 1)
    return rows.masked_fill(before == NOTHING, n_rows - 1)


class ValueEmbedding(nn.Module):
    """A vector per token, projected once to the width of the values; each layer that adds it has a gain."""

    def __init__(self, n_vocabulary: int, width: int, n_layers: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(n_vocabulary, width) * 0.01)
        # Not zero, as published: the table would have no gradient before head, attention's output and this map had.
        self.project = linear(width, n_heads * d_head)
        self.gain = nn.Parameter(torch.full((n_layers,), 0.1))
        self._shape = (n_heads, d_head)

    def forward(self, tokens: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T G K"]]:
        """What each of the layers adds to its values."""
        vectors = self.project(F.embedding(tokens, self.table)).unflatten(-1, self._shape)
        return [vectors * gain for gain in self.gain]


class ChannelSmear(nn.Module):
    """(1 - g) x + g x_before with a learned gate per channel."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "B T D"], before: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The blend; `before` is zero at the start of a document."""
        return torch.lerp(x, before, self.gate.sigmoid())


class TokenSmear(nn.Module):
    """x + s sigmoid(w . x[first channels]) x_before with a learned s, zero at first."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(min(d_model, N_GATE_CHANNELS)))

    def forward(self, x: Float[Tensor, "B T D"], before: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The blend; `before` is zero at the start of a document."""
        gate = (x[..., : len(self.gate)] * self.gate).sum(dim=-1, keepdim=True).sigmoid()
        return torch.addcmul(x, self.scale * gate, before)


SMEARS = {"channel": ChannelSmear, "token": TokenSmear}
