"""The two halves of a block as differentiable functions: which stages are launched, and on how many programs."""

from typing import Any

import torch
import triton
from torch import Tensor

from livelm.kernels.dependent_launch import DEPENDENT
from livelm.models.ops.few_tokens import attention, feed_forward
from livelm.models.ops.few_tokens.parts import INNER_AT_ONCE, WARPS

N_WARPS = {
    "project_forward": WARPS.value,
    "widen_forward": WARPS.value,
    "add_forward": WARPS.value,
    "norm_backward": 8,
}
"""Of a program of each stage, where it is not four."""


def _launch(stage: Any, grid: tuple[Any, ...], *arguments: Any, **constants: Any) -> None:
    stage[grid](*arguments, **constants, **DEPENDENT, num_warps=N_WARPS.get(stage.__name__, 4))


class Attend(torch.autograd.Function):
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
        """(1, T, D) the stream, and keys and values of the next window."""
        n_rows, n_channels = x.shape[1:]
        sizes = _sizes(n_rows, n_channels)
        heads = {"D_HEAD": c.d_head, "D_KEY": c.d_key}
        qk_eps = 1e-6 if c.qk_norm else 0.0
        raw = x.new_empty(n_rows, 3 * c.n_heads, c.d_head)
        compared, moments = x.new_empty(n_rows, 2 * c.n_heads, c.d_key), x.new_empty(2, n_rows)
        _launch(
            attention.project_forward,
            (3 * c.n_heads,),
            *(x, gain, shift, weight, compress, cos, sin, raw, compared, moments),
            *(n_rows, c.n_heads, n_channels, eps, qk_eps),
            **sizes,
            **heads,
        )
        n_pieces = c.context // attention.KEYS_AT_ONCE.value + 1  # of the window, and the new ones
        sums = x.new_empty(n_pieces, n_rows, c.n_heads, c.d_head)
        tops, totals = x.new_empty(2, n_pieces, c.n_heads, n_rows)
        after = torch.empty_like(keys), torch.empty_like(values)
        _launch(
            attention.attend_forward,
            (c.n_heads, n_pieces),
            *(compared, raw, keys, values, bias, sums, tops, totals, *after, n_rows, c.n_heads, c.context),
            ROWS=sizes["ROWS"],
            **heads,
        )
        found, lengths = x.new_empty(n_rows, c.n_heads, c.d_head), x.new_empty(c.n_heads, n_rows)
        _launch(
            attention.join_forward,
            (c.n_heads,),
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
        """Gradients of the stream, the norm, the maps and `compress`."""
        dy, c = grads[0].contiguous(), ctx.c
        x, keys, values, bias, cos, sin, gain, shift, weight, compress, out, *kept = ctx.saved_tensors
        raw, compared, moments, found, lengths = kept
        n_rows, n_channels = x.shape[1:]
        n_padded = _sizes(n_rows, n_channels)["ROWS"]
        heads = {"D_HEAD": c.d_head, "D_KEY": c.d_key}
        n_pieces: int = c.context // attention.KEYS_AT_ONCE.value + 1
        d_out, d_found = _back_through(out, found, dy, None, c.d_head)
        d_queries = x.new_empty(n_pieces, n_rows, c.n_heads, c.d_key)
        d_keys, d_values = x.new_empty(n_rows, c.n_heads, c.d_key), x.new_empty(n_rows, c.n_heads, c.d_head)
        _launch(
            attention.attend_backward,
            (c.n_heads, n_pieces),
            *(compared, raw, keys, values, bias, found, lengths, d_found, d_queries, d_keys, d_values),
            *(n_rows, c.n_heads, c.context, len(d_found)),
            ROWS=n_padded,
            **heads,
        )
        d_weight, parts = torch.empty_like(weight), x.new_empty(3 * c.n_heads, n_rows, n_channels)
        d_compress = None if compress is None else x.new_empty(2 * c.n_heads, *compress.shape)
        _launch(
            attention.project_backward,
            (3 * c.n_heads, len(d_found)),
            *(x, gain, shift, moments, weight, raw, compress, cos, sin, d_queries, d_keys, d_values, d_weight),
            *(d_compress, parts, n_rows, c.n_heads, n_channels, ctx.qk_eps, n_pieces),
            ROWS=n_padded,
            **heads,
        )
        dx, d_gain, d_shift, d_compress = _through_norm(x, gain, shift, moments, parts, dy, d_compress)
        return dx, None, None, None, None, None, d_gain, d_shift, d_weight, d_compress, d_out, None, None


class Widen(torch.autograd.Function):
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
        """(1, T, D) the stream."""
        n_rows, n_channels = x.shape[1:]
        sizes = _sizes(n_rows, n_channels)
        h, moments = x.new_empty(n_rows, len(up)), x.new_empty(2, n_rows)
        _launch(
            feed_forward.widen_forward,
            (len(up) // feed_forward.WIDENED_AT_ONCE.value,),
            *(x, gain, shift, up, up_bias, h, moments, n_rows, len(up), n_channels, eps, activation),
            **sizes,
        )
        y = _add(x, h, down, down_bias, len(up), sizes["ROWS"])
        ctx.save_for_backward(x, gain, shift, up, down, h, moments)
        ctx.activation, ctx.biased = activation, up_bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the stream, the norm and the maps."""
        dy = grads[0].contiguous()
        x, gain, shift, up, down, h, moments = ctx.saved_tensors
        n_rows, n_channels = x.shape[1:]
        d_down_bias, d_up_bias = (x.new_empty(n_channels), x.new_empty(len(up))) if ctx.biased else (None, None)
        d_down, d_h = _back_through(down, h, dy, d_down_bias, feed_forward.HIDDEN_AT_ONCE.value)
        n_parts: int = len(up) // feed_forward.HIDDEN_AT_ONCE.value
        d_up, parts = torch.empty_like(up), x.new_empty(n_parts, n_rows, n_channels)
        _launch(
            feed_forward.widen_backward,
            (len(parts), len(d_h)),
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
    n_pieces = -(-n_channels // INNER_AT_ONCE.value)
    d_weight, d_h = torch.empty_like(weight), h.new_empty(n_pieces, n_rows, n_inner)
    _launch(
        feed_forward.back_through,
        (n_inner // n_units, n_pieces),
        *(weight, h, dy, d_weight, d_shift, d_h, n_rows, n_inner, n_channels),
        ROWS=_sizes(n_rows, n_channels)["ROWS"],
        UNITS=n_units,
    )
    return d_weight, d_h


def _add(x: Tensor, h: Tensor, weight: Tensor, shift: Tensor | None, n_inner: int, n_padded: int) -> Tensor:
    """x + h weight' + shift."""
    y, (n_rows, n_channels) = torch.empty_like(x), x.shape[1:]
    grid = (n_channels // feed_forward.CHANNELS_AT_ONCE.value,)
    _launch(feed_forward.add_forward, grid, x, h, weight, shift, y, n_rows, n_channels, n_inner, ROWS=n_padded)
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
    _launch(
        feed_forward.norm_backward,
        (n_rows,),
        *(x, gain, shift, moments, parts, dy, dx, d_norm, n_rows, len(parts), n_channels),
        PARTS=triton.next_power_of_2(len(parts)),
        CHANNELS=triton.next_power_of_2(n_channels),
    )
    total = torch.empty_like(d_norm[0])
    other_total = None if others is None else torch.empty_like(others[0])
    n_others, size = (0, 0) if other_total is None else (len(others), other_total.numel())  # type: ignore[arg-type]
    at_once = feed_forward.COLUMNS_AT_ONCE.value
    _launch(
        feed_forward.add_up,
        (triton.cdiv(total.numel(), at_once) + triton.cdiv(size, at_once),),
        *(d_norm, total, n_rows, total.numel(), others, other_total, n_others, size),
        PARTS=triton.next_power_of_2(max(n_rows, n_others)),
    )
    return dx, total[0], None if shift is None else total[1], other_total


def _sizes(n_rows: int, n_channels: int) -> dict[str, Any]:
    return {"ROWS": max(16, triton.next_power_of_2(n_rows)), "CHANNELS": triton.next_power_of_2(n_channels)}
