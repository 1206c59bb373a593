"""The worker model for few tokens on a CPU: from tokens to what the head reads in one compiled function, and back.

For 64 bytes and their gradient torch starts some 1,700 operations, which takes eight times as long as their products.
Here a pass is one function in machine code, and its products are those of `ops.products`. Everything is done by one
thread, in the same order each time.

The truth it is tested against is the torch code of `models.worker`.

    plan       which weights there are, and where
    window     who is a worker, who hears whom, which keys a worker sees
    passes     rows of tokens and n-grams | blocks | last mixer and norm; and the same from its end
    mixer      the local mixer of every token, forward and back
    work       the workers' attention and feed-forward layer, and what is heard of them
    work_back  the same from its end
    places     how tokens lie; where weights, states, and what backward wants to know, lie

What is not specific to the model is that of `few_tokens_cpu.parts`: norms, rotary positions.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.plan import NO_ROWS
from livelm.models.ops.plans import addresses, as_array
from livelm.models.ops.worker_cpu.passes import pass_backward, pass_forward
from livelm.models.ops.worker_cpu.places import N_WEIGHTS, Form, buffer_size, filled_up
from livelm.models.ops.worker_cpu.plan import N_OF_MIXER, Plan, plan_of
from livelm.models.ops.worker_cpu.window import N_ROWS, count_workers
from livelm.types import State

__all__ = ["hidden", "plan_for"]

MOST_WIDTH, MOST_TOKENS = 384 if LANES == 16 else 512, 1024
"""Of the stream, and of all lanes."""
MOST_WORK = 1 << 26
"""Tokens times D^2 times torch's threads, from where on torch has enough to do in each of its operations. Whole updates
on one core, 48 to 1024 tokens: 4.0 to 1.6 times as fast as by torch at D = 64, 2.6 to 1.5 at 128, 1.4 to 1.3 at 256,
1.1 at 384; no faster at 512, where reading and writing the weights takes the time. With vectors of 8 numbers (Zen 3),
16 to 256 tokens: 6.8 to 3.2 at D = 64, 1.75 to 1.4 at 256, 1.6 to 1.3 at 512."""
MOST_SCORES = 1 << 20
"""Of all workers and heads of a block; beyond they leave the cache, which torch's attention does not let them."""


