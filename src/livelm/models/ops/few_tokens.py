"""A block of the transformer for one lane of few tokens on CUDA: fifteen kernels forward and backward, not ninety.

What 32 tokens cost a card is not arithmetic and not memory, it is the number of kernels that wait for one another, each
some microseconds. So a kernel here is a whole stage: it norms what it reads as often as it needs it, because that is
cheaper than another kernel, and it leaves the gradient of its weights where it has both factors at hand. Sums over the
programs of a stage go through memory and are added in a fixed order by the next one: no atomics, equal bits each time.

The truth it is tested against is the torch code of `models.transformer`.

    attention: project (norm, product, compress, rotate) | attend, piece by piece | join | add (product, residual)
    backward:  through the output map | attend | project | norm | sums
    feed-forward: widen (norm, product, rectify) | add
    backward:  through the second map | widen | norm | sums
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
        compared, moments = x.new_empty(n_rows, 2 * c.n_heads, c.d_key), x.new_empty(2, n_rows)
        kernels.project_forward[(3 * c.n_heads,)](
            *(x, gain, shift, weight, compress, cos, sin, raw, compared, moments),
            *(n_rows, c.n_heads, n_channels, eps, qk_eps),
            **sizes,
            **heads,
        )
        n_pieces = c.context // kernels.KEYS_AT_ONCE.value + 1  # of the window, and the new ones
        sums = x.new_empty(n_pieces, n_rows, c.n_heads, c.d_head)
        tops, totals = x.new_empty(2, n_pieces, c.n_heads, n_rows)
        after = torch.empty_like(keys), torch.empty_like(values)
        kernels.attend_forward[(c.n_heads, n_pieces)](
            *(compared, raw, keys, values, bias, sums, tops, totals, *after, n_rows, c.n_heads, c.context),
            ROWS=sizes["ROWS"],
            **heads,
        )
        found, lengths = x.new_empty(n_rows, c.n_heads, c.d_head), x.new_empty(c.n_heads, n_rows)
        kernels.join_forward[(c.n_heads,)](
            *(sums, tops, totals, found, lengths, n_rows, c.n_heads, n_pieces),
            PIECES=triton.next_power_of_2(n_pieces),
            ROWS=sizes["ROWS"],
            D_HEAD=c.d_head,
        )
        y = _add(x, found, out, None, c.n_heads * c.d_head, sizes["ROWS"])
        ctx.save_for_backward(
            *(x, keys, values, bias, cos, sin, gain, shift, weight, compress, out),
            *(raw, compared, moments, found, lengths),
        )
        ctx.c, ctx.qk_eps = c, qk_eps
        ctx.mark_non_differentiable(*after)
        ctx.set_materialize_grads(False)  # or zeros would be made for the windows
        return y, *after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, c = grads[0].contiguous(), ctx.c
        x, keys, values, bias, cos, sin, gain, shift, weight, compress, out, *kept = ctx.saved_tensors
        raw, compared, moments, found, lengths = kept
        n_rows, n_channels = x.shape[1:]
        n_padded = _sizes(n_rows, n_channels)["ROWS"]
        heads = {"D_HEAD": c.d_head, "D_KEY": c.d_key}
        n_pieces: int = c.context // kernels.KEYS_AT_ONCE.value + 1
        d_out, d_found = _back_through(out, found, dy, None, c.d_head)
        d_queries = x.new_empty(n_pieces, n_rows, c.n_heads, c.d_key)
        d_keys, d_values = x.new_empty(n_rows, c.n_heads, c.d_key), x.new_empty(n_rows, c.n_heads, c.d_head)
        kernels.attend_backward[(c.n_heads, n_pieces)](
            *(compared, raw, keys, values, bias, found, lengths, d_found, d_queries, d_keys, d_values),
            *(n_rows, c.n_heads, c.context, len(d_found)),
            ROWS=n_padded,
            num_warps=8,
            **heads,
        )
        d_weight, parts = torch.empty_like(weight), x.new_empty(3 * c.n_heads, n_rows, n_channels)
        d_compress = None if compress is None else x.new_empty(2 * c.n_heads, *compress.shape)
        kernels.project_backward[(3 * c.n_heads, len(d_found))](
            *(x, gain, shift, moments, weight, raw, compress, cos, sin, d_queries, d_keys, d_values, d_weight),
            *(d_compress, parts, n_rows, c.n_heads, n_channels, ctx.qk_eps, n_pieces),
            ROWS=n_padded,
            **heads,
        )
        dx, d_gain, d_shift, d_compress = _through_norm(x, gain, shift, moments, parts, dy, d_compress)
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
        h, moments = x.new_empty(n_rows, len(up)), x.new_empty(2, n_rows)
        kernels.widen_forward[(len(up) // kernels.HIDDEN_AT_ONCE.value,)](
            *(x, gain, shift, up, up_bias, h, moments, n_rows, len(up), n_channels, eps, activation), **sizes
        )
        y = _add(x, h, down, down_bias, len(up), sizes["ROWS"])
        ctx.save_for_backward(x, gain, shift, up, down, h, moments)
        ctx.activation, ctx.biased = activation, up_bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, gain, shift, up, down, h, moments = ctx.saved_tensors
        n_rows, n_channels = x.shape[1:]
        d_down_bias, d_up_bias = (x.new_empty(n_channels), x.new_empty(len(up))) if ctx.biased else (None, None)
        d_down, d_h = _back_through(down, h, dy, d_down_bias, kernels.HIDDEN_AT_ONCE.value)
        n_parts: int = len(up) // kernels.HIDDEN_AT_ONCE.value
        d_up, parts = torch.empty_like(up), x.new_empty(n_parts, n_rows, n_channels)
        kernels.widen_backward[(len(parts), len(d_h))](
            *(x, gain, shift, moments, up, h, d_h, d_up, d_up_bias, parts),
            *(n_rows, len(up), n_channels, ctx.activation, len(d_h)),
            ROWS=_sizes(n_rows, n_channels)["ROWS"],
        )
        dx, d_gain, d_shift, _ = _through_norm(x, gain, shift, moments, parts, dy)
        return dx, d_gain, d_shift, d_up, d_up_bias, d_down, d_down_bias, None, None


def _back_through(weight: Tensor, h: Tensor, dy: Tensor, d_shift: Tensor | None, n_units: int) -> tuple[Tensor, Tensor]:
    """Of y = h weight' + shift: the gradient of weight (and shift), and parts that add up to that of h."""
    n_channels, n_inner = weight.shape
    n_rows: int = dy.shape[1]
    n_pieces = -(-n_channels // kernels.INNER_AT_ONCE.value)
    d_weight, d_h = torch.empty_like(weight), h.new_empty(n_pieces, n_rows, n_inner)
    kernels.back_through[(n_inner // n_units, n_pieces)](
        *(weight, h, dy, d_weight, d_shift, d_h, n_rows, n_inner, n_channels),
        ROWS=_sizes(n_rows, n_channels)["ROWS"],
        UNITS=n_units,
    )
    return d_weight, d_h


def _add(x: Tensor, h: Tensor, weight: Tensor, shift: Tensor | None, n_inner: int, n_padded: int) -> Tensor:
    """x + h weight' + shift."""
    y, (n_rows, n_channels) = torch.empty_like(x), x.shape[1:]
    grid = (n_channels // kernels.CHANNELS_AT_ONCE.value,)
    kernels.add_forward[grid](x, h, weight, shift, y, n_rows, n_channels, n_inner, ROWS=n_padded)
    return y


def _through_norm(
    x: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    moments: Tensor,
    parts: Tensor,
    dy: Tensor,
    others: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """dx, and the gradients of gain and shift, from what `parts` add up to; and the sum of `others` on the way."""
    n_rows, n_channels = x.shape[1:]
    dx, d_norm = torch.empty_like(x), x.new_empty(n_rows, 2, n_channels)
    kernels.norm_backward[(n_rows,)](
        *(x, gain, shift, moments, parts, dy, dx, d_norm, n_rows, len(parts), n_channels),
        PARTS=triton.next_power_of_2(len(parts)),
        CHANNELS=triton.next_power_of_2(n_channels),
    )
    total = torch.empty_like(d_norm[0])
    other_total = None if others is None else torch.empty_like(others[0])
    n_others, size = (0, 0) if other_total is None else (len(others), other_total.numel())  # type: ignore[arg-type]
    at_once = kernels.COLUMNS_AT_ONCE.value
    kernels.add_up[(triton.cdiv(total.numel(), at_once) + triton.cdiv(size, at_once),)](
        *(d_norm, total, n_rows, total.numel(), others, other_total, n_others, size),
        PARTS=triton.next_power_of_2(max(n_rows, n_others)),
    )
    return dx, total[0], None if shift is None else total[1], other_total


def _sizes(n_rows: int, n_channels: int) -> dict[str, Any]:
    return {"ROWS": max(16, triton.next_power_of_2(n_rows)), "CHANNELS": triton.next_power_of_2(n_channels)}
