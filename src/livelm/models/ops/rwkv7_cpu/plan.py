"""Which weights a `rwkv7.RWKV7` has, and whether it can go the compiled way."""

from typing import Any

from torch import nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.ops import plans
from livelm.models.ops.plans import addresses, as_array
from livelm.models.ops.rwkv7_cpu.forward import HEAD_NORM_EPS
from livelm.models.ops.rwkv7_cpu.states import WIDTHS


class Plan(plans.Plan):
    """What a pass through a `rwkv7.RWKV7` needs of it."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.modules())
        self.fits = _fits(model)
        if not self.fits:
            return
        blocks = [weight for block in model.blocks for weight in _weights(block)]
        norm, last = model.blocks[0].ln0, model.ln_out
        ends = model.emb.weight, norm.weight, norm.bias, last.weight, last.bias
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *blocks)
        """Rows of tokens, gain and bias of the first norm and of the last; N_WEIGHTS of each block."""
        self.settle(self.weights)
        self.ends = tuple(map(as_array, ends))
        self.at = addresses(blocks)


plan_of = plans.remembered(Plan)
"""The plan for a model as it is now."""


def _fits(model: Any) -> bool:
    """float32 on the CPU, whole vectors everywhere, documents that begin with nothing, every part as it was built."""
    c = model.config
    widths = c.d_model, c.hidden, *c.ranks.values()
    if c.initial_state != "zero" or c.d_head not in WIDTHS or any(width % LANES for width in widths):
        return False
    if not model.is_unaltered():
        return False
    norms = [model.ln_out, model.blocks[0].ln0, *(norm for block in model.blocks for norm in (block.ln1, block.ln2))]
    return (
        all(norm.eps == model.ln_out.eps for norm in norms)
        and all(block.att.ln_x.eps == HEAD_NORM_EPS for block in model.blocks)
        and all(map(flat, [*model.blocks.parameters(), *model.ln_out.parameters(), model.emb.weight]))
    )


def _weights(block: Any) -> tuple[Any, ...]:
    """In the order of `places.Weights`."""
    att, ffn = block.att, block.ffn
    values = (att.v0, att.v1, att.v2) if att.layer else (None, None, None)
    return (
        *(att.x_rwkvag, att.w0, att.w1, att.w2, att.a0, att.a1, att.a2, *values, att.g1, att.g2),
        *(att.k_k, att.k_a, att.r_k),
        *(att.receptance.weight, att.key.weight, att.value.weight, att.output.weight),
        *(att.ln_x.weight, att.ln_x.bias, block.ln1.weight, block.ln1.bias, block.ln2.weight, block.ln2.bias),
        *(ffn.x_k, ffn.key.weight, ffn.value.weight),
    )
