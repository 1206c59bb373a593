"""A block forward: time mixing, then channel mixing."""

from typing import NamedTuple

import numpy as np

from livelm.compiled import called, returning
from livelm.models.ops.few_tokens_cpu.parts import gained, norm
from livelm.models.ops.rwkv7 import LOWEST_LOG_DECAY
from livelm.models.ops.rwkv7_cpu.maps import add_projected, from_before, project, through
from livelm.models.ops.rwkv7_cpu.states import states_forward
from livelm.models.ops.rwkv7_cpu.strips import strip
from livelm.models.ops.turning import turned_vectors

LEAST = 1e-12
"""Added to the square of a removal key's length, as in `pointwise.unit`."""
HEAD_NORM_EPS = 64e-5


class HeadNorm(NamedTuple):
    """What `few_tokens_cpu.parts` wants to know of the norm of a head."""

    centred: bool
    norm_eps: float


_mixed_6 = strip(lambda x, c: [x[0] + x[1] * mix for mix in c])
_mixed = strip(lambda x, c: [x[0] + x[1] * c[0]])
_tanh = strip(lambda x, c: [x[0].tanh()])
_sigmoid = strip(lambda x, c: [x[0].sigmoid()])
_offset_sigmoid = strip(lambda x, c: [(x[0] + c[0]).sigmoid()])


@strip
def _decay(x, c):  # type: ignore[no-untyped-def]
    """Logit; offset: sigmoid, decay."""
    slope = (x[0] + c[0]).sigmoid()
    return [slope, (slope * LOWEST_LOG_DECAY).exp()]


@strip
def _shared(x, c):  # type: ignore[no-untyped-def]
    """Logit, value, first layer's value; offset: share, mixed value."""
    share = (x[0] + c[0]).sigmoid()
    return [share, x[1] + share * (x[2] - x[1])]


@strip
def _keyed(x, c):  # type: ignore[no-untyped-def]
    """Projected key, rate, sum of squares; k_k, k_a: key, sum of squares of the removal key."""
    removal = x[0] * c[0]
    return [x[0] * (1.0 + (x[1] - 1.0) * c[1]), x[2] + removal * removal]


_inverse_root = strip(lambda x, c: [1.0 / (x[0] + LEAST).root()])
_removal = strip(lambda x, c: [x[0] * c[0] * x[1], x[0] * c[0] * x[1] * x[2]])
_present = strip(lambda x, c: [x[2] + x[0] * x[1] * c[0]])


@strip
def _gated(x, c):  # type: ignore[no-untyped-def]
    """Normed, what the present token is worth, value, gate; gain, bias: what is gated, and that by the gate."""
    mid = x[0] * c[0] + c[1] + x[1] * x[2]
    return [mid, mid * x[3]]


@strip
def _rectified(x, c):  # type: ignore[no-untyped-def]
    """max(x, 0) and its square; NaN stays NaN."""
    rectified = x[0].below(0.0, x[0] * 0.0, x[0])
    return [rectified, rectified * rectified]


@returning
def block_forward(form, stream, first, starts, past, weights, kept):  # type: ignore[no-untyped-def]
    """What a block of `models.rwkv7` adds to the (D, M) stream, and what it keeps.

    `first`: (D, M) values of the first layer. `past`: (B, D) last inputs of both mixers and (B, H, n, n) states before,
    and the same after.
    """
    shift, shift_2, state, shift_after, shift_after_2, state_after = past
    d, m = stream.shape
    norm(form, stream, kept.normed, kept.scales[0])
    gained(form, kept.normed, weights.gain, weights.bias, kept.h)
    from_before(form, kept.h, starts, shift, shift_after, kept.delta)
    rows = _project(form, first, weights, kept)
    of_heads, space = np.empty((m, d), np.float32), np.empty((form.d_head + 1, form.d_head), np.float32)
    states_forward(form, starts, rows, of_heads, (kept.rows[6], kept.states), state, state_after, space)
    columns = np.empty((d, m), np.float32)
    turned_vectors(of_heads, columns)
    _gate(form, columns, weights, kept)
    add_projected(weights.output, columns, stream, np.empty((d, m), np.float32))

    norm(form, stream, kept.normed_2, kept.scales[1])
    gained(form, kept.normed_2, weights.gain_2, weights.bias_2, kept.h_2)
    from_before(form, kept.h_2, starts, shift_2, shift_after_2, kept.delta_2)
    mix_one(kept.h_2, kept.delta_2, weights.mix_2, columns)
    active = np.empty(kept.hidden.shape, np.float32)
    project(weights.up, columns, kept.hidden)
    here, to = kept.hidden.ctypes.data, active.ctypes.data
    _rectified(kept.hidden.size, (here,), (np.float32(0),), (here, to), (0,))
    add_projected(weights.down, active, stream, columns)


@called
def mix_one(h, delta, mix, out):  # type: ignore[no-untyped-def]
    """(D, M) h + delta mix."""
    m = h.shape[1]
    for row in range(len(mix)):
        at = 4 * m * row
        _mixed(m, (h.ctypes.data + at, delta.ctypes.data + at), (mix[row],), (out.ctypes.data + at,), (0,))


