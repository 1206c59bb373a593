"""Exclusive self-attention (arXiv 2603.09078): what attention found, without the part along a token's own value."""

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-12
"""Squared length below which a value has no direction, so that nothing is taken away."""


def exclude_own(y: Float[Tensor, "B T H E"], v: Float[Tensor, "B T G E"]) -> Float[Tensor, "B T H E"]:
    """y - (y . v / v . v) v with H heads in groups that share G values. H is a multiple of G.

    What is left is at right angles to the token's own value: attention can only bring in other tokens. Values are
    broadcast over their group and the length of each is computed once, without a square root.
    """
    grouped, own = y.unflatten(2, (v.shape[2], -1)), v.unsqueeze(3)  # (B, T, G, H / G, E), (B, T, G, 1, E)
    share = (grouped * own).sum(dim=-1, keepdim=True) / own.square().sum(dim=-1, keepdim=True).clamp_min(TINY)
    return torch.addcmul(grouped, share, own, value=-1).flatten(2, 3)


def exclude_own_reference(y: Float[Tensor, "B T H E"], v: Float[Tensor, "B T G E"]) -> Float[Tensor, "B T H E"]:
    """What `exclude_own` computes, as published: y - (y . u) u, where u is the own value made one long."""
    own = v.repeat_interleave(y.shape[2] // v.shape[2], dim=2)
    direction = own / own.norm(dim=-1, keepdim=True).clamp_min(TINY**0.5)
    return y - (y * direction).sum(dim=-1, keepdim=True) * direction
