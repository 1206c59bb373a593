"""The trunk of the bit model for few patches on a CPU: all reversible blocks in one compiled function, and back.

What the blocks do is what those of `few_tokens_cpu` do, whose halves are used; here each half reads one of two streams
and is added to the other. With `backward = "inverse"` nothing is kept of a block, as in `ops.reversible`.

The truth it is tested against is `models.bit.Bit.trunk`.

    plan    which weights there are, and where
    passes  rows of patches | blocks | last norm; and the same from its end
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from livelm.compiled.vectors import LANES
from livelm.models.ops.bit_cpu.passes import pass_backward, pass_forward
from livelm.models.ops.bit_cpu.plan import Plan, plan_of
from livelm.models.ops.few_tokens_cpu.limits import few
from livelm.models.ops.few_tokens_cpu.parts import Form
from livelm.models.ops.few_tokens_cpu.places import buffer_size
from livelm.models.ops.patches import Patches
from livelm.models.ops.plans import addresses, as_array
from livelm.types import State

__all__ = ["plan_for", "trunk"]


def plan_for(model: Any, leaf: Int[Tensor, "B W"], state: State) -> Plan | None:
    """How a `bit.Bit` takes these patches this way; None where it cannot: see `plan`, and few patches."""
    plan = plan_of(model) if few(leaf, model.config.d_model) else None
    return plan if plan is not None and plan.fits and _as_expected(model.config, len(leaf), state) else None


def _as_expected(c: Any, n_lanes: int, state: State) -> bool:
    """Whether a state has the shapes that it should, without gaps: compiled functions look at no bounds."""
    shapes = {"keys": (n_lanes, c.context - 1, c.n_heads, c.d_head), "documents": (n_lanes, c.context - 1)}
    shapes |= {"values": shapes["keys"], "heard": (n_lanes, c.d_model)}
    return all(
        tensor.is_contiguous() and tensor.is_cpu and tensor.shape == shape
        for name, tensor in state.items()
        if (shape := shapes.get(name.partition(".")[0])) is not None
    )


def trunk(model: Any, plan: Plan, patches: Patches, state: State) -> tuple[Float[Tensor, "B R D"], State]:
    """What `Bit.trunk` computes, by its `plan_for` these."""
    call = _Call(model.config, plan, patches, state)
    return _Pass.apply(call, *plan.weights), call.after(patches.n_whole)  # type: ignore[return-value]


class _Call:
    """What a pass reads and leaves, besides weights."""

    def __init__(self, c: Any, plan: Plan, patches: Patches, state: State) -> None:
        n_lanes, n_rows = patches.leaf.shape
        n_kept = c.n_layers if c.backward == "stored" else 0
        sizes = n_lanes, n_rows, -(-n_rows // LANES) * LANES, c.context - 1, n_kept, c.d_model
        sizes += c.n_heads, c.n_heads, c.d_head, c.hidden, c.context
        self.form = form = Form(*sizes, centred=False, norm_eps=1e-6, qk_norm=True, squared=True)
        self.plan, self.heard = plan, state["heard"]
        self.documents = torch.cat([state["documents"], patches.document], dim=1)
        self.read = patches.leaf.contiguous().numpy(), patches.position.contiguous().numpy(), self.documents.numpy()
        places = [f"{name}.{layer}" for layer in range(c.n_layers) for name in ("keys", "values")]
        self.past = [state[place] for place in places]
        self.past_at = addresses(self.past)
        size = n_lanes, form.n_carried + n_rows, c.n_heads, c.d_head
        self.all = {place: torch.empty(size) for place in places}
        self.all_at = addresses(list(self.all.values()))
        self.buffer = np.empty(buffer_size(form), np.float32)
        self.streams = np.empty((2, c.d_model, n_lanes * form.n_padded), np.float32)

    def after(self, n_whole: Int[Tensor, " B"]) -> State:
        """The state after the pass: of each lane what is last, without idle rows."""
        n_kept, ends = self.form.n_carried, n_whole.tolist()
        every = {"documents": self.documents} | self.all
        if not self.form.n_layers:
            self.all = {}  # computed again
        return {
            name: rows[:, ends[0] : ends[0] + n_kept].contiguous()
            if len(ends) == 1
            else torch.stack([lane[end : end + n_kept] for lane, end in zip(rows, ends, strict=True)])
            for name, rows in every.items()
        }


class _Pass(torch.autograd.Function):
    """One operation for everything: what is between costs more than what is in it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *weights: Tensor | None) -> Tensor:
        plan, form = call.plan, call.form
        rows = torch.empty(form.n_lanes, form.n_tokens + 1, form.d_model)
        rows[:, 0] = call.heard
        ends, at = (plan.embedding, plan.gain), (plan.at, call.past_at, call.all_at)
        pass_forward(form, call.read, plan.frequencies, ends, at, rows.numpy(), call.buffer, call.streams)
        ctx.call = call
        ctx.save_for_backward(*weights, *call.past)  # so that torch notices what is changed before it is differentiated
        return rows

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        embedding, gain, *weights = ctx.saved_tensors[: len(call.plan.weights)]
        gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        d_ends = torch.zeros_like(embedding), torch.empty_like(gain)
        stored = call.form.n_layers > 0
        at = call.plan.at, addresses(gradients), call.all_at if stored else call.past_at
        streams = call.streams if stored else call.streams.copy()  # for a graph that is kept
        known = call.read[0], call.plan.gain, at, call.buffer, streams, tuple(map(as_array, d_ends))
        pass_backward(call.form, given[0].contiguous().numpy(), *known)
        return None, *d_ends, *gradients
