"""Attention of new positions over carried and new keys, limited to a window and to one document."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

REPEATABLE = 1 << 23
"""Scores up to which attention on CUDA repeats itself to the bit: 32 MiB of them in a layer."""


def window_mask(new: Int[Tensor, "B T"], kept: Int[Tensor, "B C"], context: int) -> Bool[Tensor, "B 1 T S"]:
    """Which of the S = C + T keys each of the T newest positions may see.

    A position sees itself and the `context - 1` positions before it, as far as they belong to the same document.
    `kept` and `new` number the document of each position; the kept positions directly precede the new ones.
    """
    n_kept, n_new = kept.shape[1], new.shape[1]
    band = torch.ones(n_new, n_kept + n_new, dtype=torch.bool, device=new.device)
    band = band.tril(n_kept).triu(n_kept - context + 1)
    same = new[:, :, None] == torch.cat([kept, new], dim=1)[:, None, :]
    return (same & band)[:, None]


def additive(mask: Bool[Tensor, "B 1 T S"]) -> Float[Tensor, "B 1 T S"]:
    """0 where the mask allows, minus infinity elsewhere: converted once here instead of once per layer."""
    return torch.where(mask, 0.0, -torch.inf)


def attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S E"],
    bias: Float[Tensor, "B 1 T S"],
) -> Float[Tensor, "B H T E"]:
    """softmax(q k' / sqrt(K) + bias) v with H query heads sharing G key heads, fused. H is a multiple of G.

    On CUDA the fused kernels add up their gradients in any order; what is small is done step by step instead, the same
    bits each time, so that a resumed run repeats itself.
    """
    if q.is_cuda and q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= REPEATABLE:
        return attention_reference(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])


def attention_reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S E"],
    bias: Float[Tensor, "B 1 T S"],
) -> Float[Tensor, "B H T E"]:
    """What `attention` computes, step by step."""
    n_shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_shared, dim=1), v.repeat_interleave(n_shared, dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    return scores.softmax(dim=-1) @ v
