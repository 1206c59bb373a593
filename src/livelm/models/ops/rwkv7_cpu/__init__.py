"""RWKV-7 for a small update on a CPU: from tokens to what the head reads in one compiled function, and back.

An update of 64 tokens is some 1,300 operations of torch, which take six times as long as the products in them. Here a
pass is one function in machine code, and its products are those of `ops.products`. Everything is done by one thread,
in the same order each time.

The truth it is tested against is the torch code of `models.rwkv7`.

    plan      which weights there are, and where
    passes    rows of tokens | norm | blocks | last norm; and the same from its end
    forward   a block: time mixing, channel mixing
    backward  the same from its end
    maps      linear maps, and the token before
    states    the recurrence
    strips    formulas over vectors
    places    where weights, states, and what backward wants to know, lie
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.ops.plans import addresses, as_array
from livelm.models.ops.rwkv7_cpu.passes import pass_backward, pass_forward
from livelm.models.ops.rwkv7_cpu.places import Form, buffer_size
from livelm.models.ops.rwkv7_cpu.plan import Plan, plan_of
from livelm.types import State

__all__ = ["hidden", "plan_for"]

MOST_TOKENS = 1024
"""Of a lane: as many as were measured, 2.5 times as fast as torch at D = 64."""
MOST_WORK = 1 << (24 if LANES == 16 else 26)
"""Tokens of all lanes times D^2 times torch's threads, from where on torch has enough to do in each of its operations.
Whole updates on one core, of 64 tokens each: 4 times as fast as torch at D = 64, 1.6 at 256, 1.05 at 512 with vectors
of 16 numbers; 3.6, 1.9 and 1.5 with 8 (Zen 3), and of 256 tokens 2.4, 1.5 and 1.14."""
N_ENDS = 5


def plan_for(model: Any, tokens: Int[Tensor, "B T"], state: State) -> Plan | None:
    """How a `rwkv7.RWKV7` goes this way; None where it cannot: see `plan`, and small updates."""
    small = tokens.is_cpu and tokens.dtype == torch.int64 and len(tokens) > 0 and 0 < tokens.shape[1] <= MOST_TOKENS
    small = small and tokens.numel() * model.config.d_model**2 * torch.get_num_threads() <= MOST_WORK
    plan = plan_of(model) if small else None
    return plan if plan is not None and plan.fits and _as_expected(model.config, len(tokens), state) else None


def _names(n_layers: int) -> list[str]:
    """Of the tensors of a state, in the order in which `passes` takes them."""
    return [f"{kind}.{layer}" for kind in ("att_shift", "ffn_shift", "matrix") for layer in range(n_layers)]


def _as_expected(c: Any, n_lanes: int, state: State) -> bool:
    """Whether a state has the shapes that it should, without gaps: compiled functions look at no bounds."""
    shapes = {2: (n_lanes, c.d_model), 4: (n_lanes, c.n_heads, c.d_head, c.d_head)}
    names = _names(c.n_layers)
    dims = [2] * (2 * c.n_layers) + [4] * c.n_layers
    return all(
        (tensor := state.get(name)) is not None and tensor.shape == shapes[dim] and flat(tensor)
        for name, dim in zip(names, dims, strict=True)
    )


def hidden(
    model: Any, plan: Plan, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
) -> tuple[Float[Tensor, "B T D"], State]:
    """What `RWKV7.hidden` computes, by its `plan_for` these.

    Raises IndexError for ids outside the vocabulary, ValueError for starts of another shape.
    """
    (n_lanes, n_tokens), c = tokens.shape, model.config
    if starts.shape != tokens.shape:
        raise ValueError(f"{tuple(starts.shape)} starts for {tuple(tokens.shape)} tokens.")
    sizes = n_lanes, n_tokens, -(-n_tokens // LANES) * LANES, c.n_layers, c.d_model, c.n_heads, c.d_head, c.hidden
    ranks = c.ranks
    form = Form(*sizes, ranks["w"], ranks["a"], ranks["v"], ranks["g"], model.ln_out.eps)
    call = _Call(plan, form, tokens, starts, state)
    return _Pass.apply(call, *plan.weights), call.after  # type: ignore[return-value]


class _Call:
    """What a pass reads and leaves, besides weights."""

    def __init__(self, plan: Plan, form: Form, tokens: Tensor, starts: Tensor, state: State) -> None:
        self.plan, self.form = plan, form
        self.tokens, self.starts = tokens.contiguous().numpy(), starts.contiguous().numpy()
        names = _names(form.n_layers)
        self.before = [state[name] for name in names]
        self.after: State = {name: torch.empty_like(tensor) for name, tensor in zip(names, self.before, strict=True)}
        self.buffer = np.empty(buffer_size(form), np.float32)


class _Pass(torch.autograd.Function):
    """One operation for everything: what is between costs more than what is in it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *weights: Tensor | None) -> Tensor:
        plan, form = call.plan, call.form
        h = torch.empty(form.n_lanes, form.n_tokens, form.d_model)
        at = plan.at, addresses(call.before), addresses(list(call.after.values()))
        if not pass_forward(form, call.tokens, call.starts, plan.ends, at, h.numpy(), call.buffer):
            raise IndexError(f"an id is outside of the vocabulary of {len(plan.ends[0])}.")
        ctx.call = call
        ctx.save_for_backward(*weights)  # so that torch notices if one is changed before it is differentiated
        return h

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        embedding, *weights = ctx.saved_tensors
        gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        d_embedding = torch.zeros_like(embedding)
        d_ends = tuple(map(as_array, (d_embedding, *gradients[: N_ENDS - 1])))
        at = call.plan.at, addresses(gradients[N_ENDS - 1 :])
        gains = call.plan.ends[1], call.plan.ends[3]
        dh = given[0].contiguous().numpy()
        pass_backward(call.form, dh, call.tokens, call.starts, gains, at, call.buffer, d_ends)
        return None, d_embedding, *gradients
