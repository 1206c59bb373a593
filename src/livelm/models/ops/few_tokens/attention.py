"""The stages of attention: a program is a head, or a head and a piece of what it sees. Shapes as in `parts`."""

import triton.language as tl

from livelm.kernels.dependent_launch import jit, wait_for_last
from livelm.models.ops.few_tokens.parts import (
    INNER_AT_ONCE,
    PRECISION,
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

KEYS_AT_ONCE = tl.constexpr(64)
"""Positions that are compared at once; those that are new must fit in."""


@jit
def _matrix(compress, D_HEAD: tl.constexpr, D_KEY: tl.constexpr):
    """(E, K) that heads are compared through; nothing where they are compared as they are."""
    if compress is None:
        return 0.0
    else:
        return load(compress, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)


@jit
def _compare(raw, matrix, COMPRESSED: tl.constexpr, qk_eps: tl.constexpr, D_KEY: tl.constexpr):
    """A head as it is compared, before it is turned, and what its length divides it by (1 without norm)."""
    if COMPRESSED:
        raw = tl.dot(raw, matrix, input_precision=PRECISION)
    scale = tl.full((raw.shape[0],), 1.0, tl.float32)
    if qk_eps > 0:
        scale = 1.0 / tl.sqrt(tl.sum(raw * raw, axis=1) / D_KEY + qk_eps)
    return raw, scale


@jit
def _angles(cos, sin, n_rows, ROWS: tl.constexpr, D_KEY: tl.constexpr):
    """Cosines and sines (ROWS, K / 2) of the first and of the second half of the channels."""
    half: tl.constexpr = D_KEY // 2
    return (
        load(cos, n_rows, half, D_KEY, ROWS, half),
        load(cos + half, n_rows, half, D_KEY, ROWS, half),
        load(sin, n_rows, half, D_KEY, ROWS, half),
        load(sin + half, n_rows, half, D_KEY, ROWS, half),
    )


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
    rows = load(weight + head * D_HEAD * n_channels, D_HEAD, n_channels, n_channels, D_HEAD, CHANNELS)
    g = load_row(gain, n_channels, CHANNELS)[None, :]
    s = 0.0 if shift is None else load_row(shift, n_channels, CHANNELS)[None, :]
    matrix = _matrix(compress, D_HEAD, D_KEY)
    cos_first, cos_second, sin_first, sin_second = _angles(cos, sin, n_rows, ROWS, D_KEY)
    wait_for_last()
    read = load(x, n_rows, n_channels, n_channels, ROWS, CHANNELS)
    unit, mean, scale = norm(read, n_channels, eps, shift is not None)
    if head == 0:
        keep_moments(moments, mean, scale, n_rows)
    said = tl.sum(shared_product(unit * g + s, rows), axis=0)
    store(raw + head * D_HEAD, said, n_rows, D_HEAD, 3 * n_heads * D_HEAD, ROWS, D_HEAD)
    if head < 2 * n_heads:
        half: tl.constexpr = D_KEY // 2
        c, length = _compare(said, matrix, compress is not None, qk_eps, D_KEY)
        c *= length[:, None]
        first, second = tl.split(tl.permute(tl.reshape(c, (ROWS, 2, half)), (0, 2, 1)))
        to, step = compared + head * D_KEY, 2 * n_heads * D_KEY
        store(to, first * cos_first + second * sin_first, n_rows, half, step, ROWS, half)
        store(to + half, second * cos_second + first * sin_second, n_rows, half, step, ROWS, half)


@jit
def _window(old, begin, head, n_heads, CONTEXT: tl.constexpr, WIDTH: tl.constexpr):
    """(KEYS_AT_ONCE, WIDTH) of a head at the carried positions from `begin` on; zeros after the window."""
    at, columns = begin + tl.arange(0, KEYS_AT_ONCE), tl.arange(0, WIDTH)
    return tl.load(old + (at * n_heads + head)[:, None] * WIDTH + columns[None, :], (at < CONTEXT)[:, None], 0.0)


@jit
def _new(new, begin, n_rows, step, CONTEXT: tl.constexpr, WIDTH: tl.constexpr):
    """The same at the new positions, which follow the window; zeros in it."""
    at, columns = begin + tl.arange(0, KEYS_AT_ONCE), tl.arange(0, WIDTH)
    there = (at >= CONTEXT) & (at < CONTEXT + n_rows)
    return tl.load(new + (at - CONTEXT)[:, None] * step + columns[None, :], there[:, None], 0.0)


@jit
def _next_window(to, block, begin, head, n_rows, n_heads, CONTEXT: tl.constexpr, WIDTH: tl.constexpr):
    """Put what was seen where the next batch looks for it; what is older than the window falls out."""
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
def _carried(
    keys, values, bias, begin, head, n_rows, n_heads, CONTEXT: tl.constexpr, ROWS: tl.constexpr, D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):  # fmt: skip
    """What was there before this batch: keys and values of a piece, and what is added to their scores."""
    k = _window(keys, begin, head, n_heads, CONTEXT, D_KEY)
    v = _window(values, begin, head, n_heads, CONTEXT, D_HEAD)
    return k, v, _biases(bias, begin, n_rows, CONTEXT + n_rows, ROWS)


@jit
def _projected(
    compared, raw, begin, head, n_rows, n_heads, CONTEXT: tl.constexpr, ROWS: tl.constexpr, D_HEAD: tl.constexpr,
    D_KEY: tl.constexpr,
):  # fmt: skip
    """What this batch brought: scaled queries of a head, and its keys and values where the piece reaches them."""
    key_step, value_step = 2 * n_heads * D_KEY, 3 * n_heads * D_HEAD
    q = load(compared + head * D_KEY, n_rows, D_KEY, key_step, ROWS, D_KEY)
    k = _new(compared + (n_heads + head) * D_KEY, begin, n_rows, key_step, CONTEXT, D_KEY)
    v = _new(raw + (2 * n_heads + head) * D_HEAD, begin, n_rows, value_step, CONTEXT, D_HEAD)
    return q * D_KEY**-0.5, k, v


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
    k, v, biases = _carried(keys, values, bias, begin, head, n_rows, n_heads, CONTEXT, ROWS, D_HEAD, D_KEY)
    wait_for_last()
    q, new_k, new_v = _projected(compared, raw, begin, head, n_rows, n_heads, CONTEXT, ROWS, D_HEAD, D_KEY)
    k, v = k + new_k, v + new_v
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) + biases
    top = tl.maximum(tl.max(scores, axis=1), -1e30)  # finite where nothing is seen
    exps = tl.exp(scores - top[:, None])
    own = (piece * n_heads + head) * n_rows + rows
    tl.store(tops + own, top, mask=rows < n_rows)
    tl.store(totals + own, tl.sum(exps, axis=1), mask=rows < n_rows)
    found = tl.dot(exps, v, input_precision=PRECISION)
    at = sums + (piece * n_rows * n_heads + head) * D_HEAD
    store(at, found, n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
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
    wait_for_last()
    top = tl.max(load(tops + head * n_rows, N_PIECES, n_rows, step, PIECES, ROWS), axis=0)
    top = tl.maximum(tl.where(rows < n_rows, top, 0.0), -1e30)
    total = tl.zeros((ROWS,), tl.float32)
    found_here = tl.zeros((ROWS, D_HEAD), tl.float32)
    for piece in tl.static_range(N_PIECES):
        own = piece * step + head * n_rows + rows
        weight = tl.exp(tl.load(tops + own, mask=rows < n_rows, other=0.0) - top)
        total += weight * tl.load(totals + own, mask=rows < n_rows, other=1.0)
        at = sums + (piece * n_rows * n_heads + head) * D_HEAD
        found_here += weight[:, None] * load(at, n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
    store(found + head * D_HEAD, found_here / total[:, None], n_rows, D_HEAD, n_heads * D_HEAD, ROWS, D_HEAD)
    tl.store(lengths + head * n_rows + rows, top + tl.log(total), mask=rows < n_rows)


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
    k, v, biases = _carried(keys, values, bias, begin, head, n_rows, n_heads, CONTEXT, ROWS, D_HEAD, D_KEY)
    q, new_k, new_v = _projected(compared, raw, begin, head, n_rows, n_heads, CONTEXT, ROWS, D_HEAD, D_KEY)
    own = load(found + head * D_HEAD, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    length = tl.load(lengths + head * n_rows + rows, mask=rows < n_rows, other=float("inf"))
    k, v = k + new_k, v + new_v
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) + biases
    p = tl.exp(scores - length[:, None])
    wait_for_last()
    df = summed(d_found + head * D_HEAD, N_PARTS, n_rows * value_step, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    mean = tl.sum(df * own, axis=1)
    ds = p * (tl.dot(df, tl.trans(v), input_precision=PRECISION) - mean[:, None])
    sent = tl.dot(ds, k, input_precision=PRECISION) * (D_KEY**-0.5)
    store(d_queries + piece * n_rows * key_step + head * D_KEY, sent, n_rows, D_KEY, key_step, ROWS, D_KEY)
    if begin >= CONTEXT:
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        store(d_keys + head * D_KEY, dk, n_rows, D_KEY, key_step, KEYS_AT_ONCE, D_KEY)
        dv = tl.dot(tl.trans(p), df, input_precision=PRECISION)
        store(d_values + head * D_HEAD, dv, n_rows, D_HEAD, value_step, KEYS_AT_ONCE, D_HEAD)


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
    first_row, begin = head * D_HEAD * n_channels, piece * INNER_AT_ONCE
    columns = load(weight + first_row + begin, D_HEAD, n_channels - begin, n_channels, D_HEAD, INNER_AT_ONCE)
    normed = normed_again(x, gain, shift, moments, begin, n_rows, n_channels, ROWS)
    if head >= 2 * n_heads:
        wait_for_last()
        dz = load(d_values + (head - 2 * n_heads) * D_HEAD, n_rows, D_HEAD, value_step, ROWS, D_HEAD)
    else:
        half: tl.constexpr = D_KEY // 2
        said = load(raw + head * D_HEAD, n_rows, D_HEAD, 3 * value_step, ROWS, D_HEAD)
        matrix = _matrix(compress, D_HEAD, D_KEY)
        cos_first, cos_second, sin_first, sin_second = _angles(cos, sin, n_rows, ROWS, D_KEY)
        if qk_eps > 0:
            plain, length = _compare(said, matrix, compress is not None, qk_eps, D_KEY)
        wait_for_last()
        if head < n_heads:
            at, size = d_queries + head * D_KEY, n_rows * key_step
            first = summed(at, N_PIECES, size, n_rows, half, key_step, ROWS, half)
            second = summed(at + half, N_PIECES, size, n_rows, half, key_step, ROWS, half)
        else:
            at = d_keys + (head - n_heads) * D_KEY
            first = load(at, n_rows, half, key_step, ROWS, half)
            second = load(at + half, n_rows, half, key_step, ROWS, half)
        turned = first * cos_first + second * sin_second, second * cos_second + first * sin_first
        dc = tl.reshape(tl.permute(tl.join(*turned), (0, 2, 1)), (ROWS, D_KEY))
        if qk_eps > 0:
            along = tl.sum(plain * dc, axis=1) / D_KEY  # pyright: ignore  # both are known when it compiles
            dc = length[:, None] * (dc - plain * (length * length * along)[:, None])
        if compress is not None:
            if piece == 0:
                part = tl.dot(tl.trans(said), dc, input_precision=PRECISION)
                store(d_compress + head * D_HEAD * D_KEY, part, D_HEAD, D_KEY, D_KEY, D_HEAD, D_KEY)
            dz = tl.dot(dc, tl.trans(matrix), input_precision=PRECISION)
        else:
            dz = dc
    to = parts + head * n_rows * n_channels
    into_norm(normed, columns, dz, d_weight + first_row, to, begin, n_rows, n_channels)
