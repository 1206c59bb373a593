"""A block backward, from what forward kept."""

import numpy as np

from livelm.compiled import called, returning
from livelm.models.ops.few_tokens_cpu.parts import norm_back
from livelm.models.ops.rwkv7 import LOWEST_LOG_DECAY
from livelm.models.ops.rwkv7_cpu.forward import HEAD_NORM_EPS, HeadNorm, mix_all, mix_one
from livelm.models.ops.rwkv7_cpu.maps import back_through, project_back, to_before
from livelm.models.ops.rwkv7_cpu.states import SEGMENT, states_backward
from livelm.models.ops.rwkv7_cpu.strips import strip
from livelm.models.ops.turning import turned_vectors

_squared = strip(lambda x, c: [x[0] * x[0]])
_times = strip(lambda x, c: [x[0] * x[1]])
_added = strip(lambda x, c: [x[0] + x[1]])
_rectified_back = strip(lambda x, c: [x[0] * x[1] * 2.0])
_tanh_back = strip(lambda x, c: [x[0] * (1.0 - x[1] * x[1])])
_sigmoid_back = strip(lambda x, c: [x[0] * x[1] * (1.0 - x[1])])


def _mixed_back(x, c):  # type: ignore[no-untyped-def]
    """Delta, then gradients of what was mixed; mixes: those of tokens, of tokens before, and sums for mixes."""
    here, before = x[1] - x[1] * c[0], x[1] * c[0]
    for g, mix in zip(x[2:], c[1:], strict=True):
        here, before = here + (g - g * mix), before + g * mix
    return [here, before, *(g * x[0] for g in x[1:])]


_mixed_back_6, _mixed_back_1 = strip(_mixed_back, 6), strip(_mixed_back, 1)


def _present_back(x, c):  # type: ignore[no-untyped-def]
    """Gradient of what the present token is worth, r, key, gradient of what is gated, worth; r_k."""
    worth = x[0] * x[1]
    return [x[0] * x[2] * c[0], worth * c[0], x[3] * x[4], worth * x[2]]


_gated_back = strip(lambda x, c: [x[0] * x[1], x[0] * x[2]])
_worth_back = strip(lambda x, c: [x[2] + x[0] * x[1]])
_present_back_1 = strip(_present_back, 1)


@strip
def _removal_back(x, c):  # type: ignore[no-untyped-def]
    """Gradients of the removal key, and by its rate; rate, removal key, sum: gradient of the whole, sum along it."""
    whole = x[0] + x[1] * x[2]
    return [whole, x[4] + whole * x[3]]


def _keyed_back(x, c):  # type: ignore[no-untyped-def]
    """See its call: gradients of the projected key and of the rate's logit; sums for k_k, k_a, a0."""
    d_removal, removal, along, scale, key, rate, d_k, d_k_more, d_scaled = x
    d_k, less = d_k + d_k_more, rate - 1.0
    du = (d_removal - removal * along) * scale
    d_key = d_k * (1.0 + less * c[1]) + du * c[0]
    grown = d_k * key
    d_logit = (d_scaled * removal + grown * c[1]) * rate * (1.0 - rate)
    return [d_key, d_logit, du * key, grown * less, d_logit]


def _decay_back(x, c):  # type: ignore[no-untyped-def]
    """Gradient of the decay, decay, slope: that of the logit."""
    d_logit = x[0] * x[1] * x[2] * (1.0 - x[2]) * LOWEST_LOG_DECAY
    return [d_logit, d_logit]


def _shared_back(x, c):  # type: ignore[no-untyped-def]
    """Gradients of the value (two parts), share, first value, own value, gradient of the first value."""
    g, share = x[0] + x[1], x[2]
    d_first = g * share
    d_logit = g * (x[3] - x[4]) * share * (1.0 - share)
    return [d_logit, g - d_first, x[5] + d_first, d_logit]


_keyed_back_3, _decay_back_1, _shared_back_1 = strip(_keyed_back, 3), strip(_decay_back, 1), strip(_shared_back, 1)
_summed_3 = strip(lambda x, c: [x[0] + x[1] + x[2]])


