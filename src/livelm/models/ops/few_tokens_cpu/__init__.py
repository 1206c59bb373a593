"""The transformer for few tokens on a CPU: from tokens to what the head reads in one compiled function, and back.

What 48 tokens cost a processor is not arithmetic: torch starts some 320 operations for them and their gradient, of 5 to
20 microseconds each, for products that take two. Here a pass is one function in machine code, and its products are
those of `ops.products`. Everything is done by one thread, in the same order each time.

The truth it is tested against is the torch code of `models.transformer`.

    limits    what is better left to torch
    plan      which weights there are, and where
    single    one block at a time, for models that do something else between
    passes    rows of tokens and n-grams | blocks | last norm; and the same from its end
    forward   a block: norm, product, rotary positions, attention, product | norm, product, rectifier, product
    backward  the same from its end
    parts     what both have: tokens as columns, norms, turning
    window    which position may see which
    places    where weights, states, and what backward wants to know, lie
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.limits import as_expected, few
from livelm.models.ops.few_tokens_cpu.parts import Form
from livelm.models.ops.few_tokens_cpu.passes import pass_backward, pass_forward
from livelm.models.ops.few_tokens_cpu.places import buffer_size
from livelm.models.ops.few_tokens_cpu.plan import NO_ROWS, Plan, plan_of
from livelm.models.ops.plans import addresses, as_array
from livelm.types import State

__all__ = ["hidden", "plan_for"]


def plan_for(model: Any, tokens: Int[Tensor, "B T"], state: State) -> Plan | None:
    """How a `transformer.Transformer` goes this way; None where it cannot: see `limits` and `plan`."""
    plan = plan_of(model) if few(tokens, model.config.d_model) else None
    return plan if plan is not None and plan.fits and as_expected(model.config, len(tokens), state) else None


def hidden(
    model: Any, plan: Plan, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
) -> tuple[Float[Tensor, "B T D"], State]:
    """What `Transformer.hidden` computes, by its `plan_for` these.

    Raises IndexError for ids outside the vocabulary, ValueError for starts of another shape.
    """
    (n_lanes, n_tokens), c = tokens.shape, model.config
    if starts.shape != tokens.shape:
        raise ValueError(f"{tuple(starts.shape)} starts for {tuple(tokens.shape)} tokens.")
    sizes = n_lanes, n_tokens, -(-n_tokens // LANES) * LANES, state["documents"].shape[1], c.n_layers, c.d_model
    sizes += (c.n_heads, c.kv_heads, c.d_head, c.hidden, c.context)
    form = Form(*sizes, c.norm == "layer", model.norm.eps, c.qk_norm, c.activation == "relu2")
    call = _Call(plan, form, tokens, starts, state)
    x = _Pass.apply(call, *plan.weights)
    return x, call.after()  # type: ignore[return-value]


class _Call:
    """What a pass reads and leaves, besides weights."""

    def __init__(self, plan: Plan, form: Form, tokens: Tensor, starts: Tensor, state: State) -> None:
        self.plan, self.form = plan, form
        n_keys, shape = form.n_carried + form.n_tokens, (form.n_lanes, form.n_tokens)
        self.tokens, self.starts = tokens.contiguous(), starts.contiguous()
        self.told = state["position"].numpy(), state["documents"].numpy(), plan.frequencies
        self.documents = torch.empty(form.n_lanes, n_keys, dtype=torch.int64)
        places = [f"{name}.{layer}" for layer in range(form.n_layers) for name in ("keys", "values")]
        self.past_at = addresses([state[place] for place in places])
        size = form.n_lanes, n_keys, form.n_kv_heads, form.d_head
        self.all = {place: torch.empty(size) for place in places}
        self.all_at = addresses(list(self.all.values()))
        self.buffer = np.empty(buffer_size(form), np.float32)
        n_orders, n_back = len(plan.multipliers), max(plan.multipliers.shape[1] - 1, 0)
        self.rows = np.empty((*shape, n_orders), np.int64)
        self.recent = torch.empty(form.n_lanes, n_back, dtype=torch.int64)
        halves = [np.empty((*shape, form.d_model if n_orders else 0), np.float32) for _ in range(2)]
        recent = state["recent"].numpy() if n_orders else self.recent.numpy()
        table = plan.table if n_orders else NO_ROWS
        self.ngrams = table, recent, plan.multipliers, self.rows, *halves, self.recent.numpy()

    def after(self) -> State:
        """The state after the pass."""
        context, form = self.form.context, self.form
        after: State = {"position": torch.from_numpy(self.told[0] + form.n_tokens)}
        after["documents"] = self.documents[:, -context:].contiguous()
        after |= {place: kept[:, -context:].contiguous() for place, kept in self.all.items()}
        if len(self.plan.multipliers):
            after["recent"] = self.recent
        return after


class _Pass(torch.autograd.Function):
    """One operation for everything: what is between costs more than what is in it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *weights: Tensor | None) -> Tensor:
        plan, form = call.plan, call.form
        h = torch.empty(form.n_lanes, form.n_tokens, form.d_model)
        read, ends = (call.tokens.numpy(), call.starts.numpy()), (plan.embedding, plan.gain, plan.bias)
        at = plan.at, call.past_at, call.all_at
        filled = h.numpy(), call.documents.numpy(), call.buffer
        if not pass_forward(form, read, call.told, ends, call.ngrams, at, *filled):
            raise IndexError(f"an id is outside of the vocabulary of {len(plan.embedding)}.")
        ctx.call = call
        ctx.save_for_backward(*weights)  # so that torch notices if one is changed before it is differentiated
        return h

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        embedding, table, gain, bias, *weights = ctx.saved_tensors
        gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        d_ends = [torch.zeros_like(embedding), torch.empty_like(gain), None if bias is None else torch.empty_like(bias)]
        values = np.empty((call.rows.size, 0 if table is None else table.shape[1]), np.float32)
        at = call.plan.at, addresses(gradients), call.all_at
        known = call.tokens.numpy(), call.plan.gain, at, call.buffer, tuple(map(as_array, d_ends))
        pass_backward(call.form, given[0].contiguous().numpy(), *known, values)
        d_table = None
        if table is not None:  # that the rows are in the table was seen when they were read
            entries = torch.from_numpy(call.rows.reshape(1, -1)), torch.from_numpy(values)
            d_table = torch.sparse_coo_tensor(*entries, table.shape, check_invariants=False)
        return None, d_ends[0], d_table, *d_ends[1:], *gradients
