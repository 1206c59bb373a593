"""Which weights a model has, and where they lie: looked up once, and checked each time, for that takes a tenth."""

import operator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.plan import addresses, as_array
from livelm.models.ops.rwkv7_cpu.forward import HEAD_NORM_EPS
from livelm.models.ops.rwkv7_cpu.states import WIDTHS

_plans: WeakKeyDictionary[nn.Module, "Plan"] = WeakKeyDictionary()


class Plan:
    """What a pass through a `rwkv7.RWKV7` needs of it, as long as the model stays as it was."""

    def __init__(self, model: Any) -> None:
        held: list[Any] = [parts for module in model.modules() for parts in (module._parameters, module._modules)]
        found = [(parts, name, part) for parts in held for name, part in parts.items()]
        self._holders, self._names, self._parts = zip(*found, strict=True)
        self.fits = _fits(model)
        if not self.fits:
            return
        blocks = [weight for block in model.blocks for weight in _weights(block)]
        norm, last = model.blocks[0].ln0, model.ln_out
        ends = model.emb.weight, norm.weight, norm.bias, last.weight, last.bias
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *blocks)
        """Rows of tokens, gain and bias of the first norm and of the last; N_WEIGHTS of each block."""
        self._there = [weight for weight in self.weights if weight is not None]
        self._places = list(map(Tensor.data_ptr, self._there))
        self.ends = tuple(map(as_array, ends))
        self.at = addresses(blocks)

    def stands(self) -> bool:
        """Whether every part of the model is what it was and, if it fits, where it was."""
        if not all(map(operator.is_, map(dict.get, self._holders, self._names), self._parts)):
            return False
        return not self.fits or list(map(Tensor.data_ptr, self._there)) == self._places


def plan_of(model: nn.Module) -> Plan:
    """The plan for a model as it is now."""
    plan = _plans.get(model)
    if plan is None or not plan.stands():
        plan = _plans[model] = Plan(model)
    return plan


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
