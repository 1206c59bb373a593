"""A block backward, in two halves, from what forward kept."""

import numpy as np

from livelm.compiled import added, called, returning
from livelm.models.ops.few_tokens_cpu.parts import gained, norm_back, turn_back
from livelm.models.ops.products import add_product
from livelm.models.ops.turning import turned_vectors


@returning
def block_backward(form, g, past, window, weights, kept, gradients):  # type: ignore[no-untyped-def]
    """From the gradient (D, M) g of the stream after the block that of the stream before it, in place.

    `gradients` take those of all weights, in their order. `past`: all keys and values as forward left them; what was
    carried gets no gradient. The rest is as in `block_forward`.
    """
    feed_backward(form, g, g, weights[4:], kept[6:], gradients[4:])
    attention_backward(form, g, g, past, window, weights[:4], kept[:6], gradients[:4])


@returning
def attention_backward(form, g, to, past, window, weights, kept, gradients):  # type: ignore[no-untyped-def]
    """Add to (D, M) `to`, which may be g, what attention sends back for the gradient g of what it made."""
    gain, bias, project, mix = weights
    d_gain, d_bias, d_project, d_mix = gradients
    normed, scale, heads, head_scale, probabilities, found = kept
    d, m = g.shape
    read, rows, spare = np.empty((d, m), np.float32), np.empty((m, d), np.float32), np.empty((2, m), np.float32)
    found_rows, d_found = np.empty((m, len(found)), np.float32), np.zeros(found.shape, np.float32)
    turned_vectors(found, found_rows)
    weight_back(g, found_rows, d_mix)
    through_back(mix, g, d_found)
    d_heads = np.zeros(heads.shape, np.float32)
    ds, square = np.empty(probabilities.shape[2:], np.float32), np.zeros((form.n_tokens, form.n_padded), np.float32)
    _attend_back(form, heads, past, probabilities, d_found, d_heads, ds, square, spare[0])
    for head in range(form.n_heads + form.n_kv_heads):
        size = np.float32(1 / np.sqrt(form.d_head)) if head < form.n_heads else np.float32(1.0)
        here = slice(head * form.d_head, (head + 1) * form.d_head)
        turn_back(form, d_heads[here], heads[here], window[1], window[2], size, head_scale[head], spare[0])
    gained(form, normed, gain, bias, read)
    turned_vectors(read, rows)
    weight_back(d_heads, rows, d_project)
    read[:] = 0
    through_back(project, d_heads, read)
    norm_back(form, read, normed, scale, gain, d_gain, d_bias, to, spare)


@returning
def feed_backward(form, g, to, weights, kept, gradients):  # type: ignore[no-untyped-def]
    """Add to (D, M) `to`, which may be g, what the feed-forward layer sends back for the gradient g of what it made."""
    gain, bias, up, _, down, _ = weights
    d_gain, d_bias, d_up, d_up_bias, d_down, d_down_bias = gradients
    normed, scale, hidden = kept
    (d, m), n_hidden = g.shape, form.hidden
    read, rows, spare = np.empty((d, m), np.float32), np.empty((m, d), np.float32), np.empty((2, m), np.float32)
    wide, wide_rows = np.empty((n_hidden, m), np.float32), np.empty((m, n_hidden), np.float32)
    _activate(form, hidden, wide)
    turned_vectors(wide, wide_rows)
    weight_back(g, wide_rows, d_down)
    _sum(g, d_down_bias)
    wide[:] = 0
    through_back(down, g, wide)
    _rectify_back(form, hidden, wide)
    _sum(wide, d_up_bias)
    gained(form, normed, gain, bias, read)
    turned_vectors(read, rows)
    weight_back(wide, rows, d_up)
    read[:] = 0
    through_back(up, wide, read)
    norm_back(form, read, normed, scale, gain, d_gain, d_bias, to, spare)


