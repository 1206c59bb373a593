"""The kernels of `few_tokens`: a stage of a block each, forward and backward, for one lane of up to 64 tokens.

Shapes: T tokens (`n_rows`) of D channels, padded to ROWS and CHANNELS, powers of two; H heads of E channels, compared
in K of them; a window of CONTEXT carried positions; F hidden units. Every tensor is contiguous.
"""

from typing import Any

import triton
import triton.language as tl

jit: Any = triton.jit
"""What it makes is launched as kernel[grid](...), which types do not know."""

PRECISION = tl.constexpr("tf32x3")
"""Of products: three passes of tensor cores, nearly as exact as float32."""
HIDDEN_AT_ONCE = tl.constexpr(32)
"""Hidden units of a program of the feed-forward layer."""
CHANNELS_AT_ONCE = tl.constexpr(16)
"""Channels of a program that adds to the stream."""
KEYS_AT_ONCE = tl.constexpr(64)
"""Positions that are compared at once; those that are new must fit in."""
INNER_AT_ONCE = tl.constexpr(64)
"""Channels that are multiplied at once: more do not fit into registers, of which three passes take three times."""
COLUMNS_AT_ONCE = tl.constexpr(128)
"""Columns of a program that only adds up."""


@jit
def _moments(x, shift, n_rows, n_channels: tl.constexpr, eps: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """(ROWS,) mean and 1 / deviation of each row of x: LayerNorm's with `shift`, else 0 and 1 / root mean square."""
    read = _load(x, n_rows, n_channels, n_channels, ROWS, CHANNELS)
    mean = tl.zeros((ROWS,), tl.float32)
    if shift is not None:
        mean = tl.sum(read, axis=1) / n_channels
        read = tl.where((tl.arange(0, CHANNELS) < n_channels)[None, :], read - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(read * read, axis=1) / n_channels + eps)


@jit
def _keep_moments(moments, mean, scale, n_rows, ROWS: tl.constexpr):
    """Into (2, T), for backward."""
    rows = tl.arange(0, ROWS)
    tl.store(moments + rows, mean, mask=rows < n_rows)
    tl.store(moments + n_rows + rows, scale, mask=rows < n_rows)


@jit
def _normed(
    x, gain, shift, mean, scale, begin, n_rows, n_channels: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr
):
    """(ROWS, AT_ONCE) channels of the normed rows, from `begin` on."""
    rows, channels = tl.arange(0, ROWS), begin + tl.arange(0, AT_ONCE)
    inside = (rows < n_rows)[:, None] & (channels < n_channels)[None, :]
    read = tl.load(x + rows[:, None] * n_channels + channels[None, :], mask=inside, other=0.0)
    read = (read - mean[:, None]) * scale[:, None]
    read *= tl.load(gain + channels, mask=channels < n_channels, other=0.0)[None, :]
    if shift is not None:
        read += tl.load(shift + channels, mask=channels < n_channels, other=0.0)[None, :]
    return tl.where(inside, read, 0.0)


@jit
def _load(at, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) numbers, zeros beyond n_rows and n_columns; rows are `step` apart."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(at + rows[:, None] * step + columns[None, :], mask=inside, other=0.0)


@jit
def _store(at, block, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Put what `_load` would read."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tl.store(at + rows[:, None] * step + columns[None, :], block, mask=inside)


@jit
def _into_norm(
    x,
    gain,
    shift,
    moments,
    weight,
    dz,
    d_weight,
    part,
    piece,
    n_rows,
    n_channels: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Of z = norm(x) weight' with gradient dz (ROWS, UNITS), for a piece of the channels: d_weight, and the norm's."""
    rows = tl.arange(0, ROWS)
    mean = tl.load(moments + rows, mask=rows < n_rows, other=0.0)
    scale = tl.load(moments + n_rows + rows, mask=rows < n_rows, other=0.0)
    begin = piece * INNER_AT_ONCE
    n_left = n_channels - begin
    normed = _normed(x, gain, shift, mean, scale, begin, n_rows, n_channels, ROWS, INNER_AT_ONCE)
    d_columns = tl.dot(tl.trans(dz), normed, input_precision=PRECISION)
    _store(d_weight + begin, d_columns, UNITS, n_left, n_channels, UNITS, INNER_AT_ONCE)
    columns = _load(weight + begin, UNITS, n_left, n_channels, UNITS, INNER_AT_ONCE)
    sent = tl.dot(dz, columns, input_precision=PRECISION)
    _store(part + begin, sent, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)


@jit
def _half_turn(WIDTH: tl.constexpr):
    """(WIDTH, WIDTH) matrix that rolls columns by half their number: x @ this is x.roll(WIDTH / 2, -1), and back."""
    i = tl.arange(0, WIDTH)
    return ((i[:, None] + WIDTH // 2) % WIDTH == i[None, :]).to(tl.float32)


@jit
def _compare(raw, compress, compared_scale_eps: tl.constexpr, D_HEAD: tl.constexpr, D_KEY: tl.constexpr):
    """A head as it is compared, before it is turned, and what its length divides it by (1 without norm)."""
    if compress is not None:
        matrix = _load(compress, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
        raw = tl.dot(raw, matrix, input_precision=PRECISION)
    scale = tl.full((raw.shape[0],), 1.0, tl.float32)
    if compared_scale_eps > 0:
        scale = 1.0 / tl.sqrt(tl.sum(raw * raw, axis=1) / D_KEY + compared_scale_eps)
    return raw, scale


@jit
def project_forward(
    x,
    gain,
    shift,
    weight,
    compress,
    cos,
    sin,
    raw,
    compared,
    moments,
    n_rows,
    n_heads,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    qk_eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head of the queries, keys or values: raw (T, 3 H, E), compared (T, 2 H, K) turned."""
    head = tl.program_id(0)
    mean, scale = _moments(x, shift, n_rows, n_channels, eps, ROWS, CHANNELS)
    if head == 0:
        _keep_moments(moments, mean, scale, n_rows, ROWS)
    said = tl.zeros((ROWS, D_HEAD), tl.float32)
    for begin in range(0, n_channels, INNER_AT_ONCE):
        normed = _normed(x, gain, shift, mean, scale, begin, n_rows, n_channels, ROWS, INNER_AT_ONCE)
        at = weight + head * D_HEAD * n_channels + begin
        rows = _load(at, D_HEAD, n_channels - begin, n_channels, D_HEAD, INNER_AT_ONCE)
        said += tl.dot(normed, tl.trans(rows), input_precision=PRECISION)
    _store(raw + head * D_HEAD, said, n_rows, D_HEAD, 3 * n_heads * D_HEAD, ROWS, D_HEAD)
    if head < 2 * n_heads:
        c, length = _compare(said, compress, qk_eps, D_HEAD, D_KEY)
        c *= length[:, None]
        rolled = tl.dot(c, _half_turn(D_KEY), input_precision=PRECISION)
        turned = c * _load(cos, n_rows, D_KEY, D_KEY, ROWS, D_KEY) + rolled * _load(
            sin, n_rows, D_KEY, D_KEY, ROWS, D_KEY
        )
        _store(compared + head * D_KEY, turned, n_rows, D_KEY, 2 * n_heads * D_KEY, ROWS, D_KEY)


@jit
def _seen(old, new, begin, head, n_rows, n_heads, new_step, CONTEXT: tl.constexpr, WIDTH: tl.constexpr):
    """(KEYS_AT_ONCE, WIDTH) of a head at the positions from `begin` on, of the window and after it the new ones."""
    at, columns = begin + tl.arange(0, KEYS_AT_ONCE), tl.arange(0, WIDTH)
    place = old + (at * n_heads + head)[:, None] * WIDTH + columns[None, :]
    kept = tl.load(place, mask=(at < CONTEXT)[:, None], other=0.0)
    place = new + (at - CONTEXT)[:, None] * new_step + columns[None, :]
    return kept + tl.load(place, mask=((at >= CONTEXT) & (at < CONTEXT + n_rows))[:, None], other=0.0)


@jit
def _next_window(to, block, begin, head, n_rows, n_heads, CONTEXT: tl.constexpr, WIDTH: tl.constexpr):
    """Put what was `_seen` where the next batch looks for it; what is older than the window falls out."""
    at, columns = begin + tl.arange(0, KEYS_AT_ONCE), tl.arange(0, WIDTH)
    place = to + ((at - n_rows) * n_heads + head)[:, None] * WIDTH + columns[None, :]
    tl.store(place, block, mask=((at >= n_rows) & (at < CONTEXT + n_rows))[:, None])


@jit
def _biases(bias, begin, n_rows, n_seen, ROWS: tl.constexpr):
    """(ROWS, KEYS_AT_ONCE) of what is added to scores; minus infinity where there is nothing."""
    rows, at = tl.arange(0, ROWS), begin + tl.arange(0, KEYS_AT_ONCE)
    inside = (rows < n_rows)[:, None] & (at < n_seen)[None, :]
    return tl.load(bias + rows[:, None] * n_seen + at[None, :], mask=inside, other=float("-inf"))


@jit
def attend_forward(
    compared,
    raw,
    keys,
    values,
    bias,
    sums,
    tops,
    totals,
    keys_after,
    values_after,
    n_rows,
    n_heads,
    CONTEXT: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head and one of N pieces of what it sees: sums (N, T, H, E), totals and tops of that softmax."""
    head, piece = tl.program_id(0), tl.program_id(1)
    begin, rows = piece * KEYS_AT_ONCE, tl.arange(0, ROWS)
    compared_step, raw_step = 2 * n_heads * D_KEY, 3 * n_heads * D_HEAD
    q = _load(compared + head * D_KEY, n_rows, D_KEY, compared_step, ROWS, D_KEY) * (D_KEY**-0.5)
    new_keys, new_values = compared + (n_heads + head) * D_KEY, raw + (2 * n_heads + head) * D_HEAD
    k = _seen(keys, new_keys, begin, head, n_rows, n_heads, compared_step, CONTEXT, D_KEY)
    v = _seen(values, new_values, begin, head, n_rows, n_heads, raw_step, CONTEXT, D_HEAD)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) + _biases(bias, begin, n_rows, CONTEXT + n_rows, ROWS)
    top = tl.maximum(tl.max(scores, axis=1), -1e30)  # finite where nothing is seen
    exps = tl.exp(scores - top[:, None])
    own = (piece * n_heads + head) * n_rows + rows
    tl.store(tops + own, top, mask=rows < n_rows)
    tl.store(totals + own, tl.sum(exps, axis=1), mask=rows < n_rows)
    found = tl.dot(exps, v, input_precision=PRECISION)
    at = sums + (piece * n_rows * n_heads + head) * D_HEAD
    _store(at, found, n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
    _next_window(keys_after, k, begin, head, n_rows, n_heads, CONTEXT, D_KEY)
    _next_window(values_after, v, begin, head, n_rows, n_heads, CONTEXT, D_HEAD)


@jit
def join_forward(
    sums,
    tops,
    totals,
    found,
    lengths,
    n_rows,
    n_heads,
    N_PIECES: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
):
    """A program is a head: what it found in all pieces (T, H, E), and ln of the sum of its exponentials (H, T)."""
    head = tl.program_id(0)
    rows, step = tl.arange(0, ROWS), n_heads * n_rows
    top = tl.max(_load(tops + head * n_rows, N_PIECES, n_rows, step, PIECES, ROWS), axis=0)
    top = tl.maximum(tl.where(rows < n_rows, top, 0.0), -1e30)
    total = tl.zeros((ROWS,), tl.float32)
    found_here = tl.zeros((ROWS, D_HEAD), tl.float32)
    for piece in tl.static_range(N_PIECES):
        own = piece * step + head * n_rows + rows
        weight = tl.exp(tl.load(tops + own, mask=rows < n_rows, other=0.0) - top)
        total += weight * tl.load(totals + own, mask=rows < n_rows, other=1.0)
        at = sums + (piece * n_rows * n_heads + head) * D_HEAD
        found_here += weight[:, None] * _load(at, n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
    _store(found + head * D_HEAD, found_here / total[:, None], n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
    tl.store(lengths + head * n_rows + rows, top + tl.log(total), mask=rows < n_rows)


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
    total = _load(x + first, n_rows, CHANNELS_AT_ONCE, n_channels, ROWS, CHANNELS_AT_ONCE)
    for begin in range(0, N_INNER, INNER_AT_ONCE):
        left = _load(h + begin, n_rows, N_INNER - begin, N_INNER, ROWS, INNER_AT_ONCE)
        at = weight + first * N_INNER + begin
        right = _load(at, CHANNELS_AT_ONCE, N_INNER - begin, N_INNER, CHANNELS_AT_ONCE, INNER_AT_ONCE)
        total += tl.dot(left, tl.trans(right), input_precision=PRECISION)
    if shift is not None:
        total += tl.load(shift + first + tl.arange(0, CHANNELS_AT_ONCE))[None, :]
    _store(y + first, total, n_rows, CHANNELS_AT_ONCE, n_channels, ROWS, CHANNELS_AT_ONCE)


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
    first = tl.program_id(0) * HIDDEN_AT_ONCE
    mean, scale = _moments(x, shift, n_rows, n_channels, eps, ROWS, CHANNELS)
    if first == 0:
        _keep_moments(moments, mean, scale, n_rows, ROWS)
    z = tl.zeros((ROWS, HIDDEN_AT_ONCE), tl.float32)
    for begin in range(0, n_channels, INNER_AT_ONCE):
        normed = _normed(x, gain, shift, mean, scale, begin, n_rows, n_channels, ROWS, INNER_AT_ONCE)
        at = weight + first * n_channels + begin
        rows = _load(at, HIDDEN_AT_ONCE, n_channels - begin, n_channels, HIDDEN_AT_ONCE, INNER_AT_ONCE)
        z += tl.dot(normed, tl.trans(rows), input_precision=PRECISION)
    if bias is not None:
        z += tl.load(bias + first + tl.arange(0, HIDDEN_AT_ONCE))[None, :]
    z = tl.maximum(z, 0.0)
    if ACTIVATION == 2:
        z *= z
    _store(h + first, z, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)


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
    g = _load(dy + begin, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)
    columns = _load(weight + at, n_left, UNITS, n_inner, INNER_AT_ONCE, UNITS)
    sent = tl.dot(g, columns, input_precision=PRECISION)
    _store(d_h + piece * n_rows * n_inner + first, sent, n_rows, UNITS, n_inner, ROWS, UNITS)
    own = _load(h + first, n_rows, UNITS, n_inner, ROWS, UNITS)
    d_columns = tl.dot(tl.trans(g), own, input_precision=PRECISION)
    _store(d_weight + at, d_columns, n_left, UNITS, n_inner, INNER_AT_ONCE, UNITS)
    if d_shift is not None:  # noqa: SIM102  # what is None is known when this is compiled, the program is not
        if first == 0:
            channels = begin + tl.arange(0, INNER_AT_ONCE)
            tl.store(d_shift + channels, tl.sum(g, axis=0), mask=channels < n_channels)


@jit
def _summed(parts, N_PARTS: tl.constexpr, size, n_rows, n_columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of N_PARTS blocks that lie `size` apart."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in tl.static_range(N_PARTS):
        total += _load(parts + i * size, n_rows, n_columns, step, ROWS, COLUMNS)
    return total


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
    first = program * HIDDEN_AT_ONCE
    dz = _summed(d_h + first, N_PARTS, n_rows * n_hidden, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)
    kept = _load(h + first, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)
    if ACTIVATION == 2:
        dz *= 2.0 * tl.sqrt(kept)
    else:
        dz = tl.where(kept > 0.0, dz, 0.0)
    if d_up_bias is not None:  # noqa: SIM102
        if piece == 0:
            tl.store(d_up_bias + first + tl.arange(0, HIDDEN_AT_ONCE), tl.sum(dz, axis=0))
    weight, d_weight, part = up + first * n_channels, d_up + first * n_channels, parts + program * n_rows * n_channels
    _into_norm(x, gain, shift, moments, weight, dz, d_weight, part, piece, n_rows, n_channels, ROWS, HIDDEN_AT_ONCE)


@jit
def attend_backward(
    compared,
    raw,
    keys,
    values,
    bias,
    found,
    lengths,
    d_found,
    d_queries,
    d_keys,
    d_values,
    n_rows,
    n_heads,
    CONTEXT: tl.constexpr,
    N_PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head and a piece of what it sees: part of d_queries (N, T, H, K); of new ones d_keys, d_values."""
    head, piece = tl.program_id(0), tl.program_id(1)
    begin, rows = piece * KEYS_AT_ONCE, tl.arange(0, ROWS)
    key_step, value_step = n_heads * D_KEY, n_heads * D_HEAD
    q = _load(compared + head * D_KEY, n_rows, D_KEY, 2 * key_step, ROWS, D_KEY) * (D_KEY**-0.5)
    new_keys, new_values = compared + (n_heads + head) * D_KEY, raw + (2 * n_heads + head) * D_HEAD
    k = _seen(keys, new_keys, begin, head, n_rows, n_heads, 2 * key_step, CONTEXT, D_KEY)
    v = _seen(values, new_values, begin, head, n_rows, n_heads, 3 * value_step, CONTEXT, D_HEAD)
    df = _summed(d_found + head * D_HEAD, N_PARTS, n_rows * value_step, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    mean = tl.sum(df * _load(found + head * D_HEAD, n_rows, D_HEAD, value_step, ROWS, D_HEAD), axis=1)
    length = tl.load(lengths + head * n_rows + rows, mask=rows < n_rows, other=float("inf"))
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) + _biases(bias, begin, n_rows, CONTEXT + n_rows, ROWS)
    p = tl.exp(scores - length[:, None])
    ds = p * (tl.dot(df, tl.trans(v), input_precision=PRECISION) - mean[:, None])
    sent = tl.dot(ds, k, input_precision=PRECISION) * (D_KEY**-0.5)
    _store(d_queries + piece * n_rows * key_step + head * D_KEY, sent, n_rows, D_KEY, key_step, ROWS, D_KEY)
    if begin >= CONTEXT:
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        _store(d_keys + head * D_KEY, dk, n_rows, D_KEY, key_step, KEYS_AT_ONCE, D_KEY)
        dv = tl.dot(tl.trans(p), df, input_precision=PRECISION)
        _store(d_values + head * D_HEAD, dv, n_rows, D_HEAD, value_step, KEYS_AT_ONCE, D_HEAD)


@jit
def project_backward(
    x,
    gain,
    shift,
    moments,
    weight,
    raw,
    compress,
    cos,
    sin,
    d_queries,
    d_keys,
    d_values,
    d_weight,
    d_compress,
    parts,
    n_rows,
    n_heads,
    n_channels: tl.constexpr,
    qk_eps: tl.constexpr,
    N_PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head of queries, keys or values and some channels: gradients of the head's weights, of `compress`
    (2 H, E, K), and a part of the norm's (3 H, T, D)."""
    head, piece = tl.program_id(0), tl.program_id(1)
    key_step, value_step = n_heads * D_KEY, n_heads * D_HEAD
    if head >= 2 * n_heads:
        dz = _load(d_values + (head - 2 * n_heads) * D_HEAD, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    else:
        if head < n_heads:
            dc = _summed(d_queries + head * D_KEY, N_PIECES, n_rows * key_step, n_rows, D_KEY, key_step, ROWS, D_KEY)
        else:
            dc = _load(d_keys + (head - n_heads) * D_KEY, n_rows, D_KEY, key_step, ROWS, D_KEY)
        turned = dc * _load(sin, n_rows, D_KEY, D_KEY, ROWS, D_KEY)
        dc *= _load(cos, n_rows, D_KEY, D_KEY, ROWS, D_KEY)
        dc += tl.dot(turned, _half_turn(D_KEY), input_precision=PRECISION)
        said = _load(raw + head * D_HEAD, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
        if qk_eps > 0:
            plain, length = _compare(said, compress, qk_eps, D_HEAD, D_KEY)
            along = tl.sum(plain * dc, axis=1) / D_KEY
            dc = length[:, None] * (dc - plain * (length * length * along)[:, None])
        if compress is not None:
            if piece == 0:
                part = tl.dot(tl.trans(said), dc, input_precision=PRECISION)
                _store(d_compress + head * D_HEAD * D_KEY, part, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
            matrix = _load(compress, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
            dz = tl.dot(dc, tl.trans(matrix), input_precision=PRECISION)
        else:
            dz = dc
    first = head * D_HEAD * n_channels
    rows, d_rows, to = weight + first, d_weight + first, parts + head * n_rows * n_channels
    _into_norm(x, gain, shift, moments, rows, dz, d_rows, to, piece, n_rows, n_channels, ROWS, D_HEAD)


@jit
def add_up(first, first_sum, n_first, first_size, second, second_sum, n_second, second_size, PARTS: tl.constexpr):
    """Sums over the first axis of (n_first, first_size) and, if there is one, of (n_second, second_size)."""
    program = tl.program_id(0)
    n_programs = tl.cdiv(first_size, COLUMNS_AT_ONCE)
    columns = tl.arange(0, COLUMNS_AT_ONCE)
    if program < n_programs:
        begin = program * COLUMNS_AT_ONCE
        read = _load(first + begin, n_first, first_size - begin, first_size, PARTS, COLUMNS_AT_ONCE)
        tl.store(first_sum + begin + columns, tl.sum(read, axis=0), mask=begin + columns < first_size)
    else:
        if second is not None:
            begin = (program - n_programs) * COLUMNS_AT_ONCE
            read = _load(second + begin, n_second, second_size - begin, second_size, PARTS, COLUMNS_AT_ONCE)
            tl.store(second_sum + begin + columns, tl.sum(read, axis=0), mask=begin + columns < second_size)


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
    dn = tl.sum(_load(parts + here, n_parts, n_channels, n_rows * n_channels, PARTS, CHANNELS), axis=0)
    read = tl.load(x + here + channels, mask=inside, other=0.0)
    scale = tl.load(moments + n_rows + token)
    unit = tl.where(inside, (read - tl.load(moments + token)) * scale, 0.0)
    g = dn * tl.load(gain + channels, mask=inside, other=0.0)
    sent = g - unit * (tl.sum(g * unit, axis=0) / n_channels)
    if shift is not None:
        sent -= tl.sum(g, axis=0) / n_channels
    tl.store(dx + here + channels, sent * scale + tl.load(dy + here + channels, mask=inside, other=0.0), mask=inside)
    own = d_norm + token * 2 * n_channels + channels
    tl.store(own, dn * unit, mask=inside)
    tl.store(own + n_channels, dn, mask=inside)
