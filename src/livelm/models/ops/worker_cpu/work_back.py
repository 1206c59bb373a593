"""What workers do, backward, from what forward kept."""

import numpy as np

from livelm.compiled import called, returning
from livelm.models.ops.few_tokens_cpu.parts import gained, norm_back, turn_back
from livelm.models.ops.products import add_product
from livelm.models.ops.turning import turned
from livelm.models.ops.worker_cpu.mixer import multiply, product_back, weight_back
from livelm.models.ops.worker_cpu.work import put, take, wide_of


@returning
def work_back(form, g, d_new, grid, listeners, window, weights, past, new, kept, gradients):  # type: ignore[no-untyped-def]
    """From the gradient (D, M) g of the stream after the block that of the stream before its workers, in place.

    Adds to (2 D, M) `d_new` those of the new keys and values, as they were turned. (B T, N) `listeners` are 1 where a
    token hears a worker. The rest is as in `work_forward`; what was carried gets no gradient.
    """
    gain, ask, out, gain_2, up, down, tell = weights
    d_gain, d_ask, d_out, d_gain_2, d_up, d_down, d_tell = gradients
    normed, scale, asked, ask_scale, probabilities, found, normed_2, scale_2, hidden, end = kept
    (d, n), m, n_workers = end.shape, form.n_columns, form.n_workers
    d_end, d_told, d_read = np.empty((d, n), np.float32), np.zeros((d, n), np.float32), np.zeros((d, n), np.float32)
    read, rows, spare = np.empty((d, n), np.float32), np.empty((n_workers, d), np.float32), np.empty((2, n), np.float32)
    take(form, g, grid[2], d_end)
    add_product((d, n, len(listeners)), g.ctypes.data, m, 1, listeners.ctypes.data, n, d_told.ctypes.data, n)
    turned(end[:, :n_workers], rows)
    weight_back(d_told, rows, d_tell)
    product_back(tell, d_told, d_end)

    wide, wide_rows = np.empty((form.hidden, n), np.float32), np.empty((n_workers, form.hidden), np.float32)
    multiply(hidden, hidden, wide)
    turned(wide[:, :n_workers], wide_rows)
    weight_back(d_end, wide_rows, d_down)
    wide[:] = 0
    product_back(down, d_end, wide)
    _rectify_back(hidden, wide)
    gained(form, normed_2, gain_2, gain_2, read)
    turned(read[:, :n_workers], rows)
    weight_back(wide, rows, d_up)
    product_back(up, wide, d_read)
    norm_back(form, d_read, normed_2, scale_2, gain_2, d_gain_2, d_gain_2, d_end, spare)

    multiply(found, asked[d:], read)
    turned(read[:, :n_workers], rows)
    weight_back(d_end, rows, d_out)
    d_asked = np.zeros((2 * d, n), np.float32)
    d_found = d_told
    d_found[:] = 0
    product_back(out, d_end, d_found)
    _gate_back(asked[d:], found, d_found, d_asked[d:])
    _attend_back(form, grid, asked, past, new, probabilities, d_found, d_asked, d_new)
    _, _, (cos, sin) = window
    for head in range(form.n_heads):
        size, here = np.float32(1 / np.sqrt(form.d_head)), slice(head * form.d_head, (head + 1) * form.d_head)
        turn_back(form, d_asked[here], asked[here], cos, sin, size, ask_scale[head], spare[0])
    gained(form, normed, gain, gain, read)
    turned(read[:, :n_workers], rows)
    weight_back(d_asked, rows, d_ask)
    d_read[:] = 0
    product_back(ask, d_asked, d_read)
    norm_back(form, d_read, normed, scale, gain, d_gain, d_gain, d_end, spare)
    put(form, d_end, grid[2], g)


@called
def _rectify_back(hidden, g):  # type: ignore[no-untyped-def]
    """In place: 2 max(x, 0) g."""
    for row in range(g.shape[0]):
        for m in range(g.shape[1]):
            g[row, m] *= hidden[row, m] + hidden[row, m]


@called
def _gate_back(opened, found, g, d_gate):  # type: ignore[no-untyped-def]
    """From the gradient g of found sigmoid(gate) that of what was found, in place, and that of the gate."""
    for row in range(g.shape[0]):
        for m in range(g.shape[1]):
            s = opened[row, m]
            back = g[row, m] * s
            d_gate[row, m] = back * found[row, m] * (np.float32(1.0) - s)
            g[row, m] = back


@returning
def _attend_back(form, grid, asked, past, new, probabilities, d_found, d_asked, d_new):  # type: ignore[no-untyped-def]
    """Gradients of queries, and of new keys and values, as they were after turning."""
    (keys, values), c, n_new, e = past, form.n_carried, form.n_tokens, form.d_head
    m, n, q, row = form.n_columns, form.n_working, form.n_wide, form.n_heads * form.d_head
    here, ds, total = np.empty((e, q), np.float32), np.empty((c + n_new, q), np.float32), np.empty(q, np.float32)
    square = np.zeros((q, wide_of(n_new)), np.float32)
    for lane in range(form.n_lanes):
        first = grid[3, lane]
        n_here = grid[3, lane + 1] - first
        wide = wide_of(n_here)
        if n_here == 0:
            continue
        for head in range(form.n_heads):
            p, old, there = probabilities[lane, head], 4 * (lane * c * form.n_heads + head) * e, head * e * n + first
            to_key = 4 * (head * e * m + lane * n_new)
            to_value, newest, back = to_key + 4 * form.d_model * m, ds.ctypes.data + 4 * c * q, 4 * there
            ds[:] = 0
            g = d_found.ctypes.data + back
            if c:
                add_product((c, wide, e), values.ctypes.data + old, row, 1, g, n, ds.ctypes.data, q)
            add_product((n_new, wide, e), new.ctypes.data + to_value, 1, m, g, n, newest, q)
            _softmax_back(p, ds, total, wide)
            here[:] = 0
            if c:
                add_product((e, wide, c), keys.ctypes.data + old, 1, row, ds.ctypes.data, q, here.ctypes.data, q)
            add_product((e, wide, n_new), new.ctypes.data + to_key, m, 1, newest, q, here.ctypes.data, q)
            for i in range(e):
                for w in range(n_here):
                    d_asked[head * e + i, first + w] = here[i, w]
            shape, square_at = (e, square.shape[1], n_here), square.ctypes.data
            turned(ds[c:, :n_here], square)
            add_product(
                shape, asked.ctypes.data + back, n, 1, square_at, square.shape[1], d_new.ctypes.data + to_key, m
            )
            turned(p[c:, :n_here], square)
            add_product(shape, g, n, 1, square_at, square.shape[1], d_new.ctypes.data + to_value, m)


@called
def _softmax_back(p, ds, total, n):  # type: ignore[no-untyped-def]
    """In place: p (ds - sum of p ds), of each of the first n columns of (S, Q)."""
    for w in range(n):
        total[w] = 0.0
    for s in range(len(p)):
        for w in range(n):
            total[w] += p[s, w] * ds[s, w]
    for s in range(len(p)):
        for w in range(n):
            ds[s, w] = p[s, w] * (ds[s, w] - total[w])