@returning
def block_backward(form, g, first, d_first, starts, weights, kept, gradients):  # type: ignore[no-untyped-def]
    """From the gradient (D, M) g of the stream after the block that of the stream before it, in place.

    `first`, `d_first`: (D, M) values of the first layer, and their gradient by the layers above; what this one gives is
    added, and the first layer takes it. `gradients` take those of all weights.
    """
    d, m = g.shape
    spare = np.empty((2, m), np.float32)
    _channel_back(form, g, starts, weights, kept, gradients, spare)

    columns, dz = np.empty((d, m), np.float32), np.empty((d, m), np.float32)
    nothing = (np.float32(0),)
    _times(d * m, (kept.mid.ctypes.data, kept.gate.ctypes.data), nothing, (columns.ctypes.data,), (0,))
    project_back(weights.output, columns, g, gradients.output, dz)
    d_gate = columns
    reads = dz.ctypes.data, kept.gate.ctypes.data, kept.mid.ctypes.data
    _gated_back(d * m, reads, nothing, (dz.ctypes.data, d_gate.ctypes.data), (0,))
    parts = np.empty((9, d, m), np.float32)  # gradients of r, w, k, v, c, b; of r, k, v by the present token
    _read_back(form, dz, weights, kept, gradients, parts, starts, spare)
    mixed, d_mixed = np.empty((6, d, m), np.float32), np.empty((6, d, m), np.float32)
    mix_all(kept, weights.mix, mixed)
    _bend_back(form, first, d_first, weights, kept, gradients, parts, spare)
    project_back(weights.receptance, mixed[0], parts[0], gradients.receptance, d_mixed[0])
    project_back(weights.key, mixed[2], parts[2], gradients.key, d_mixed[2])
    project_back(weights.value, mixed[3], parts[3], gradients.value, d_mixed[3])
    _low_rank_back(form, weights, kept, gradients, parts, d_gate, mixed, d_mixed)
    before = parts[0]
    for row in range(d):
        at, step = 4 * m * row, 4 * d * m
        to = d_mixed.ctypes.data + at
        reads_6 = kept.delta.ctypes.data + at, to, to + step, to + 2 * step, to + 3 * step, to + 4 * step, to + 5 * step
        mix, d_mix = weights.mix, gradients.mix.ctypes.data + 4 * row
        numbers = mix[0, row], mix[1, row], mix[2, row], mix[3, row], mix[4, row], mix[5, row]
        sums = d_mix, d_mix + 4 * d, d_mix + 8 * d, d_mix + 12 * d, d_mix + 16 * d, d_mix + 20 * d
        _mixed_back_6(m, reads_6, numbers, (dz.ctypes.data + at, before.ctypes.data + at), sums)
    to_before(form, before, starts, dz, spare[0])
    norm_back(form, dz, kept.normed, kept.scales[0], weights.gain, gradients.gain, gradients.bias, g, spare)


@returning
def _channel_back(form, g, starts, weights, kept, gradients, spare):  # type: ignore[no-untyped-def]
    """Channel mixing from its end; adds to g what its norm sends back."""
    d, m = g.shape
    wide, d_wide = np.empty(kept.hidden.shape, np.float32), np.empty(kept.hidden.shape, np.float32)
    x, dx, before = np.empty((d, m), np.float32), np.empty((d, m), np.float32), np.empty((d, m), np.float32)
    nothing = (np.float32(0),)
    _squared(wide.size, (kept.hidden.ctypes.data,), nothing, (wide.ctypes.data,), (0,))
    project_back(weights.down, wide, g, gradients.down, d_wide)
    here = d_wide.ctypes.data
    _rectified_back(wide.size, (here, kept.hidden.ctypes.data), nothing, (here,), (0,))
    mix_one(kept.h_2, kept.delta_2, weights.mix_2, x)
    project_back(weights.up, x, d_wide, gradients.up, dx)
    for row in range(d):
        at = 4 * m * row
        here = dx.ctypes.data + at
        sums = (gradients.mix_2.ctypes.data + 4 * row,)
        reads = kept.delta_2.ctypes.data + at, here
        _mixed_back_1(m, reads, (weights.mix_2[row],), (here, before.ctypes.data + at), sums)
    to_before(form, before, starts, dx, spare[0])
    norm_back(form, dx, kept.normed_2, kept.scales[1], weights.gain_2, gradients.gain_2, gradients.bias_2, g, spare)


@returning
def _read_back(form, g, weights, kept, gradients, parts, starts, spare):  # type: ignore[no-untyped-def]
    """From (D, M) g of what is gated, which is written over, to `parts`, see `block_backward`."""
    d, m = g.shape
    n, h = form.d_head, form.n_heads
    worth = np.zeros((h, m), np.float32)
    for head in range(h):
        to, present = worth[head].ctypes.data, kept.scales[2 + 2 * h + head].ctypes.data
        for row in range(head * n, (head + 1) * n):
            at = 4 * m * row
            _worth_back(m, (g.ctypes.data + at, kept.v.ctypes.data + at, to), (np.float32(0),), (to,), (0,))
        for row in range(head * n, (head + 1) * n):
            at, step = 4 * m * row, 4 * d * m
            taken = parts.ctypes.data + 6 * step + at
            reads = to, kept.r.ctypes.data + at, kept.k.ctypes.data + at, g.ctypes.data + at, present
            sums = (gradients.r_k.ctypes.data + 4 * row,)
            _present_back_1(
                m, reads, (weights.r_k[head, row - head * n],), (taken, taken + step, taken + 2 * step), sums
            )
    d_columns, d_read = np.zeros((d, m), np.float32), np.empty((m, d), np.float32)
    for head in range(h):
        here, scale = slice(head * n, (head + 1) * n), kept.scales[2 + head]
        ends = weights.head_gain[here], gradients.head_gain[here], gradients.head_bias[here]
        norm_back(HeadNorm(True, HEAD_NORM_EPS), g[here], kept.read[here], scale, *ends, d_columns[here], spare)
    turned_vectors(d_columns, d_read)
    d_rows, space = np.empty((6, m, d), np.float32), np.empty((SEGMENT + 3, n, n), np.float32)
    rows = kept.rows[0], kept.rows[1], kept.rows[2], kept.rows[3], kept.rows[4], kept.rows[5]
    taken_rows = d_rows[0], d_rows[1], d_rows[2], d_rows[3], d_rows[4], d_rows[5]
    states_backward(form, starts, rows, (kept.rows[6], kept.states), d_read, taken_rows, space)
    for i in range(6):
        turned_vectors(d_rows[i], parts[i])


