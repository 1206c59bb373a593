"""Blocks of the looped transformer as compiled functions, for few tokens on a CPU: see `ops.few_tokens_cpu`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.layers import frequencies
from livelm.models.ops.few_tokens_cpu import single
from livelm.models.ops.few_tokens_cpu.limits import as_expected, few
from livelm.models.ops.few_tokens_cpu.parts import Form
from livelm.types import State

Through = Callable[[int, Float[Tensor, "B T D"], Float[Tensor, "B T D"]], tuple[Tensor, Tensor, Tensor]]
"""From a layer of the virtual depth, the stream, and what the first block read: the stream after the layer, and all
keys and values."""


def through(model: Any, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> Through | None:
    """How a `looped.Looped` goes through its layers by compiled functions; None where those cannot take them.

    They know the shipped blocks only: no mix, gains, value embedding, exclusive attention or learned initial state.
    """
    c, (n_lanes, n_tokens) = model.config, tokens.shape
    hidden = c.d_ff or 4 * c.d_model
    plain = not (c.residual_mix or c.branch_gain or c.query_gain or c.n_valued or c.n_exclusive)
    if not (
        plain and c.initial_state == "zero" and few(tokens, c.d_model) and c.d_model % LANES == 0 == hidden % LANES
    ):
        return None
    maps = [(b.attention.project, b.attention.out, b.up, b.down) for b in model.blocks]
    fit = all(type(linear) is nn.Linear and flat(linear.weight) for block in maps for linear in block)
    if not fit or not as_expected(c, n_lanes, state):
        return None
    sizes = n_lanes, n_tokens, -(-n_tokens // LANES) * LANES, state["documents"].shape[1], 1, c.d_model
    sizes += (c.n_heads, c.kv_heads, c.d_head, hidden, c.context)
    form = Form(*sizes, centred=False, norm_eps=1e-6, qk_norm=True, squared=True)
    places = state["position"], state["documents"], frequencies(c.d_head, torch.device("cpu")).numpy()
    at, gain = single.window(form, starts, *places), torch.ones(c.d_model)

    def by_compiled(layer: int, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        project, out, up, down = (linear.weight for linear in maps[c.visits[layer]])
        weights = gain, None, project, out, gain, None, up, None, down, None  # norms without gain, maps without bias
        return single.block(at, x, state[f"keys.{layer}"], state[f"values.{layer}"], weights)

    return by_compiled
