"""What workers do, forward: gated attention to all tokens before them, the feed-forward layer; and what they tell."""

import numpy as np

from livelm.compiled import called, returning
from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.parts import gained, norm, turn
from livelm.models.ops.products import add_product
from livelm.models.ops.softmax_columns import softmax_strip
from livelm.models.ops.worker_cpu.mixer import multiply, product, sigmoid
from livelm.models.ops.worker_cpu.places import filled_up

wide_of = called(filled_up)


@returning
def work_forward(form, stream, told, grid, window, weights, past, new, kept):  # type: ignore[no-untyped-def]
    """Put the workers' stream after attention and feed-forward in their places of the (D, M) stream.

    (D, N) `told`, which is zero before, takes what they tell. `past`: carried keys and values (B, C, H E). `new`:
    (2 D, M) those of the new tokens. `window`, `weights`, `kept`: see `places`.
    """
    gain, ask, out, gain_2, up, down, tell = weights
    normed, scale, asked, ask_scale, probabilities, found, normed_2, scale_2, hidden, end = kept
    d = form.d_model
    read, active = np.empty(end.shape, np.float32), np.empty(hidden.shape, np.float32)
    take(form, stream, grid[2], end)
    norm(form, end, normed, scale)
    gained(form, normed, gain, gain, read)
    asked[:] = 0
    product(ask, read, asked)
    sigmoid(asked[d:], asked[d:])
    _, _, (cos, sin) = window
    for head in range(form.n_heads):
        size = np.float32(1 / np.sqrt(form.d_head))
        turn(form, asked[head * form.d_head : (head + 1) * form.d_head], cos, sin, size, ask_scale[head])
    found[:] = 0
    _attend(form, grid, asked, past, new, window[0], probabilities, found)
    multiply(found, asked[d:], read)
    product(out, read, end)

    norm(form, end, normed_2, scale_2)
    gained(form, normed_2, gain_2, gain_2, read)
    hidden[:] = 0
    product(up, read, hidden)
    _rectify(hidden, active)
    product(down, active, end)
    product(tell, end, told)
    put(form, end, grid[2], stream)


@returning
def hear(form, stream, told, grid, carried, after):  # type: ignore[no-untyped-def]
    """Add to each token of the (D, M) stream what it hears: of (B, D) `carried`, nobody, or (D, N) `told`.

    (B, D) `after` takes what is heard last.
    """
    n_lanes, n_workers, speaker = form.n_lanes, form.n_workers, grid[1]
    n = n_lanes * form.n_tokens
    line = np.empty(n_lanes + 1 + n_workers, np.float32)
    for row in range(form.d_model):
        for lane in range(n_lanes):
            line[lane] = carried[lane, row]
        line[n_lanes] = 0.0
        for w in range(n_workers):
            line[n_lanes + 1 + w] = told[row, w]
        for token in range(n):
            stream[row, token] += line[speaker[token]]
        for lane in range(n_lanes):
            after[lane, row] = line[speaker[(lane + 1) * form.n_tokens - 1]]


@called
def take(form, stream, places, rows):  # type: ignore[no-untyped-def]
    """(D, N) the columns of the workers; zero where there are no more."""
    for row in range(form.d_model):
        for w in range(form.n_workers):
            rows[row, w] = stream[row, places[w]]
        for w in range(form.n_workers, form.n_working):
            rows[row, w] = 0.0


@called
def put(form, rows, places, stream):  # type: ignore[no-untyped-def]
    """Write them back."""
    for row in range(form.d_model):
        for w in range(form.n_workers):
            stream[row, places[w]] = rows[row, w]


@returning
def _attend(form, grid, asked, past, new, bias, probabilities, found):  # type: ignore[no-untyped-def]
    """softmax(q k' + bias) of each lane and head, and the values by it."""
    (keys, values), c, n_new, e = past, form.n_carried, form.n_tokens, form.d_head
    m, n, q, row = form.n_columns, form.n_working, form.n_wide, form.n_heads * form.d_head
    here = np.empty((e, q), np.float32)
    for lane in range(form.n_lanes):
        first = grid[3, lane]
        n_here = grid[3, lane + 1] - first
        wide = wide_of(n_here)
        if n_here == 0:
            continue
        for head in range(form.n_heads):
            p = probabilities[lane, head]
            for s in range(c + n_new):
                for w in range(wide):
                    p[s, w] = bias[lane, s, w]
            old, at = 4 * (lane * c * form.n_heads + head) * e, asked.ctypes.data + 4 * (head * e * n + first)
            key = new.ctypes.data + 4 * (head * e * m + lane * n_new)
            value, newest = key + 4 * form.d_model * m, p.ctypes.data + 4 * c * q
            if c:
                add_product((c, wide, e), keys.ctypes.data + old, row, 1, at, n, p.ctypes.data, q)
            add_product((n_new, wide, e), key, 1, m, at, n, newest, q)
            for w in range(0, wide, LANES):
                softmax_strip(p.ctypes.data + 4 * w, q, c + n_new)
            here[:] = 0
            if c:
                add_product((e, wide, c), values.ctypes.data + old, 1, row, p.ctypes.data, q, here.ctypes.data, q)
            add_product((e, wide, n_new), value, m, 1, newest, q, here.ctypes.data, q)
            for i in range(e):
                for w in range(n_here):
                    found[head * e + i, first + w] = here[i, w]


@called
def _rectify(hidden, active):  # type: ignore[no-untyped-def]
    """max(x, 0) in place, and its square; NaN stays NaN."""
    for row in range(hidden.shape[0]):
        for m in range(hidden.shape[1]):
            x = hidden[row, m]
            x = np.float32(0.0) if x < 0 else x
            hidden[row, m] = x
            active[row, m] = x * x
