"""The recurrence of RWKV-7 (Peng et al. 2025): token by token, and in chunks of matrix products; both restart anywhere.

A head keeps a matrix S (row = value channel, column = key channel; flash-linear-attention keeps its transpose):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t' + v_t k_t'        y_t = S_t r_t
"""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from livelm.models.ops.rwkv7_chunks import Chunked, Layout

LOWEST_LOG_DECAY = -0.606531
"""Of one token, -exp(-1/2): the model's decays are exp(LOWEST_LOG_DECAY * sigmoid(...))."""


class Streams(NamedTuple):
    """What the recurrence reads at each token, per head."""

    r: Float[Tensor, "B T H N"]
    """What is asked of the state."""
    log_w: Float[Tensor, "B T H N"]
    """Logarithm of the decay, between LOWEST_LOG_DECAY and 0, best in float32."""
    k: Float[Tensor, "B T H N"]
    v: Float[Tensor, "B T H M"]
    """M = N but where more rows than a head's own are carried along."""
    a: Float[Tensor, "B T H N"]
    """Minus the removal key, of length 1."""
    b: Float[Tensor, "B T H N"]
    """The removal key times the in-context learning rate."""


def rwkv7(
    x: Streams,
    layout: Layout,
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """What is read from the state at every token, and the state after the last, in the fastest way there is here.

    A document that starts in the batch begins with the state `initial` (None: zero). States are float32; half
    precision on CUDA runs on the kernels of flash-linear-attention, where that is installed.
    """
    if x.r.shape[1] == 1:
        return rwkv7_recurrent(x, layout.starts, state, initial)
    if x.r.is_cuda and x.r.dtype in (torch.bfloat16, torch.float16):  # the kernels do not take float32
        kernel = _kernel()
        if kernel is not None:
            return rwkv7_packed(kernel, x, layout.starts, state, initial)
    return rwkv7_chunked(x, layout, state, initial)


def rwkv7_recurrent(
    x: Streams,
    starts: Bool[Tensor, "B T"],
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """The recurrence as it is written above: the truth, and the fastest way for one token."""
    r, log_w, k, v, a, b = (part.float() for part in x)
    w = log_w.exp()[..., None, :]
    begin = torch.zeros_like(state[0]) if initial is None else initial.float()
    state = state.float()
    read = []
    for t in range(r.shape[1]):
        state = torch.where(starts[:, t, None, None, None], begin, state)
        removed = (state @ a[:, t, ..., None])[..., 0]
        columns = torch.stack([removed, v[:, t]], dim=-1)
        state = state * w[:, t] + columns @ torch.stack([b[:, t], k[:, t]], dim=-2)
        read.append((state @ r[:, t, ..., None])[..., 0])
    return torch.stack(read, dim=1).to(x.v.dtype), state


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def rwkv7_chunked(
    x: Streams,
    layout: Layout,
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """What `rwkv7_recurrent` computes, with matrix products over chunks, in float32."""
    n_tokens, (n_chunks, length) = x.r.shape[1], layout.sizes
    more = n_chunks * length - n_tokens
    parts = (F.pad(part.float(), (0, 0, 0, 0, 0, more)) if more else part.float() for part in x)
    begin = None if initial is None else initial.float()
    read, state = Chunked.apply(layout, state.float(), begin, *parts)
    return read[:, :n_tokens].to(x.v.dtype), state


def rwkv7_packed(
    kernel: Any,
    x: Streams,
    starts: Bool[Tensor, "B T"],
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """The same by `fla.ops.generalized_delta_rule.chunk_dplr_delta_rule`: every document is a sequence of its own."""
    n_lanes, n_tokens = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero()[:, 0]  # one wait for the device, as the number of sequences is a shape
    lane = first // n_tokens
    zero = torch.zeros_like(state[:1]) if initial is None else initial.float()[None]
    entering = torch.where(starts.flatten()[first][:, None, None, None], zero, state.float()[lane])
    read, leaving = kernel(
        q=x.r.flatten(0, 1)[None],
        k=x.k.flatten(0, 1)[None],
        v=x.v.flatten(0, 1)[None],
        a=x.a.flatten(0, 1)[None],
        b=x.b.flatten(0, 1)[None],
        gk=x.log_w.flatten(0, 1)[None],
        scale=1.0,
        initial_state=entering.mT.contiguous(),  # its states are [key, value]
        output_final_state=True,
        cu_seqlens=F.pad(first, (0, 1), value=n_lanes * n_tokens),
    )
    final = torch.searchsorted(lane, torch.arange(n_lanes, device=lane.device), right=True) - 1
    return read[0].unflatten(0, (n_lanes, n_tokens)), leaving[final].mT.contiguous()


@cache
def _kernel() -> Any | None:
    """The kernel for CUDA, or None where flash-linear-attention is not installed; it takes seconds to import."""
    try:
        return import_module("fla.ops.generalized_delta_rule").chunk_dplr_delta_rule
    except ImportError:
        return None
