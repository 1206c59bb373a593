"""A block of the transformer for one lane of few tokens on CUDA: thirteen kernels forward and backward, not ninety.

What 32 tokens cost a card is not arithmetic and not memory, it is the number of kernels that wait for one another, each
some microseconds. So a kernel here is a whole stage: it norms what it reads as often as it needs it, because that is
cheaper than another kernel, and it leaves the gradient of its weights where it has both factors at hand. Sums over the
programs of a stage go through memory and are added in a fixed order by the next one: no atomics, equal bits each time.

The truth it is tested against is the torch code of `models.transformer`.

    attention: project (norm, product, compress, rotate) | attend | add (product, residual)
    backward:  attend (through the output map) | project | norm | two sums
    feed-forward: widen (norm, product, rectify) | add
    backward:  widen (both maps) | norm | sum
"""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor, nn

from livelm.models.ops import few_tokens_kernels as kernels

MOST_TOKENS, MOST_CHANNELS = 64, 512
"""What still fits into the registers and the shared memory of a multiprocessor."""
ACTIVATIONS = {"relu": 1, "relu2": 2}


def fits(module: Any, x: Float[Tensor, "B T D"], keys: Float[Tensor, "B C G K"]) -> bool:
    """Whether a `transformer.Block` can go this way: one lane, few tokens, a full window, no gates, no adapters."""
    c, maps = module.attention.config, (module.attention.project, module.attention.out, module.mlp.up, module.mlp.down)
    return (
        x.shape[0] == 1
        and x.shape[1] <= MOST_TOKENS
        and x.dtype == torch.float32
        and keys.shape[1] == c.context >= x.shape[1]
        and c.context % kernels.KEYS_AT_ONCE.value == 0
        and c.kv_heads == c.n_heads
        and c.d_model <= MOST_CHANNELS
        and c.d_model % kernels.CHANNELS_AT_ONCE.value == 0
        and c.hidden % kernels.HIDDEN_AT_ONCE.value == 0
        and all(width >= 16 and width & (width - 1) == 0 for width in (c.d_head, c.d_key))
        and not c.gate
        and c.initial_state == "zero"
        and all(type(linear) is nn.Linear for linear in maps)
    )


