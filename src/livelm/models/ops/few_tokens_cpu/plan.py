"""Which weights a model has, and where they lie: looked up once, and checked each time, for that takes a tenth."""

import operator
from array import array
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.layers import frequencies

_plans: WeakKeyDictionary[nn.Module, "Plan"] = WeakKeyDictionary()
NO_ROWS = np.empty((0, 0), np.float32)


class Plan:
    """What a pass through a `transformer.Transformer` needs of it, as long as the model stays as it was."""

    def __init__(self, model: Any) -> None:
        modules = list(_modules(model))
        held: list[Any] = [parts for module in modules for parts in (module._parameters, module._modules)]
        found = [(parts, name, part) for parts in held for name, part in parts.items()]
        self._holders, self._names, self._parts = zip(*found, strict=True)
        self.fits = _fits(model)
        if not self.fits:
            return
        blocks = [weight for block in model.blocks for weight in _weights(block)]
        norm, ngrams = model.norm, model.ngrams
        ends = (model.embed.weight, None if ngrams is None else ngrams.table, norm.weight, getattr(norm, "bias", None))
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *blocks)
        """Rows of tokens and of n-grams, gain and bias of the last norm; N_WEIGHTS of each block."""
        self._there = [weight for weight in self.weights if weight is not None]
        self._places = list(map(Tensor.data_ptr, self._there))
        self.embedding, self.table, self.gain, self.bias = map(as_array, ends)
        self.at = addresses(blocks)
        self.frequencies = frequencies(model.config.d_key, torch.device("cpu")).numpy()
        self.multipliers = np.empty((0, 0), np.int64) if ngrams is None else ngrams.multipliers.numpy()

    def stands(self) -> bool:
        """Whether every part of the model is what it was and, if it fits, where it was. (Loops in C: 100 parts.)"""
        if not all(map(operator.is_, map(dict.get, self._holders, self._names), self._parts)):
            return False
        return not self.fits or list(map(Tensor.data_ptr, self._there)) == self._places


def plan_of(model: nn.Module) -> Plan:
    """The plan for a model as it is now."""
    plan = _plans.get(model)
    if plan is None or not plan.stands():
        plan = _plans[model] = Plan(model)
    return plan


def as_array(tensor: Tensor | None) -> np.ndarray:
    """The same memory for numba; nothing where there is none."""
    return np.empty(0, np.float32) if tensor is None else tensor.detach().numpy()


def addresses(tensors: list[Any]) -> np.ndarray:
    """Of some tensors; 0 where there is none."""
    return np.frombuffer(array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors]), np.int64)


def _fits(model: Any) -> bool:
    """float32 on the CPU, no gate, no rank, no learned initial state, no adapters."""
    c = model.config
    maps = [linear for b in model.blocks for linear in (b.attention.project, b.attention.out, b.mlp.up, b.mlp.down)]
    kept = [*model.blocks.parameters(), *model.norm.parameters(), model.embed.weight]
    return (
        type(model.embed) is nn.Embedding
        and all(width % LANES == 0 for width in (c.d_model, c.hidden))
        and not c.gate
        and c.rank is None
        and c.initial_state == "zero"
        and all(type(linear) is nn.Linear for linear in maps)
        and all(map(flat, kept if model.ngrams is None else [*kept, model.ngrams.table]))
    )


def _modules(model: Any) -> Iterator[nn.Module]:
    yield from (model, model.blocks, model.norm, model.embed)
    if model.ngrams is not None:
        yield model.ngrams
    for block in model.blocks:
        yield from block.modules()


def _weights(block: Any) -> tuple[Any, ...]:
    """In the order in which `block_forward` takes them."""
    attention, mlp, norm, norm_2 = block.attention, block.mlp, block.attention_norm, block.mlp_norm
    up, down = mlp.up, mlp.down
    weights = norm.weight, getattr(norm, "bias", None), attention.project.weight, attention.out.weight
    return *weights, norm_2.weight, getattr(norm_2, "bias", None), up.weight, up.bias, down.weight, down.bias
