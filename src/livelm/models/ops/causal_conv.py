"""Depthwise causal convolution over a stream of documents: each channel mixes its own last few values."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def causal_conv(
    x: Float[Tensor, "B T D"], kept: Float[Tensor, "B R D"], taps: Float[Tensor, "N D"], age: Int[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """y[t] = sum over j of taps[j] x[t - j], for the N = R + 1 newest values as far as the document of t reaches.

    `kept` are the R inputs that directly precede `x` (zeros at the start of a stream); `age` counts the tokens before
    t in its document, so x[t - j] belongs to the document when age[t] >= j. No gradient goes to `kept`.
    """
    return _CausalConv.apply(x, kept, taps, age)  # type: ignore[return-value]


def causal_conv_reference(
    x: Float[Tensor, "B T D"], kept: Float[Tensor, "B R D"], taps: Float[Tensor, "N D"], age: Int[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """What `causal_conv` computes, one position and one tap at a time."""
    read = torch.cat([kept.detach(), x], dim=1)
    rows = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, 0])
        for j in range(len(taps)):
            inside = (age[:, t] >= j)[:, None]
            y = y + torch.where(inside, taps[j] * read[:, len(taps) - 1 + t - j], 0.0)
        rows.append(y)
    return torch.stack(rows, dim=1)


class _CausalConv(torch.autograd.Function):
    """One pass per tap; autograd on its own would keep, and walk through, three more tensors per tap.

    `where` and not a product with 0 and 1: what lies before a document may be anything, even infinite. Mostly no
    document begins near; a processor sees that at once (an accelerator would be waited for) and masks nothing then.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, taps: Tensor, age: Tensor) -> Tensor:
        n_back, n_new = len(taps) - 1, x.shape[1]
        inside = None
        if not age.is_cpu or int(age.min()) < n_back:
            inside = (age >= torch.arange(n_back + 1, device=age.device)[:, None, None])[..., None]  # (N, B, T, 1)
        read = torch.cat([kept, x], dim=1)
        ctx.save_for_backward(read, taps, inside)
        y = x * taps[0]
        for j in range(1, n_back + 1):
            y.addcmul_(_reached(read[:, n_back - j : n_back - j + n_new], inside, j), taps[j])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (g,), (read, taps, inside) = gradients, ctx.saved_tensors
        n_back, n_new = len(taps) - 1, g.shape[1]
        to_x, to_taps = g * taps[0], torch.empty_like(taps)
        for j in range(n_back + 1):
            seen = g * read[:, n_back - j : n_back - j + n_new]
            torch.sum(_reached(seen, inside, j), dim=(0, 1), out=to_taps[j])
            if 0 < j < n_new:
                to_x[:, : n_new - j].addcmul_(_reached(g, inside, j)[:, j:], taps[j])
        return to_x, None, to_taps, None


def _reached(x: Float[Tensor, "B T D"], inside: Bool[Tensor, "N B T 1"] | None, tap: int) -> Float[Tensor, "B T D"]:
    """0 where the tap is out of reach; None: nowhere."""
    return x if inside is None else torch.where(inside[tap], x, 0.0)
