"""Which weights a `transformer.Transformer` has, and whether it can go the compiled way."""

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

NO_ROWS = np.empty((0, 0), np.float32)


class Plan(plans.Plan):
    """What a pass through a `transformer.Transformer` needs of it."""

    def __init__(self, model: Any) -> None:
        super().__init__(_modules(model))
        self.fits = _fits(model)
        if not self.fits:
            return
        blocks = [weight for block in model.blocks for weight in _weights(block)]
        norm, ngrams = model.norm, model.ngrams
        ends = (model.embed.weight, None if ngrams is None else ngrams.table, norm.weight, getattr(norm, "bias", None))
        self.weights: tuple[nn.Parameter | None, ...] = (*ends, *blocks)
        """Rows of tokens and of n-grams, gain and bias of the last norm; N_WEIGHTS of each block."""
        self.settle(self.weights)
        self.embedding, self.table, self.gain, self.bias = map(as_array, ends)
        self.at = addresses(blocks)
        self.frequencies = frequencies(model.config.d_key, torch.device("cpu")).numpy()
        self.multipliers = np.empty((0, 0), np.int64) if ngrams is None else ngrams.multipliers.numpy()


plan_of = plans.remembered(Plan)
"""The plan for a model as it is now."""


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
