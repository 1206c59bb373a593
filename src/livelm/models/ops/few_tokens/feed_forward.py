"""The stages of the feed-forward layer, and what both halves of a block share: products into the stream, norms back.

Shapes as in `parts`.
"""

import triton.language as tl

from livelm.kernels.dependent_launch import jit, wait_for_last
from livelm.models.ops.few_tokens.parts import (
    INNER_AT_ONCE,
    PRECISION,
    WARPS,
    into_norm,
    keep_moments,
    load,
    load_row,
    norm,
    normed_again,
    shared_product,
    store,
    summed,
)

WIDENED_AT_ONCE = tl.constexpr(16)
"""Hidden units of a program of the feed-forward layer."""
HIDDEN_AT_ONCE = tl.constexpr(32)
"""The same on the way back, where each leaves a part of the norm's gradient that has to be added up."""
CHANNELS_AT_ONCE = tl.constexpr(8)
"""Channels of a program that adds to the stream: few, so that there are many programs."""
ADDED_AT_ONCE = tl.constexpr(256)
"""What it multiplies at once, and loads while it multiplies the last."""
COLUMNS_AT_ONCE = tl.constexpr(128)
"""Columns of a program that only adds up."""


@jit
def add_forward(
    x,
    h,
    weight,
    shift,
    y,
    n_rows,
    n_channels: tl.constexpr,
    N_INNER: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program is some channels of y = x + h weight' + shift, with h (T, N_INNER)."""
    first = tl.program_id(0) * CHANNELS_AT_ONCE
    weight += first * N_INNER
    right = load(weight, CHANNELS_AT_ONCE, N_INNER, N_INNER, CHANNELS_AT_ONCE, ADDED_AT_ONCE)
    total = load(x + first, n_rows, CHANNELS_AT_ONCE, n_channels, ROWS, CHANNELS_AT_ONCE)
    if shift is not None:
        total += tl.load(shift + first + tl.arange(0, CHANNELS_AT_ONCE))[None, :]
    wait_for_last()
    left = load(h, n_rows, N_INNER, N_INNER, ROWS, ADDED_AT_ONCE)
    parts = tl.zeros((WARPS, ROWS, CHANNELS_AT_ONCE), tl.float32)
    for begin in tl.static_range(ADDED_AT_ONCE, N_INNER, ADDED_AT_ONCE):
        n_left = N_INNER - begin
        next_left = load(h + begin, n_rows, n_left, N_INNER, ROWS, ADDED_AT_ONCE)
        next_right = load(weight + begin, CHANNELS_AT_ONCE, n_left, N_INNER, CHANNELS_AT_ONCE, ADDED_AT_ONCE)
        parts += shared_product(left, right)
        left, right = next_left, next_right
    total += tl.sum(parts + shared_product(left, right), axis=0)
    store(y + first, total, n_rows, CHANNELS_AT_ONCE, n_channels, ROWS, CHANNELS_AT_ONCE)


@jit
def widen_forward(
    x,
    gain,
    shift,
    weight,
    bias,
    h,
    moments,
    n_rows,
    n_hidden,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program is some units of h = rectified(norm(x) weight' + bias), (T, F)."""
    first = tl.program_id(0) * WIDENED_AT_ONCE
    rows = load(weight + first * n_channels, WIDENED_AT_ONCE, n_channels, n_channels, WIDENED_AT_ONCE, CHANNELS)
    g = load_row(gain, n_channels, CHANNELS)[None, :]
    s = 0.0 if shift is None else load_row(shift, n_channels, CHANNELS)[None, :]
    b = 0.0 if bias is None else tl.load(bias + first + tl.arange(0, WIDENED_AT_ONCE))[None, :]
    wait_for_last()
    read = load(x, n_rows, n_channels, n_channels, ROWS, CHANNELS)
    unit, mean, scale = norm(read, n_channels, eps, shift is not None)
    if first == 0:
        keep_moments(moments, mean, scale, n_rows)
    z = tl.maximum(tl.sum(shared_product(unit * g + s, rows), axis=0) + b, 0.0)
    if ACTIVATION == 2:
        z *= z
    store(h + first, z, n_rows, WIDENED_AT_ONCE, n_hidden, ROWS, WIDENED_AT_ONCE)


@jit
def back_through(
    weight,
    h,
    dy,
    d_weight,
    d_shift,
    d_h,
    n_rows,
    n_inner,
    n_channels: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Of y = h weight' + shift, a program being UNITS of h and some channels of y: d_weight, d_shift, a part of d_h."""
    first, piece = tl.program_id(0) * UNITS, tl.program_id(1)
    begin = piece * INNER_AT_ONCE
    n_left, at = n_channels - begin, begin * n_inner + first
    columns = load(weight + at, n_left, UNITS, n_inner, INNER_AT_ONCE, UNITS)
    own = load(h + first, n_rows, UNITS, n_inner, ROWS, UNITS)
    wait_for_last()
    g = load(dy + begin, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)
    sent = tl.dot(g, columns, input_precision=PRECISION)
    store(d_h + piece * n_rows * n_inner + first, sent, n_rows, UNITS, n_inner, ROWS, UNITS)
    d_columns = tl.dot(tl.trans(g), own, input_precision=PRECISION)
    store(d_weight + at, d_columns, n_left, UNITS, n_inner, INNER_AT_ONCE, UNITS)
    if d_shift is not None:  # noqa: SIM102  # what is None is known when this is compiled, the program is not
        if first == 0:
            channels = begin + tl.arange(0, INNER_AT_ONCE)
            tl.store(d_shift + channels, tl.sum(g, axis=0), mask=channels < n_channels)


@jit
def widen_backward(
    x,
    gain,
    shift,
    moments,
    up,
    h,
    d_h,
    d_up,
    d_up_bias,
    parts,
    n_rows,
    n_hidden,
    n_channels: tl.constexpr,
    ACTIVATION: tl.constexpr,
    N_PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program is some units and some channels: their weights' gradient, and a part of the norm's (F / n, T, D)."""
    program, piece = tl.program_id(0), tl.program_id(1)
    first, begin = program * HIDDEN_AT_ONCE, piece * INNER_AT_ONCE
    at = first * n_channels
    columns = load(up + at + begin, HIDDEN_AT_ONCE, n_channels - begin, n_channels, HIDDEN_AT_ONCE, INNER_AT_ONCE)
    normed = normed_again(x, gain, shift, moments, begin, n_rows, n_channels, ROWS)
    kept = load(h + first, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)
    wait_for_last()
    dz = summed(d_h + first, N_PARTS, n_rows * n_hidden, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)
    if ACTIVATION == 2:
        dz *= 2.0 * tl.sqrt(kept)
    else:
        dz = tl.where(kept > 0.0, dz, 0.0)
    if d_up_bias is not None:  # noqa: SIM102
        if piece == 0:
            tl.store(d_up_bias + first + tl.arange(0, HIDDEN_AT_ONCE), tl.sum(dz, axis=0))
    into_norm(normed, columns, dz, d_up + at, parts + program * n_rows * n_channels, begin, n_rows, n_channels)


@jit
def norm_backward(
    x,
    gain,
    shift,
    moments,
    parts,
    dy,
    dx,
    d_norm,
    n_rows,
    n_parts,
    n_channels: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program is a token: dx = dy + what the norm sends back of the sum of `parts`; (2, D) of gain and shift."""
    token = tl.program_id(0)
    channels, here = tl.arange(0, CHANNELS), token * n_channels
    inside = channels < n_channels
    read = load_row(x + here, n_channels, CHANNELS)
    mean, scale = tl.load(moments + token), tl.load(moments + n_rows + token)
    g, direct = load_row(gain, n_channels, CHANNELS), load_row(dy + here, n_channels, CHANNELS)
    wait_for_last()
    dn = tl.sum(load(parts + here, n_parts, n_channels, n_rows * n_channels, PARTS, CHANNELS), axis=0)
    unit = tl.where(inside, (read - mean) * scale, 0.0)
    g *= dn
    sent = g - unit * (tl.sum(g * unit, axis=0) / n_channels)
    if shift is not None:
        sent -= tl.sum(g, axis=0) / n_channels
    tl.store(dx + here + channels, sent * scale + direct, mask=inside)
    own = d_norm + token * 2 * n_channels + channels
    tl.store(own, dn * unit, mask=inside)
    tl.store(own + n_channels, dn, mask=inside)


@jit
def add_up(first, first_sum, n_first, first_size, second, second_sum, n_second, second_size, PARTS: tl.constexpr):
    """Sums over the first axis of (n_first, first_size) and, if there is one, of (n_second, second_size)."""
    program = tl.program_id(0)
    n_programs = tl.cdiv(first_size, COLUMNS_AT_ONCE)
    columns = tl.arange(0, COLUMNS_AT_ONCE)
    wait_for_last()
    if program < n_programs:
        begin = program * COLUMNS_AT_ONCE
        read = load(first + begin, n_first, first_size - begin, first_size, PARTS, COLUMNS_AT_ONCE)
        tl.store(first_sum + begin + columns, tl.sum(read, axis=0), mask=begin + columns < first_size)
    else:
        if second is not None:
            begin = (program - n_programs) * COLUMNS_AT_ONCE
            read = load(second + begin, n_second, second_size - begin, second_size, PARTS, COLUMNS_AT_ONCE)
            tl.store(second_sum + begin + columns, tl.sum(read, axis=0), mask=begin + columns < second_size)
