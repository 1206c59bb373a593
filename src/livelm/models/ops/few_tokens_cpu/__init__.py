"""The blocks of the transformer for few tokens on a CPU: one compiled function there and one back, not 70 operations.

What 48 tokens cost a processor is not arithmetic: torch starts some 70 operations for a block and its gradient, of 3 to
15 microseconds each, for products that take two. Here a block is one function in machine code, and its products are
those of `ops.products`. Everything is done by one thread, in the same order each time.

The truth it is tested against is the torch code of `models.transformer`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from livelm.models.ops.few_tokens_cpu.backward import block_backward
from livelm.models.ops.few_tokens_cpu.forward import block_forward
from livelm.models.ops.few_tokens_cpu.parts import Form
from livelm.models.ops.few_tokens_cpu.window import Window, padded, window
from livelm.models.ops.vectors import LANES
from livelm.types import State

__all__ = ["blocks", "fits", "window"]

MOST_TOKENS = 256
N_WEIGHTS = 10
"""Of a block; some may be missing."""
Past = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each block."""
_NONE = np.empty(0, np.float32)


def fits(model: Any, tokens: Int[Tensor, "B T"], state: State) -> bool:
    """Whether a `transformer.Transformer` can go this way: few tokens, no gate, no rank, no adapters, float32."""
    c = model.config
    maps = [(b.attention.project, b.attention.out, b.mlp.up, b.mlp.down) for b in model.blocks]
    return (
        0 < tokens.shape[1] <= MOST_TOKENS
        and model.norm.weight.dtype == torch.float32
        and all(width % LANES == 0 for width in (c.d_model, c.hidden))
        and not c.gate
        and c.rank is None
        and c.initial_state == "zero"
        and all(type(linear) is nn.Linear for block in maps for linear in block)
    )


def blocks(modules: Any, x: Float[Tensor, "B T D"], past: Past, *at: Any) -> tuple[Tensor, Past]:
    """What the `transformer.Block`s compute one after another where they fit; `at` is a `Window`.

    `past`: carried keys and values (B, C, G, E) of each. Returns the stream, and all keys and values.
    """
    first, n_tokens = modules[0], x.shape[1]
    c, sizes = first.attention.config, (len(x), n_tokens, padded(n_tokens), past[0][0].shape[1])
    sizes += (c.d_model, c.n_heads, c.kv_heads, c.d_head, c.hidden)
    form = Form(*sizes, c.norm == "layer", first.attention_norm.eps, c.qk_norm, c.activation == "relu2")
    weights = [weight for module in modules for weight in _weights(module)]
    y, *kept = _Blocks.apply(form, at, past, x, *weights)  # type: ignore[misc]
    return y, list(zip(kept[::2], kept[1::2], strict=True))


class _Blocks(torch.autograd.Function):
    """One operation for everything: what is between costs more than what is in it."""

    @staticmethod
    def forward(ctx: Any, form: Form, at: Window, past: Past, x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
        shape = form.n_lanes, form.n_carried + form.n_tokens, form.n_kv_heads, form.d_head
        x, y, arrays = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format), _arrays(weights)
        known, everything = [], []
        for i, carried in enumerate(past):
            new = torch.empty(shape), torch.empty(shape)
            own, read, written = arrays[N_WEIGHTS * i :][:N_WEIGHTS], _arrays(carried), _arrays(new)
            # the stream goes through `y` from block to block
            kept = block_forward(form, *_arrays([y if i else x]), read, at, own, *_arrays([y]), *written)
            known.append((written, at, own, kept))
            everything += new
        ctx.form, ctx.known = form, known
        ctx.save_for_backward(*weights)  # so that torch notices if one is changed before it is differentiated
        ctx.mark_non_differentiable(*everything)
        return y, *everything

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        gradients = [None if weight is None else torch.empty_like(weight) for weight in ctx.saved_tensors]
        dy = given[0].contiguous()
        dx, arrays = torch.empty_like(dy), _arrays(gradients)
        last, written = dy.numpy(), dx.numpy()
        for i, known in reversed(list(enumerate(ctx.known))):
            block_backward(ctx.form, last, *known, arrays[N_WEIGHTS * i :][:N_WEIGHTS], written)
            last = written
        return None, None, None, dx, *gradients


def _weights(module: Any) -> tuple[Any, ...]:
    """Of a block, in the order in which the compiled functions take them."""
    attention, mlp, norm, norm_2 = module.attention, module.mlp, module.attention_norm, module.mlp_norm
    up, down = mlp.up, mlp.down
    weights = norm.weight, getattr(norm, "bias", None), attention.project.weight, attention.out.weight
    return *weights, norm_2.weight, getattr(norm_2, "bias", None), up.weight, up.bias, down.weight, down.bias


def _arrays(tensors: Sequence[Tensor | None]) -> tuple[np.ndarray, ...]:
    """The same memory for numba; nothing where there is none."""
    return tuple(_NONE if x is None else x.detach().numpy() for x in tensors)
