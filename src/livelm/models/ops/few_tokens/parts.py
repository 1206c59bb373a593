"""What the kernels of a block share: blocks of memory, norms, and products whose inner dimension warps share.

Shapes: T tokens (`n_rows`) of D channels, padded to ROWS and CHANNELS, powers of two; H heads of E channels, compared
in K of them; a window of CONTEXT carried positions; F hidden units. Every tensor is contiguous.
"""

import triton.language as tl

from livelm.kernels.dependent_launch import jit

PRECISION = tl.constexpr("tf32x3")
"""Of products: three passes of tensor cores, nearly as exact as float32."""
WARPS = tl.constexpr(8)
"""Of a program that multiplies over all channels: each takes a share of them."""
INNER_AT_ONCE = tl.constexpr(64)
"""Channels of a program that sends gradients back: more do not fit into registers, of which three passes take three
times."""


@jit
def load(at, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) numbers, zeros beyond n_rows and n_columns; rows are `step` apart."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(at + rows[:, None] * step + columns[None, :], mask=inside, other=0.0)


@jit
def store(at, block, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Put what `load` would read."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(at + rows[:, None] * step + columns[None, :], block, mask=inside)


@jit
def load_row(at, n_columns, COLUMNS: tl.constexpr):
    """(COLUMNS,) numbers, zeros beyond n_columns."""
    columns = tl.arange(0, COLUMNS)
    return tl.load(at + columns, mask=columns < n_columns, other=0.0)


@jit
def summed(parts, N_PARTS: tl.constexpr, size, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of N_PARTS blocks that lie `size` apart."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in tl.static_range(N_PARTS):
        total += load(parts + i * size, n_rows, n_columns, step, ROWS, COLUMNS)
    return total


@jit
def shared_product(left, right):
    """(SHARES, M, N) parts that add up to left right', of (M, K) and (N, K): a share of K for each warp.

    One warp after another along K would make each wait for the sum of the last.
    """
    m: tl.constexpr = left.shape[0]
    n: tl.constexpr = right.shape[0]
    k: tl.constexpr = left.shape[1]
    shares: tl.constexpr = k // 16 if k < 16 * WARPS else WARPS
    left = tl.permute(tl.reshape(left, (m, shares, k // shares)), (1, 0, 2))
    right = tl.permute(tl.reshape(right, (n, shares, k // shares)), (1, 2, 0))
    return tl.dot(left, right, input_precision=PRECISION)


@jit
def norm(read, n_channels: tl.constexpr, eps: tl.constexpr, CENTRED: tl.constexpr):
    """Rows of (ROWS, CHANNELS) divided by what they deviate, from their mean if CENTRED: LayerNorm, else RMSNorm.

    Also (ROWS,) that mean, or 0, and 1 / deviation.
    """
    mean = tl.zeros((read.shape[0],), tl.float32)
    if CENTRED:
        mean = tl.sum(read, axis=1) / n_channels
        read = tl.where((tl.arange(0, read.shape[1]) < n_channels)[None, :], read - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(read * read, axis=1) / n_channels + eps)
    return read * scale[:, None], mean, scale


@jit
def keep_moments(moments, mean, scale, n_rows):
    """Into (2, T), for backward."""
    rows = tl.arange(0, mean.shape[0])
    tl.store(moments + rows, mean, mask=rows < n_rows)
    tl.store(moments + n_rows + rows, scale, mask=rows < n_rows)


@jit
def normed_again(x, gain, shift, moments, begin, n_rows, n_channels: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS, INNER_AT_ONCE) channels of the normed rows from `begin` on, by the moments that were kept."""
    rows, n_left = tl.arange(0, ROWS), n_channels - begin
    mean = tl.load(moments + rows, mask=rows < n_rows, other=0.0)
    scale = tl.load(moments + n_rows + rows, mask=rows < n_rows, other=0.0)
    read = load(x + begin, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)
    unit = (read - mean[:, None]) * scale[:, None] * load_row(gain + begin, n_left, INNER_AT_ONCE)[None, :]
    if shift is not None:
        unit += load_row(shift + begin, n_left, INNER_AT_ONCE)[None, :]
    return unit


@jit
def into_norm(normed, columns, dz, d_weight, part, begin, n_rows, n_channels: tl.constexpr):
    """Of z = norm(x) weight' with gradient dz (ROWS, UNITS): the gradient of its channels from `begin` on, and the
    norm's part of them."""
    n_left = n_channels - begin
    d_columns = tl.dot(tl.trans(dz), normed, input_precision=PRECISION)
    store(d_weight + begin, d_columns, dz.shape[1], n_left, n_channels, dz.shape[1], INNER_AT_ONCE)
    sent = tl.dot(dz, columns, input_precision=PRECISION)
    store(part + begin, sent, n_rows, n_left, n_channels, dz.shape[0], INNER_AT_ONCE)
