"""Which weights a model has, and where they lie: looked up once, and checked each time, for that takes a tenth."""

import operator
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.layers import frequencies
from livelm.models.ops.few_tokens_cpu.plan import addresses, as_array
from livelm.models.ops.worker_cpu.places import N_WEIGHTS

N_OF_MIXER = 3
_plans: WeakKeyDictionary[nn.Module, "Plan"] = WeakKeyDictionary()


class Plan:
    """What a pass through a `worker.Worker` needs of it, as long as the model stays as it was."""

    def __init__(self, model: Any) -> None:
        modules = list(_modules(model))
        held: list[Any] = [parts for module in modules for parts in (module._parameters, module._modules)]
        found = [(parts, name, part) for parts in held for name, part in parts.items()]
        self._holders, self._names, self._parts = zip(*found, strict=True)
        self.fits = _fits(model)
        if not self.fits:
            return
        inner = [weight for block in model.blocks for weight in _weights(block)]
        inner += _mixer_weights(model.last)
        ends = model.embed.weight, None if model.ngrams is None else model.ngrams.table, model.norm.weight
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *inner)
        """Rows of tokens and of n-grams, gain of the last norm; N_WEIGHTS of each block, those of the last mixer."""
        self.of_mixers = (*ends, *(weight if i % N_WEIGHTS < N_OF_MIXER else None for i, weight in enumerate(inner)))
        """The same without those that only workers meet."""
        self._there = [weight for weight in self.weights if weight is not None]
        self._places = list(map(Tensor.data_ptr, self._there))
        self.embedding, self.table, self.gain = map(as_array, ends)
        self.at = addresses(inner)
        self.frequencies = frequencies(model.config.d_head, torch.device("cpu")).numpy()
        self.multipliers = np.empty((0, 0), np.int64) if model.ngrams is None else model.ngrams.multipliers.numpy()

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


def _fits(model: Any) -> bool:
    """float32 on the CPU, no learned initial state, no adapters."""
    c = model.config
    maps = [linear for b in model.blocks for linear in (b.local.project, b.ask, b.out, b.up, b.down, b.tell)]
    kept = [*model.blocks.parameters(), *model.last.parameters(), *model.norm.parameters(), model.embed.weight]
    return (
        type(model.embed) is nn.Embedding
        and all(width % LANES == 0 for width in (c.d_model, c.hidden))
        and c.initial_state == "zero"
        and all(type(linear) is nn.Linear for linear in (*maps, model.last.project))
        and all(map(flat, kept if model.ngrams is None else [*kept, model.ngrams.table]))
    )


def _modules(model: Any) -> Iterator[nn.Module]:
    yield from (model, model.blocks, model.norm, model.embed, *model.last.modules())
    if model.ngrams is not None:
        yield model.ngrams
    for block in model.blocks:
        yield from block.modules()


def _weights(block: Any) -> tuple[Any, ...]:
    """In the order of `places.mixer_weights` and `places.work_weights`."""
    attention = block.attention_norm.weight, block.ask.weight, block.out.weight
    rest = block.mlp_norm.weight, block.up.weight, block.down.weight, block.tell.weight
    return *_mixer_weights(block.local), *attention, *rest


def _mixer_weights(mixer: Any) -> tuple[Any, ...]:
    return mixer.norm.weight, mixer.taps, mixer.project.weight
