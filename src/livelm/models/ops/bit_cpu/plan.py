"""Which weights a `bit.Bit` has, and whether it can go the compiled way."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from livelm.compiled.addresses import flat
from livelm.compiled.vectors import LANES
from livelm.models.layers import frequencies
from livelm.models.ops import plans
from livelm.models.ops.plans import addresses, as_array


class Plan(plans.Plan):
    """What a pass through a `bit.Bit` needs of it."""

    def __init__(self, model: Any) -> None:
        super().__init__(_modules(model))
        self.fits = _fits(model)
        if not self.fits:
            return
        blocks = [weight for block in model.blocks for weight in _weights(block)]
        ends = model.embed.weight, model.norm.weight
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *blocks)
        """Rows of patches, gain of the last norm; `few_tokens_cpu.places.N_WEIGHTS` of each block."""
        self.settle(self.weights)
        self.embedding, self.gain = map(as_array, ends)
        self.at = addresses(blocks)
        self.frequencies = frequencies(model.config.d_head, torch.device("cpu")).numpy()


plan_of = plans.remembered(Plan)
"""The plan for a model as it is now."""


def _fits(model: Any) -> bool:
    """float32 on the CPU, no adapters."""
    c = model.config
    maps = [linear for block in model.blocks for linear in (block.project, block.out, block.up, block.down)]
    return (
        type(model.embed) is nn.Embedding
        and all(width % LANES == 0 for width in (c.d_model, c.hidden))
        and all(type(linear) is nn.Linear for linear in maps)
        and all(map(flat, (*model.blocks.parameters(), model.norm.weight, model.embed.weight)))
    )


def _modules(model: Any) -> Iterator[nn.Module]:
    yield from (model, model.blocks, model.norm, model.embed)
    for block in model.blocks:
        yield from block.modules()


def _weights(block: Any) -> tuple[Any, ...]:
    """In the order of `few_tokens_cpu.places.weights_of`."""
    attention = block.attention_norm.weight, None, block.project.weight, block.out.weight
    return *attention, block.mlp_norm.weight, None, block.up.weight, None, block.down.weight, None