def plan_for(model: Any, tokens: Int[Tensor, "B T"], state: State) -> Plan | None:
    """How a `worker.Worker` goes this way; None where it cannot: see `plan`, and few tokens."""
    c, n = model.config, tokens.numel()
    few = tokens.is_cpu and tokens.dtype == torch.int64 and 0 < n <= MOST_TOKENS and c.d_model <= MOST_WIDTH
    if not few or n * c.d_model**2 * torch.get_num_threads() > MOST_WORK:
        return None
    n_wide = filled_up(-(-tokens.shape[1] // c.stride))
    if len(tokens) * c.n_heads * (state["keys.0"].shape[1] + tokens.shape[1]) * n_wide > MOST_SCORES:
        return None
    plan = plan_of(model)
    return plan if plan.fits and _as_expected(model, len(tokens), state) else None


def _as_expected(model: Any, n_lanes: int, state: State) -> bool:
    """Whether a state has the shapes that it should, without gaps: compiled functions look at no bounds."""
    c, n_back = model.config, 0 if model.ngrams is None else model.ngrams.n_back
    keys, local = (n_lanes, state["keys.0"].shape[1], c.n_heads, c.d_head), (n_lanes, c.n_taps - 1, c.d_model)
    shapes = {"age": (n_lanes,), "keys": keys, "values": keys, "local": local, "told": (n_lanes, c.d_model)}
    shapes["recent"] = n_lanes, n_back
    return all(
        tensor.is_contiguous()
        and tensor.is_cpu
        and tensor.shape == shapes.get(name.partition(".")[0])
        and tensor.dtype == (torch.int64 if name in ("age", "recent") else torch.float32)
        for name, tensor in state.items()
    )


def hidden(
    model: Any, plan: Plan, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
) -> tuple[Float[Tensor, "B T D"], State]:
    """What `Worker.hidden` computes, by its `plan_for` these.

    Raises IndexError for ids outside the vocabulary, ValueError for starts of another shape.
    """
    if starts.shape != tokens.shape:
        raise ValueError(f"{tuple(starts.shape)} starts for {tuple(tokens.shape)} tokens.")
    call = _Call(model.config, plan, tokens, starts, state)
    # as in torch, weights have no part in fewer tokens than a stride that hold no worker
    idle = call.form.n_workers == 0 and tokens.shape[1] < model.config.stride
    return _Pass.apply(call, *(plan.of_mixers if idle else plan.weights)), call.after  # type: ignore[return-value]


class _Call:
    """What a pass reads and leaves, besides weights."""

    def __init__(self, c: Any, plan: Plan, tokens: Tensor, starts: Tensor, state: State) -> None:
        self.plan, self.tokens, self.starts = plan, tokens.contiguous(), starts.contiguous()
        n_lanes, n_tokens = tokens.shape
        self.grid = np.empty((N_ROWS, n_lanes * n_tokens + 1), np.int64)
        age = torch.empty(n_lanes, dtype=torch.int64)
        counted = count_workers(self.starts.numpy(), state["age"].numpy(), c.stride, self.grid, age.numpy())
        n_workers, most, n_segments = counted
        n_carried, after_last = state["keys.0"].shape[1], 0 if n_lanes == 1 else LANES - 1
        columns = filled_up((n_lanes - 1) * n_tokens + filled_up(n_tokens))
        sizes = n_lanes, n_tokens, columns, n_carried, n_workers, filled_up(n_workers + after_last), filled_up(most)
        sizes += n_segments, c.n_layers, c.d_model, c.n_heads, c.d_head, c.hidden, c.n_taps, c.context
        self.form = form = Form(*sizes)
        self.after: State = {"age": age}
        keys, told = (n_lanes, min(c.context, n_carried + n_tokens), c.n_heads, c.d_head), (n_lanes, c.d_model)
        local = n_lanes, c.n_taps - 1, c.d_model
        for i in range(c.n_layers):
            for name, shape in (("keys", keys), ("values", keys), ("local", local), ("told", told)):
                self.after[f"{name}.{i}"] = torch.empty(shape)
        self.after["local.last"] = torch.empty(local)
        names = list(self.after)[1:]
        self.past = [state[name] for name in names]
        self.past_at, self.after_at = addresses(self.past), addresses([self.after[name] for name in names])
        self.buffer = np.empty(buffer_size(form), np.float32)
        n_orders, n_back = len(plan.multipliers), max(plan.multipliers.shape[1] - 1, 0)
        self.rows = np.empty((*tokens.shape, n_orders), np.int64)
        halves = [np.empty((*tokens.shape, c.d_model if n_orders else 0), np.float32) for _ in range(2)]
        recent = torch.empty(n_lanes, n_back, dtype=torch.int64)
        before, table = (state["recent"].numpy(), plan.table) if n_orders else (recent.numpy(), NO_ROWS)
        self.ngrams = table, before, plan.multipliers, self.rows, *halves, recent.numpy()
        if n_orders:
            self.after["recent"] = recent


class _Pass(torch.autograd.Function):
    """One operation for everything: what is between costs more than what is in it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *weights: Tensor | None) -> Tensor:
        plan, form = call.plan, call.form
        h = torch.empty(form.n_lanes, form.n_tokens, form.d_model)
        rows = h.view(-1, form.d_model).numpy()
        read, ends = (call.tokens.numpy(), call.starts.numpy(), plan.frequencies), (plan.embedding, plan.gain)
        at = plan.at, call.past_at, call.after_at
        if not pass_forward(form, read, call.grid, ends, call.ngrams, at, rows, call.buffer):
            raise IndexError(f"an id is outside of the vocabulary of {len(plan.embedding)}.")
        ctx.call = call
        ctx.save_for_backward(*weights, *call.past)  # so that torch notices what is changed before it is differentiated
        return h

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        form, plan = call.form, call.plan
        embedding, table, gain, *inner = ctx.saved_tensors[: len(plan.weights)]
        gradients = [None if weight is None else _empty(form, i, weight) for i, weight in enumerate(inner)]
        d_ends = torch.zeros_like(embedding), torch.empty_like(gain)
        values = np.empty((call.rows.size, 0 if table is None else table.shape[1]), np.float32)
        at = plan.at, addresses(gradients), call.past_at
        known = call.tokens.numpy(), call.grid, plan.gain, at, call.buffer, tuple(map(as_array, d_ends))
        pass_backward(form, given[0].contiguous().view(-1, form.d_model).numpy(), *known, values)
        d_table = None
        if table is not None:  # that the rows are in the table was seen when they were read
            entries = torch.from_numpy(call.rows.reshape(1, -1)), torch.from_numpy(values)
            d_table = torch.sparse_coo_tensor(*entries, table.shape, check_invariants=False)
        return None, d_ends[0], d_table, d_ends[1], *gradients


def _empty(form: Form, i: int, weight: Tensor) -> Tensor:
    """Memory for a gradient; zero where there was no worker to fill it."""
    return torch.empty_like(weight) if form.n_workers or i % N_WEIGHTS < N_OF_MIXER else torch.zeros_like(weight)
