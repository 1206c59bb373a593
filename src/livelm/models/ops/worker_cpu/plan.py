"""Which weights a `worker.Worker` has, and whether it can go the compiled way."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.layers import frequencies
from livelm.models.ops import plans
from livelm.models.ops.plans import addresses, as_array
from livelm.models.ops.worker_cpu.places import N_WEIGHTS

N_OF_MIXER = 3


class Plan(plans.Plan):
    """What a pass through a `worker.Worker` needs of it."""

    def __init__(self, model: Any) -> None:
        super().__init__(_modules(model))
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
        self.settle(self.weights)
        self.embedding, self.table, self.gain = map(as_array, ends)
        self.at = addresses(inner)
        self.frequencies = frequencies(model.config.d_head, torch.device("cpu")).numpy()
        self.multipliers = np.empty((0, 0), np.int64) if model.ngrams is None else model.ngrams.multipliers.numpy()


plan_of = plans.remembered(Plan)
"""The plan for a model as it is now."""


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