@called
def _bend_back(form, first, d_first, weights, kept, gradients, parts, spare):  # type: ignore[no-untyped-def]
    """From `parts` to the gradients of what the maps made, in place: r, logits of w, key, value, of v, of a."""
    d, m = kept.h.shape
    n, h, step = form.d_head, form.n_heads, 4 * d * m
    nothing = (np.float32(0),)
    for head in range(h):
        along, scale = spare.ctypes.data, kept.scales[2 + h + head].ctypes.data
        spare[0] = 0
        for row in range(head * n, (head + 1) * n):
            c = parts.ctypes.data + 4 * step + 4 * m * row
            removal, rate = kept.removal.ctypes.data + 4 * m * row, kept.rate.ctypes.data + 4 * m * row
            _removal_back(m, (c, c + step, rate, removal, along), nothing, (c, along), (0,))
        for row in range(head * n, (head + 1) * n):
            at = 4 * m * row
            r, place = parts.ctypes.data + at, 4 * row
            w, k, v, c, b = r + step, r + 2 * step, r + 3 * step, r + 4 * step, r + 5 * step
            removal, rate, key = kept.removal.ctypes.data + at, kept.rate.ctypes.data + at, kept.key.ctypes.data + at
            _added(m, (r, r + 6 * step), nothing, (r,), (0,))
            reads = c, removal, along, scale, key, rate, k, k + 5 * step, b
            sums = (
                gradients.k_k.ctypes.data + place,
                gradients.k_a.ctypes.data + place,
                gradients.a0.ctypes.data + place,
            )
            _keyed_back_3(m, reads, (weights.k_k[row], weights.k_a[row]), (k, b), sums)
            decay = w, kept.w.ctypes.data + at, kept.slope.ctypes.data + at
            _decay_back_1(m, decay, nothing, (w,), (gradients.w0.ctypes.data + place,))
            to_first = d_first.ctypes.data + at
            if len(weights.v0):
                own = kept.share.ctypes.data + at, first.ctypes.data + at, kept.value.ctypes.data + at
                writes = c, v, to_first
                sums_v = (gradients.v0.ctypes.data + place,)
                _shared_back_1(m, (v, v + 5 * step, *own, to_first), nothing, writes, sums_v)
            else:
                _summed_3(m, (v, v + 5 * step, to_first), nothing, (v,), (0,))


@returning
def _low_rank_back(form, weights, kept, gradients, parts, d_gate, mixed, d_mixed):  # type: ignore[no-untyped-def]
    """The four low-rank maps from their ends; what those of values send back is added to that of the value's map."""
    d, m = kept.h.shape
    nothing = (np.float32(0),)
    x = np.empty(kept.of_w.shape, np.float32)
    back_through(weights.w2, kept.of_w, parts[1], gradients.w2, x)
    _tanh_back(x.size, (x.ctypes.data, kept.of_w.ctypes.data), nothing, (x.ctypes.data,), (0,))
    back_through(weights.w1, mixed[1], x, gradients.w1, d_mixed[1])
    x = np.empty(kept.of_a.shape, np.float32)
    back_through(weights.a2, kept.of_a, parts[5], gradients.a2, x)
    back_through(weights.a1, mixed[4], x, gradients.a1, d_mixed[4])
    x = np.empty(kept.of_g.shape, np.float32)
    back_through(weights.g2, kept.of_g, d_gate, gradients.g2, x)
    _sigmoid_back(x.size, (x.ctypes.data, kept.of_g.ctypes.data), nothing, (x.ctypes.data,), (0,))
    back_through(weights.g1, mixed[5], x, gradients.g1, d_mixed[5])
    if len(weights.v0):
        x = np.empty(kept.of_v.shape, np.float32)
        back_through(weights.v2, kept.of_v, parts[4], gradients.v2, x)
        back_through(weights.v1, mixed[3], x, gradients.v1, parts[0])
        here = d_mixed[3].ctypes.data
        _added(d * m, (here, parts[0].ctypes.data), nothing, (here,), (0,))
