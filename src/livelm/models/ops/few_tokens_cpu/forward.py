"""A block forward, in two halves: norm, projection, rotary positions, attention, output map; norm, feed-forward."""

import numpy as np

from livelm.compiled import called, returning
from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.parts import gained, norm, turn
from livelm.models.ops.products import add_product
from livelm.models.ops.softmax_columns import softmax_strip


@returning
def block_forward(form, stream, past, window, weights, keys, values, kept):  # type: ignore[no-untyped-def]
    """What `transformer.Block` adds to the (D, M) stream; all keys and values (B, S, G, E), carried ones first.

    `weights` and `kept`: those of both halves, which see; `kept` takes what `block_backward` wants to know.
    """
    # apart from the stream: added to it one by one, numbers far smaller would be rounded to its last places
    found = np.empty(stream.shape, np.float32)
    attention_forward(form, stream, past, window, weights[:4], keys, values, kept[:6], found)
    add(found, stream)
    feed_forward(form, stream, weights[4:], kept[6:], found)
    add(found, stream)


@returning
def attention_forward(form, stream, past, window, weights, keys, values, kept, out):  # type: ignore[no-untyped-def]
    """(D, M) `out`: what attention makes of the (D, M) stream.

    `past`: carried keys and values (B, C, G, E). `window`: (B, S, P) what is added to scores, and (E/2, M) cosines and
    sines. `weights`: gain, bias, projection, output map. `kept`: the first six of `places.kept_of`.
    """
    gain, bias, project, mix = weights
    normed, scale, heads, head_scale, probabilities, found = kept
    d, m = stream.shape
    norm(form, stream, normed, scale)
    gained(form, normed, gain, bias, out)
    heads[:] = 0
    add_product((len(heads), m, d), project.ctypes.data, d, 1, out.ctypes.data, m, heads.ctypes.data, m)
    _turn_heads(form, heads, window, head_scale)
    _keep(form, heads, past, keys, values)
    found[:] = 0
    _attend(form, heads, keys, values, window[0], probabilities, found)
    out[:] = 0
    add_product((d, m, len(found)), mix.ctypes.data, len(found), 1, found.ctypes.data, m, out.ctypes.data, m)


@returning
def feed_forward(form, stream, weights, kept, out):  # type: ignore[no-untyped-def]
    """(D, M) `out`: what the feed-forward layer makes of the (D, M) stream.

    `weights`: gain, bias, map, bias, map, bias. `kept`: the last three of `places.kept_of`.
    """
    gain, bias, up, up_bias, down, down_bias = weights
    normed, scale, hidden = kept
    (d, m), active = stream.shape, np.empty(hidden.shape, np.float32)
    norm(form, stream, normed, scale)
    gained(form, normed, gain, bias, out)
    _begin(up_bias, hidden)
    add_product((form.hidden, m, d), up.ctypes.data, d, 1, out.ctypes.data, m, hidden.ctypes.data, m)
    _rectify(form, hidden, active)
    _begin(down_bias, out)
    add_product((d, m, form.hidden), down.ctypes.data, form.hidden, 1, active.ctypes.data, m, out.ctypes.data, m)


@called
def _turn_heads(form, heads, window, head_scale):  # type: ignore[no-untyped-def]
    """Norm and turn queries and keys; queries carry the scale of the scores."""
    _, cos, sin = window
    for head in range(form.n_heads + form.n_kv_heads):
        size = np.float32(1 / np.sqrt(form.d_head)) if head < form.n_heads else np.float32(1.0)
        turn(form, heads[head * form.d_head : (head + 1) * form.d_head], cos, sin, size, head_scale[head])


@called
def _keep(form, heads, past, keys, values):  # type: ignore[no-untyped-def]
    """Carried keys and values, then the new ones."""
    for all_of, old, first in ((keys, past[0], form.n_heads), (values, past[1], form.n_heads + form.n_kv_heads)):
        for lane in range(form.n_lanes):
            for s in range(form.n_carried):
                for g in range(form.n_kv_heads):
                    for e in range(form.d_head):
                        all_of[lane, s, g, e] = old[lane, s, g, e]
            for t in range(form.n_tokens):
                for g in range(form.n_kv_heads):
                    for e in range(form.d_head):
                        row, column = (first + g) * form.d_head + e, lane * form.n_padded + t
                        all_of[lane, form.n_carried + t, g, e] = heads[row, column]


@called
def _attend(form, heads, keys, values, bias, probabilities, found):  # type: ignore[no-untyped-def]
    """softmax(q k' + bias) of each lane and head, and the values by it."""
    n_keys, n, e, m = keys.shape[1], form.n_padded, form.d_head, heads.shape[1]
    row = form.n_kv_heads * e
    from_keys, from_values, from_heads, to = keys.ctypes.data, values.ctypes.data, heads.ctypes.data, found.ctypes.data
    for lane in range(form.n_lanes):
        for head in range(form.n_heads):
            p, group = probabilities[lane, head], head // (form.n_heads // form.n_kv_heads)
            for s in range(n_keys):
                for t in range(n):
                    p[s, t] = bias[lane, s, t]
            there = 4 * ((lane * n_keys * form.n_kv_heads + group) * e)
            here = 4 * (head * e * m + lane * n)
            add_product((n_keys, n, e), from_keys + there, row, 1, from_heads + here, m, p.ctypes.data, n)
            for t in range(0, n, LANES):
                softmax_strip(p.ctypes.data + 4 * t, n, n_keys)
            add_product((e, n, n_keys), from_values + there, 1, row, p.ctypes.data, n, to + here, m)


@called
def _begin(bias, columns):  # type: ignore[no-untyped-def]
    """Every column the bias, or zero where there is none."""
    for row in range(columns.shape[0]):
        value = bias[row] if len(bias) else np.float32(0.0)
        for m in range(columns.shape[1]):
            columns[row, m] = value


@called
def add(columns, stream):  # type: ignore[no-untyped-def]
    """Add (D, M) columns to a stream."""
    for row in range(stream.shape[0]):
        for m in range(stream.shape[1]):
            stream[row, m] += columns[row, m]


@called
def _rectify(form, hidden, active):  # type: ignore[no-untyped-def]
    """max(x, 0) in place, and that or its square; NaN stays NaN."""
    for row in range(hidden.shape[0]):
        for m in range(hidden.shape[1]):
            x = hidden[row, m]
            x = np.float32(0.0) if x < 0 else x
            hidden[row, m] = x
            active[row, m] = x * x if form.squared else x
