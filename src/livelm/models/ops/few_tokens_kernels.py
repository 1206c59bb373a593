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
"""Carried keys that are compared at once."""
INNER_AT_ONCE = tl.constexpr(64)
"""Channels that are multiplied at once: more do not fit into registers, which three passes take three times of."""


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
    weight,
    dz,
    d_weight,
    part,
    n_rows,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Of z = norm(x) weight' with gradient dz (ROWS, UNITS): the gradient of the weight, and `part`, the norm's."""
    mean, scale = _moments(x, shift, n_rows, n_channels, eps, ROWS, CHANNELS)
    for begin in range(0, n_channels, INNER_AT_ONCE):
        n_left = n_channels - begin
        normed = _normed(x, gain, shift, mean, scale, begin, n_rows, n_channels, ROWS, INNER_AT_ONCE)
        d_rows = tl.dot(tl.trans(dz), normed, input_precision=PRECISION)
        _store(d_weight + begin, d_rows, UNITS, n_left, n_channels, UNITS, INNER_AT_ONCE)
        rows = _load(weight + begin, UNITS, n_left, n_channels, UNITS, INNER_AT_ONCE)
        sent = tl.dot(dz, rows, input_precision=PRECISION)
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
def attend_forward(
    compared,
    raw,
    keys,
    values,
    bias,
    found,
    lengths,
    keys_after,
    values_after,
    n_rows,
    n_heads,
    CONTEXT: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head: what it finds (T, H, E), ln of the sums of its exponentials (H, T), and the next window."""
    head = tl.program_id(0)
    rows, at_once = tl.arange(0, ROWS), tl.arange(0, KEYS_AT_ONCE)
    key_step, value_step = n_heads * D_KEY, n_heads * D_HEAD
    q = _load(compared + head * D_KEY, n_rows, D_KEY, 2 * key_step, ROWS, D_KEY) * (D_KEY**-0.5)
    new_keys = _load(compared + (n_heads + head) * D_KEY, n_rows, D_KEY, 2 * key_step, ROWS, D_KEY)
    new_values = _load(raw + (2 * n_heads + head) * D_HEAD, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
    n_seen = CONTEXT + n_rows
    inside = (rows < n_rows)[:, None] & (rows < n_rows)[None, :]
    new_bias = tl.load(bias + rows[:, None] * n_seen + CONTEXT + rows[None, :], mask=inside, other=float("-inf"))
    new_bias = tl.where((rows >= n_rows)[:, None], 0.0, new_bias)  # rows that are not there see something: no NaN
    new_scores = tl.dot(q, tl.trans(new_keys), input_precision=PRECISION) + new_bias
    top = tl.max(new_scores, axis=1)
    new_exps = tl.exp(new_scores - top[:, None])
    total = tl.sum(new_exps, axis=1)
    sums = tl.dot(new_exps, new_values, input_precision=PRECISION)
    for begin in range(0, CONTEXT, KEYS_AT_ONCE):
        old_keys = _load(keys + begin * key_step + head * D_KEY, KEYS_AT_ONCE, D_KEY, key_step, KEYS_AT_ONCE, D_KEY)
        old_values = _load(
            values + begin * value_step + head * D_HEAD, KEYS_AT_ONCE, D_HEAD, value_step, KEYS_AT_ONCE, D_HEAD
        )
        to = begin + at_once - n_rows  # what is older than the window falls out
        key_place = keys_after + to[:, None] * key_step + head * D_KEY + tl.arange(0, D_KEY)[None, :]
        tl.store(key_place, old_keys, mask=(to >= 0)[:, None])
        value_place = values_after + to[:, None] * value_step + head * D_HEAD + tl.arange(0, D_HEAD)[None, :]
        tl.store(value_place, old_values, mask=(to >= 0)[:, None])
        place = bias + rows[:, None] * n_seen + begin + at_once[None, :]
        old_bias = tl.load(place, mask=(rows < n_rows)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(old_keys), input_precision=PRECISION) + old_bias
        higher = tl.maximum(top, tl.max(scores, axis=1))
        fade = tl.exp(top - higher)
        exps = tl.exp(scores - higher[:, None])
        total = total * fade + tl.sum(exps, axis=1)
        sums = sums * fade[:, None] + tl.dot(exps, old_values, input_precision=PRECISION)
        top = higher
    _store(found + head * D_HEAD, sums / total[:, None], n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    tl.store(lengths + head * n_rows + rows, top + tl.log(total), mask=rows < n_rows)
    last = (CONTEXT - n_rows) * n_heads
    _store(keys_after + (last + head) * D_KEY, new_keys, n_rows, D_KEY, key_step, ROWS, D_KEY)
    _store(values_after + (last + head) * D_HEAD, new_values, n_rows, D_HEAD, value_step, ROWS, D_HEAD)


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
def widen_backward(
    x,
    gain,
    shift,
    up,
    down,
    h,
    dy,
    d_up,
    d_up_bias,
    d_down,
    d_down_bias,
    parts,
    n_rows,
    n_hidden,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program is some units: gradients of their weights in both maps, and its part of the norm's (F / n, T, D)."""
    program = tl.program_id(0)
    first = program * HIDDEN_AT_ONCE
    kept = _load(h + first, n_rows, HIDDEN_AT_ONCE, n_hidden, ROWS, HIDDEN_AT_ONCE)
    dz = tl.zeros((ROWS, HIDDEN_AT_ONCE), tl.float32)
    for begin in range(0, n_channels, INNER_AT_ONCE):
        n_left, here = n_channels - begin, begin * n_hidden + first
        g = _load(dy + begin, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)
        columns = _load(down + here, n_left, HIDDEN_AT_ONCE, n_hidden, INNER_AT_ONCE, HIDDEN_AT_ONCE)
        dz += tl.dot(g, columns, input_precision=PRECISION)
        d_columns = tl.dot(tl.trans(g), kept, input_precision=PRECISION)
        _store(d_down + here, d_columns, n_left, HIDDEN_AT_ONCE, n_hidden, INNER_AT_ONCE, HIDDEN_AT_ONCE)
        if d_down_bias is not None:  # noqa: SIM102  # what is None is known when this is compiled, the program is not
            if program == 0:
                channels = begin + tl.arange(0, INNER_AT_ONCE)
                tl.store(d_down_bias + channels, tl.sum(g, axis=0), mask=channels < n_channels)
    if ACTIVATION == 2:
        dz *= 2.0 * tl.sqrt(kept)
    else:
        dz = tl.where(kept > 0.0, dz, 0.0)
    if d_up_bias is not None:
        tl.store(d_up_bias + first + tl.arange(0, HIDDEN_AT_ONCE), tl.sum(dz, axis=0))
    weight, d_weight, part = up + first * n_channels, d_up + first * n_channels, parts + program * n_rows * n_channels
    _into_norm(x, gain, shift, weight, dz, d_weight, part, n_rows, n_channels, eps, ROWS, CHANNELS, HIDDEN_AT_ONCE)


@jit
def attend_backward(
    compared,
    raw,
    keys,
    values,
    bias,
    found,
    lengths,
    compress,
    cos,
    sin,
    out,
    dy,
    d_out,
    d_raw,
    d_compress,
    n_rows,
    n_heads,
    n_channels: tl.constexpr,
    qk_eps: tl.constexpr,
    CONTEXT: tl.constexpr,
    ROWS: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):
    """A program is a head: gradients of its columns of `out`, of its raw query, key and value, and of `compress`."""
    head = tl.program_id(0)
    rows, at_once = tl.arange(0, ROWS), tl.arange(0, KEYS_AT_ONCE)
    key_step, value_step = n_heads * D_KEY, n_heads * D_HEAD
    n_seen = CONTEXT + n_rows
    own = _load(found + head * D_HEAD, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    df = tl.zeros((ROWS, D_HEAD), tl.float32)
    for begin in range(0, n_channels, INNER_AT_ONCE):
        n_left, here = n_channels - begin, begin * value_step + head * D_HEAD
        g = _load(dy + begin, n_rows, n_left, n_channels, ROWS, INNER_AT_ONCE)
        columns = _load(out + here, n_left, D_HEAD, value_step, INNER_AT_ONCE, D_HEAD)
        df += tl.dot(g, columns, input_precision=PRECISION)
        d_columns = tl.dot(tl.trans(g), own, input_precision=PRECISION)
        _store(d_out + here, d_columns, n_left, D_HEAD, value_step, INNER_AT_ONCE, D_HEAD)
    mean = tl.sum(df * own, axis=1)
    length = tl.load(lengths + head * n_rows + rows, mask=rows < n_rows, other=float("inf"))
    q = _load(compared + head * D_KEY, n_rows, D_KEY, 2 * key_step, ROWS, D_KEY) * (D_KEY**-0.5)
    new_keys = _load(compared + (n_heads + head) * D_KEY, n_rows, D_KEY, 2 * key_step, ROWS, D_KEY)
    new_values = _load(raw + (2 * n_heads + head) * D_HEAD, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
    inside = (rows < n_rows)[:, None] & (rows < n_rows)[None, :]
    new_bias = tl.load(bias + rows[:, None] * n_seen + CONTEXT + rows[None, :], mask=inside, other=float("-inf"))
    new_p = tl.exp(tl.dot(q, tl.trans(new_keys), input_precision=PRECISION) + new_bias - length[:, None])
    new_ds = new_p * (tl.dot(df, tl.trans(new_values), input_precision=PRECISION) - mean[:, None])
    dv = tl.dot(tl.trans(new_p), df, input_precision=PRECISION)
    dk = tl.dot(tl.trans(new_ds), q, input_precision=PRECISION)  # q has the scale in it
    dq = tl.dot(new_ds, new_keys, input_precision=PRECISION)
    for begin in range(0, CONTEXT, KEYS_AT_ONCE):
        old_keys = _load(keys + begin * key_step + head * D_KEY, KEYS_AT_ONCE, D_KEY, key_step, KEYS_AT_ONCE, D_KEY)
        old_values = _load(
            values + begin * value_step + head * D_HEAD, KEYS_AT_ONCE, D_HEAD, value_step, KEYS_AT_ONCE, D_HEAD
        )
        place = bias + rows[:, None] * n_seen + begin + at_once[None, :]
        old_bias = tl.load(place, mask=(rows < n_rows)[:, None], other=0.0)
        p = tl.exp(tl.dot(q, tl.trans(old_keys), input_precision=PRECISION) + old_bias - length[:, None])
        ds = p * (tl.dot(df, tl.trans(old_values), input_precision=PRECISION) - mean[:, None])
        dq += tl.dot(ds, old_keys, input_precision=PRECISION)
    dq *= D_KEY**-0.5
    _store(d_raw + (2 * n_heads + head) * D_HEAD, dv, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
    turn = _half_turn(D_KEY)
    c, s = _load(cos, n_rows, D_KEY, D_KEY, ROWS, D_KEY), _load(sin, n_rows, D_KEY, D_KEY, ROWS, D_KEY)
    for role in tl.static_range(2):
        dc = dq if role == 0 else dk
        at = role * n_heads + head
        said = _load(raw + at * D_HEAD, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
        du = dc * c + tl.dot(dc * s, turn, input_precision=PRECISION)
        plain, scale = _compare(said, compress, qk_eps, D_HEAD, D_KEY)
        if qk_eps > 0:
            along = tl.sum(plain * du, axis=1) / D_KEY
            du = scale[:, None] * (du - plain * (scale * scale * along)[:, None])
        if compress is not None:
            part = tl.dot(tl.trans(said), du, input_precision=PRECISION)
            _store(d_compress + at * D_HEAD * D_KEY, part, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
            matrix = _load(compress, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
            du = tl.dot(du, tl.trans(matrix), input_precision=PRECISION)
        _store(d_raw + at * D_HEAD, du, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)


@jit
def project_backward(
    x,
    gain,
    shift,
    weight,
    d_raw,
    d_weight,
    parts,
    n_rows,
    n_heads,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D_HEAD: tl.constexpr,
):
    """A program is a head of queries, keys or values: gradient of its weights, its part of the norm's (3 H, T, D)."""
    head = tl.program_id(0)
    g = _load(d_raw + head * D_HEAD, n_rows, D_HEAD, 3 * n_heads * D_HEAD, ROWS, D_HEAD)
    first = head * D_HEAD * n_channels
    rows, d_rows, part = weight + first, d_weight + first, parts + head * n_rows * n_channels
    _into_norm(x, gain, shift, rows, g, d_rows, part, n_rows, n_channels, eps, ROWS, CHANNELS, D_HEAD)


@jit
def norm_backward(
    x,
    gain,
    shift,
    parts,
    dy,
    dx,
    d_norm,
    n_rows,
    n_parts,
    n_channels: tl.constexpr,
    eps: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program is a token: dx = dy + what the norm sends back of the sum of `parts`; (2, D) of gain and shift."""
    token = tl.program_id(0)
    channels, here = tl.arange(0, CHANNELS), token * n_channels
    inside = channels < n_channels
    dn = tl.sum(_load(parts + here, n_parts, n_channels, n_rows * n_channels, PARTS, CHANNELS), axis=0)
    read = tl.load(x + here + channels, mask=inside, other=0.0)
    if shift is not None:
        read = tl.where(inside, read - tl.sum(read, axis=0) / n_channels, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(read * read, axis=0) / n_channels + eps)
    unit = read * scale
    g = dn * tl.load(gain + channels, mask=inside, other=0.0)
    sent = g - unit * (tl.sum(g * unit, axis=0) / n_channels)
    if shift is not None:
        sent -= tl.sum(g, axis=0) / n_channels
    tl.store(dx + here + channels, sent * scale + tl.load(dy + here + channels, mask=inside, other=0.0), mask=inside)
    own = d_norm + token * 2 * n_channels + channels
    tl.store(own, dn * unit, mask=inside)
    tl.store(own + n_channels, dn, mask=inside)
