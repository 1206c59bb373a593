"""What a head says of the next symbol and what that costs, in one compiled function there and one back on a CPU.

In torch it is a product, a softmax, a lookup and a sign, and as many again for the gradient: for 48 bytes that takes
three times as long as the arithmetic.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from livelm.compiled import allocating, compiles
from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.ops.products import add_product
from livelm.models.ops.softmax_columns import exponential_strip, sum_strip
from livelm.models.ops.turning import turned

MOST_SYMBOLS, MOST_TOKENS = 1024, 256
"""With more of either, torch has enough to do in each of its operations."""


def costs(h: Float[Tensor, "B T D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """-ln softmax(h W')[target], float32. Raises IndexError for a target that is no symbol."""
    if fits(h, weight):
        return _Head.apply(h, weight, targets, False)[0]  # type: ignore[index]
    return nats_of(F.linear(h, weight), targets)


def says(
    h: Float[Tensor, "B T D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"]]:
    """What `costs` returns, and the log probabilities of all symbols, which are not to be differentiated."""
    if fits(h, weight):
        return _Head.apply(h, weight, targets, True)  # type: ignore[return-value]
    return says_of(F.linear(h, weight), targets)


def nats_of(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """-ln softmax(logits)[target], in float32, by torch."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def says_of(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"]]:
    """The same with the log probabilities of all symbols."""
    log_probs = torch.log_softmax(logits.float(), -1)
    return -log_probs.gather(-1, targets[..., None])[..., 0], log_probs


def fits(h: Tensor, weight: Tensor) -> bool:
    """Whether the compiled functions take these: float32 on the CPU, few tokens, few symbols."""
    (n_symbols, width), n = weight.shape, h.shape[0] * h.shape[1]
    small = 0 < n <= MOST_TOKENS and n_symbols <= MOST_SYMBOLS and width % LANES == 0
    return compiles() and small and flat(h) and flat(weight)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, says: bool) -> tuple[Tensor, Tensor]:
        n, n_symbols = targets.numel(), len(weight)
        log_columns = np.empty((n_symbols, -(-n // LANES) * LANES), np.float32)
        nats, log_probs = torch.empty(targets.shape), torch.empty(*targets.shape, n_symbols if says else 0)
        rows, wanted = h.detach().view(n, -1).numpy(), targets.reshape(-1).numpy()
        found = nats.view(-1).numpy(), log_probs.view(n, -1).numpy()
        if not _forward(rows, weight.detach().numpy(), wanted, log_columns, *found):
            raise IndexError(f"a target is none of {n_symbols} symbols.")
        ctx.save_for_backward(h, weight)
        ctx.known = rows, wanted, log_columns
        ctx.mark_non_differentiable(log_probs)
        return nats, log_probs

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        h, weight = ctx.saved_tensors
        dh, d_weight, (rows, *known) = torch.empty_like(h), torch.zeros_like(weight), ctx.known
        gradients = dh.view(rows.shape).numpy(), d_weight.numpy()
        _backward(given[0].contiguous().view(-1).numpy(), rows, weight.detach().numpy(), *known, *gradients)
        return dh, d_weight, None, None


@allocating
def _forward(rows, weight, targets, log_columns, nats, log_probs):  # type: ignore[no-untyped-def]
    """(V, M) log probabilities of N tokens from (N, D) rows, tokens as columns, filled up to M; (N,) nats.

    (N, V) log probabilities too, if there is room for them. Returns false for a target that is no symbol.
    """
    (n, d), (n_symbols, m) = rows.shape, log_columns.shape
    for target in targets:
        if not 0 <= target < n_symbols:
            return False
    columns, top, total = np.zeros((d, m), np.float32), np.empty(m, np.float32), np.empty(m, np.float32)
    turned(rows, columns)
    log_columns[:] = 0
    shape = n_symbols, m, d
    add_product(shape, weight.ctypes.data, d, 1, columns.ctypes.data, m, log_columns.ctypes.data, m)
    for t in range(0, m, LANES):
        here = log_columns.ctypes.data + 4 * t
        sum_strip(here, m, n_symbols, top.ctypes.data + 4 * t, total.ctypes.data + 4 * t)
    for t in range(m):
        total[t] = top[t] + np.log(total[t])
    for symbol in range(n_symbols):
        for t in range(m):
            log_columns[symbol, t] -= total[t]
    for t in range(n):
        nats[t] = -log_columns[targets[t], t]
    if log_probs.shape[1]:
        turned(log_columns[:, :n], log_probs)
    return True


@allocating
def _backward(g, rows, weight, targets, log_columns, d_rows, d_weight):  # type: ignore[no-untyped-def]
    """From (N,) g of the nats: (N, D) `d_rows`; `d_weight`, which is zero before.

    The gradient of a logit is the probability, less 1 for the target, by that of the nats.
    """
    (n, d), (n_symbols, m) = rows.shape, log_columns.shape
    columns, by, d_logits = np.zeros((d, m), np.float32), np.zeros(m, np.float32), np.empty((n_symbols, m), np.float32)
    for t in range(n):  # an array given to a slice would have numba compile what it says of wrong shapes, for seconds
        by[t] = g[t]
    for symbol in range(n_symbols):
        for t in range(m):
            d_logits[symbol, t] = log_columns[symbol, t]
    here = d_logits.ctypes.data
    for t in range(0, m, LANES):
        exponential_strip(here + 4 * t, m, n_symbols)
    for symbol in range(n_symbols):
        for t in range(m):
            d_logits[symbol, t] *= by[t]
    for t in range(n):
        d_logits[targets[t], t] -= by[t]
    add_product((n_symbols, d, n), here, m, 1, rows.ctypes.data, d, d_weight.ctypes.data, d)
    add_product((d, m, n_symbols), weight.ctypes.data, 1, d, here, m, columns.ctypes.data, m)
    turned(columns[:, :n], d_rows)