@called
def weight_back(g, read, gradient):  # type: ignore[no-untyped-def]
    """(N, D) gradient of a map, from (N, M) that of its output and the (M, D) rows that it read."""
    n_columns = read.shape[1]
    gradient[:] = 0
    shape = len(g), n_columns, len(read)
    add_product(shape, g.ctypes.data, len(read), 1, read.ctypes.data, n_columns, gradient.ctypes.data, n_columns)


@called
def through_back(weight, g, out):  # type: ignore[no-untyped-def]
    """Add to (D, M) `out` what an (N, D) map sends back of (N, M) g."""
    n, d, m = weight.shape[0], weight.shape[1], g.shape[1]
    add_product((d, m, n), weight.ctypes.data, 1, d, g.ctypes.data, m, out.ctypes.data, m)


@added
def _sum(g, sums):  # type: ignore[no-untyped-def]
    """(N,) sums over tokens, for a bias; of none, where there is none."""
    for row in range(len(sums)):
        total = np.float32(0.0)
        for m in range(g.shape[1]):
            total += g[row, m]
        sums[row] = total


@called
def _activate(form, hidden, active):  # type: ignore[no-untyped-def]
    """(F, M) what the second map read, from rectified numbers."""
    for row in range(hidden.shape[0]):
        for m in range(hidden.shape[1]):
            active[row, m] = hidden[row, m] * hidden[row, m] if form.squared else hidden[row, m]


@called
def _rectify_back(form, hidden, g):  # type: ignore[no-untyped-def]
    """In place: 2 max(x, 0) g of a squared rectifier, g where x > 0 of a plain one."""
    for row in range(g.shape[0]):
        for m in range(g.shape[1]):
            x = hidden[row, m]
            if form.squared:
                g[row, m] *= x + x
            elif x <= 0:
                g[row, m] = 0.0


@called
def _attend_back(form, heads, past, probabilities, d_found, d_heads, ds, square, total):  # type: ignore[no-untyped-def]
    """(projected, M) gradients of queries, new keys and values, as they were after turning."""
    keys, values = past
    n_keys, n, e, m = keys.shape[1], form.n_padded, form.d_head, heads.shape[1]
    row, n_shared = form.n_kv_heads * e, form.n_heads // form.n_kv_heads
    for lane in range(form.n_lanes):
        for head in range(form.n_heads):
            p, group = probabilities[lane, head], head // n_shared
            there = 4 * ((lane * n_keys * form.n_kv_heads + group) * e)
            here = 4 * (head * e * m + lane * n)
            to_key = 4 * ((form.n_heads + group) * e * m + lane * n)
            to_value = to_key + 4 * form.n_kv_heads * e * m
            ds[:] = 0
            add_product(
                (n_keys, n, e), values.ctypes.data + there, row, 1, d_found.ctypes.data + here, m, ds.ctypes.data, n
            )
            _softmax_back(p, ds, total)
            add_product(
                (e, n, n_keys), keys.ctypes.data + there, 1, row, ds.ctypes.data, n, d_heads.ctypes.data + here, m
            )
            _newest(form, ds, square)
            new = e, n, form.n_tokens
            add_product(new, heads.ctypes.data + here, m, 1, square.ctypes.data, n, d_heads.ctypes.data + to_key, m)
            _newest(form, p, square)
            add_product(new, d_found.ctypes.data + here, m, 1, square.ctypes.data, n, d_heads.ctypes.data + to_value, m)


@called
def _softmax_back(p, ds, total):  # type: ignore[no-untyped-def]
    """In place: p (ds - sum of p ds), of each column of (S, P)."""
    n_rows, n = p.shape
    for t in range(n):
        total[t] = 0.0
    for s in range(n_rows):
        for t in range(n):
            total[t] += p[s, t] * ds[s, t]
    for s in range(n_rows):
        for t in range(n):
            ds[s, t] = p[s, t] * (ds[s, t] - total[t])


@called
def _newest(form, columns, square):  # type: ignore[no-untyped-def]
    """(T, P) [query, key] of the new keys only, from (S, P) [key, query]."""
    for s in range(form.n_tokens):
        for t in range(form.n_tokens):
            square[t, s] = columns[form.n_carried + s, t]