@called
def mix_all(kept, mix, mixed):  # type: ignore[no-untyped-def]
    """(6, D, M): what the six maps read."""
    d, m = kept.h.shape
    for row in range(d):
        at = 4 * m * row
        reads = kept.h.ctypes.data + at, kept.delta.ctypes.data + at
        of = mix[0, row], mix[1, row], mix[2, row], mix[3, row], mix[4, row], mix[5, row]
        to, step = mixed.ctypes.data + at, 4 * m * d
        _mixed_6(m, reads, of, (to, to + step, to + 2 * step, to + 3 * step, to + 4 * step, to + 5 * step), (0,))


@returning
def _project(form, first, weights, kept):  # type: ignore[no-untyped-def]
    """(M, D) rows for the recurrence: r, decays, keys, values, removal keys, and these times their rates."""
    d, m = kept.h.shape
    mixed, scaled = np.empty((6, d, m), np.float32), np.empty((d, m), np.float32)
    mix_all(kept, weights.mix, mixed)
    project(weights.receptance, mixed[0], kept.r)
    project(weights.key, mixed[2], kept.key)
    project(weights.value, mixed[3], kept.value)
    nothing = np.float32(0)
    through(weights.w1, mixed[1], kept.of_w)
    _tanh(kept.of_w.size, (kept.of_w.ctypes.data,), (nothing,), (kept.of_w.ctypes.data,), (0,))
    through(weights.w2, kept.of_w, kept.slope)
    through(weights.a1, mixed[4], kept.of_a)
    through(weights.a2, kept.of_a, kept.rate)
    through(weights.g1, mixed[5], kept.of_g)
    _sigmoid(kept.of_g.size, (kept.of_g.ctypes.data,), (nothing,), (kept.of_g.ctypes.data,), (0,))
    through(weights.g2, kept.of_g, kept.gate)
    if len(weights.v0):
        through(weights.v1, mixed[3], kept.of_v)
        through(weights.v2, kept.of_v, kept.share)
    _bend(form, first, weights, kept, scaled)
    r, w, k, v, c, b = kept.rows[0], kept.rows[1], kept.rows[2], kept.rows[3], kept.rows[4], kept.rows[5]
    turned_vectors(kept.r, r)
    turned_vectors(kept.w, w)
    turned_vectors(kept.k, k)
    turned_vectors(kept.v, v)
    turned_vectors(kept.removal, c)
    turned_vectors(scaled, b)
    return r, w, k, v, c, b


@called
def _bend(form, first, weights, kept, scaled):  # type: ignore[no-untyped-def]
    """Everything between the projections and the recurrence, a channel after another."""
    m, n, h = kept.h.shape[1], form.d_head, form.n_heads
    kept.scales[2:] = 0
    for head in range(h):
        lengths = kept.scales[2 + h + head].ctypes.data
        present = kept.scales[2 + 2 * h + head].ctypes.data
        for row in range(head * n, (head + 1) * n):
            at = 4 * m * row
            slope, rate, key = kept.slope.ctypes.data + at, kept.rate.ctypes.data + at, kept.key.ctypes.data + at
            value, v, k = kept.value.ctypes.data + at, kept.v.ctypes.data + at, kept.k.ctypes.data + at
            _decay(m, (slope,), (weights.w0[row],), (slope, kept.w.ctypes.data + at), (0,))
            _offset_sigmoid(m, (rate,), (weights.a0[row],), (rate,), (0,))
            if len(weights.v0):
                share = kept.share.ctypes.data + at
                _shared(m, (share, value, first.ctypes.data + at), (weights.v0[row],), (share, v), (0,))
            else:
                for column in range(m):
                    kept.v[row, column] = kept.value[row, column]
            _keyed(m, (key, rate, lengths), (weights.k_k[row], weights.k_a[row]), (k, lengths), (0,))
            _present(m, (kept.r.ctypes.data + at, k, present), (weights.r_k[head, row - head * n],), (present,), (0,))
        _inverse_root(m, (lengths,), (np.float32(0),), (lengths,), (0,))
        for row in range(head * n, (head + 1) * n):
            at = 4 * m * row
            reads = kept.key.ctypes.data + at, lengths, kept.rate.ctypes.data + at
            writes = kept.removal.ctypes.data + at, scaled.ctypes.data + at
            _removal(m, reads, (weights.k_k[row],), writes, (0,))


@called
def _gate(form, columns, weights, kept):  # type: ignore[no-untyped-def]
    """Norm (D, M) `columns` of what was read, head by head; the present token; the gate. In place."""
    m, n, h = kept.h.shape[1], form.d_head, form.n_heads
    for head in range(h):
        here, scale = slice(head * n, (head + 1) * n), kept.scales[2 + head]
        norm(HeadNorm(True, HEAD_NORM_EPS), columns[here], kept.read[here], scale)
        for row in range(head * n, (head + 1) * n):
            at = 4 * m * row
            reads = (
                kept.read.ctypes.data + at,
                kept.scales[2 + 2 * h + head].ctypes.data,
                kept.v.ctypes.data + at,
                kept.gate.ctypes.data + at,
            )
            numbers = weights.head_gain[row], weights.head_bias[row]
            _gated(m, reads, numbers, (kept.mid.ctypes.data + at, columns.ctypes.data + at), (0,))