def block(
    module: Any,
    x: Float[Tensor, "1 T D"],
    keys: Float[Tensor, "1 C H K"],
    values: Float[Tensor, "1 C H E"],
    bias: Float[Tensor, "1 1 T S"],
    angles: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """What `transformer.Block` computes where it `fits`; of all keys and values only the newest C come back."""
    attention, mlp = module.attention, module.mlp
    compress = getattr(attention, "compress", None)
    inputs = (x.contiguous(), keys.contiguous(), values.contiguous(), bias.contiguous(), *angles)
    inputs += _norm_of(module.attention_norm)
    x, k, v = _Attend.apply(  # type: ignore[misc]
        *inputs, attention.project.weight, compress, attention.out.weight, attention.config, module.attention_norm.eps
    )
    activation = ACTIVATIONS["relu2" if mlp.squared else "relu"]
    maps = (mlp.up.weight, mlp.up.bias, mlp.down.weight, mlp.down.bias)
    y = _Widen.apply(x, *_norm_of(module.mlp_norm), *maps, activation, module.mlp_norm.eps)  # type: ignore[misc]
    return y, k, v  # type: ignore[return-value]


def _norm_of(norm: Any) -> tuple[Any, Any]:
    return norm.weight, getattr(norm, "bias", None)


class _Attend(torch.autograd.Function):
    """x + out(attention(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        cos: Tensor,
        sin: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        compress: Tensor | None,
        out: Tensor,
        c: Any,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_rows, n_channels = x.shape[1:]
        sizes = _sizes(n_rows, n_channels)
        heads = {"D_HEAD": c.d_head, "D_KEY": c.d_key}
        qk_eps = 1e-6 if c.qk_norm else 0.0
        raw = x.new_empty(n_rows, 3 * c.n_heads, c.d_head)
        compared = x.new_empty(n_rows, 2 * c.n_heads, c.d_key)
        kernels.project_forward[(3 * c.n_heads,)](
            *(x, gain, shift, weight, compress, cos, sin, raw, compared, n_rows, c.n_heads, n_channels, eps, qk_eps),
            **sizes,
            **heads,
        )
        found, lengths = x.new_empty(n_rows, c.n_heads, c.d_head), x.new_empty(c.n_heads, n_rows)
        after = torch.empty_like(keys), torch.empty_like(values)
        kernels.attend_forward[(c.n_heads,)](
            *(compared, raw, keys, values, bias, found, lengths, *after, n_rows, c.n_heads, c.context),
            ROWS=sizes["ROWS"],
            **heads,
        )
        y = _add(x, found, out, None, c.n_heads * c.d_head, sizes["ROWS"])
        ctx.save_for_backward(
            *(x, keys, values, bias, cos, sin, gain, shift, weight, compress, out, raw, compared, found, lengths)
        )
        ctx.c, ctx.eps, ctx.qk_eps = c, eps, qk_eps
        ctx.mark_non_differentiable(*after)
        return y, *after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, c = grads[0].contiguous(), ctx.c
        x, keys, values, bias, cos, sin, gain, shift, weight, compress, out, *kept = ctx.saved_tensors
        raw, compared, found, lengths = kept
        n_rows, n_channels = x.shape[1:]
        sizes = _sizes(n_rows, n_channels)
        d_out, d_weight, d_raw = torch.empty_like(out), torch.empty_like(weight), torch.empty_like(raw)
        d_compress = None if compress is None else x.new_empty(2 * c.n_heads, *compress.shape)
        kernels.attend_backward[(c.n_heads,)](
            *(compared, raw, keys, values, bias, found, lengths, compress, cos, sin, out, dy, d_out, d_raw, d_compress),
            *(n_rows, c.n_heads, n_channels, ctx.qk_eps, c.context),
            ROWS=sizes["ROWS"],
            D_HEAD=c.d_head,
            D_KEY=c.d_key,
        )
        parts = x.new_empty(3 * c.n_heads, n_rows, n_channels)
        kernels.project_backward[(3 * c.n_heads,)](
            *(x, gain, shift, weight, d_raw, d_weight, parts, n_rows, c.n_heads, n_channels, ctx.eps),
            **sizes,
            D_HEAD=c.d_head,
        )
        dx, d_gain, d_shift = _through_norm(x, gain, shift, parts, dy, ctx.eps)
        if d_compress is not None:
            d_compress = d_compress.sum(0)
        return dx, None, None, None, None, None, d_gain, d_shift, d_weight, d_compress, d_out, None, None


class _Widen(torch.autograd.Function):
    """x + down(rectified(up(norm(x))))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        activation: int,
        eps: float,
    ) -> Tensor:
        n_rows, n_channels = x.shape[1:]
        sizes = _sizes(n_rows, n_channels)
        h = x.new_empty(n_rows, len(up))
        kernels.widen_forward[(len(up) // kernels.HIDDEN_AT_ONCE.value,)](
            *(x, gain, shift, up, up_bias, h, n_rows, len(up), n_channels, eps, activation), **sizes
        )
        y = _add(x, h, down, down_bias, len(up), sizes["ROWS"])
        ctx.save_for_backward(x, gain, shift, up, down, h)
        ctx.activation, ctx.eps, ctx.biased = activation, eps, up_bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, gain, shift, up, down, h = ctx.saved_tensors
        n_rows, n_channels = x.shape[1:]
        n_programs = len(up) // kernels.HIDDEN_AT_ONCE.value
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)
        biases = (x.new_empty(len(up)), x.new_empty(n_channels)) if ctx.biased else (None, None)
        parts = x.new_empty(n_programs, n_rows, n_channels)
        kernels.widen_backward[(n_programs,)](
            *(x, gain, shift, up, down, h, dy, d_up, biases[0], d_down, biases[1], parts),
            *(n_rows, len(up), n_channels, ctx.eps, ctx.activation),
            **_sizes(n_rows, n_channels),
        )
        dx, d_gain, d_shift = _through_norm(x, gain, shift, parts, dy, ctx.eps)
        return dx, d_gain, d_shift, d_up, biases[0], d_down, biases[1], None, None


def _add(x: Tensor, h: Tensor, weight: Tensor, shift: Tensor | None, n_inner: int, n_padded: int) -> Tensor:
    """x + h weight' + shift."""
    y, (n_rows, n_channels) = torch.empty_like(x), x.shape[1:]
    grid = (n_channels // kernels.CHANNELS_AT_ONCE.value,)
    kernels.add_forward[grid](x, h, weight, shift, y, n_rows, n_channels, n_inner, ROWS=n_padded)
    return y


def _through_norm(
    x: Tensor, gain: Tensor, shift: Tensor | None, parts: Tensor, dy: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, and the gradients of gain and shift, from what `parts` add up to."""
    n_rows, n_channels = x.shape[1:]
    dx, d_norm = torch.empty_like(x), x.new_empty(n_rows, 2, n_channels)
    kernels.norm_backward[(n_rows,)](
        *(x, gain, shift, parts, dy, dx, d_norm, n_rows, len(parts), n_channels, eps),
        PARTS=triton.next_power_of_2(len(parts)),
        CHANNELS=triton.next_power_of_2(n_channels),
    )
    d_gain, d_shift = d_norm.sum(0)
    return dx, d_gain, None if shift is None else d_shift


def _sizes(n_rows: int, n_channels: int) -> dict[str, Any]:
    return {"ROWS": max(16, triton.next_power_of_2(n_rows)), "CHANNELS": triton.next_power_of_2(n_channels)}
