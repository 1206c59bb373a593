"""The local mixer of every token, forward and back: norm, depthwise causal convolution, SiLU, one product."""

import numpy as np

from livelm.compiled import added, called, returning
from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.parts import norm, norm_back
from livelm.models.ops.products import HIGH, add_product
from livelm.models.ops.turning import turned
from livelm.models.ops.worker_cpu.sigmoid import sigmoids


@returning
def mixer_forward(form, stream, grid, weights, before, kept, rest, after):  # type: ignore[no-untyped-def]
    """Add to the (D, M) stream what `worker.LocalMixer` has for it, and to `rest` (E, M) what else it makes.

    `before` and `after`: (B, R, D) what it looks back on, and what the next batch will. `kept`: see `places.mixer_of`.
    """
    (gain, taps, project), (normed, scale, mixed, opened) = weights, kept
    norm(form, stream, normed, scale)
    _convolve(form, grid, normed, gain, taps, before, mixed)
    _keep(form, normed, gain, before, after)
    sigmoid(mixed, opened)
    active = np.empty(mixed.shape, np.float32)
    multiply(mixed, opened, active)
    product(project[: form.d_model], active, stream)
    product(project[form.d_model :], active, rest)


@returning
def mixer_back(form, g, d_rest, grid, weights, before, kept, gradients):  # type: ignore[no-untyped-def]
    """From the gradients of the (D, M) stream and of the (E, M) rest that of the stream before, in place."""
    (gain, taps, project), (normed, scale, mixed, opened) = weights, kept
    (d_gain, d_taps, d_project), d, n = gradients, form.d_model, form.n_lanes * form.n_tokens
    active, back, rows = np.empty(g.shape, np.float32), np.zeros(g.shape, np.float32), np.empty((n, d), np.float32)
    multiply(mixed, opened, active)
    turned(active[:, :n], rows)
    weight_back(g, rows, d_project[:d])
    weight_back(d_rest, rows, d_project[d:])
    product_back(project[:d], g, back)
    product_back(project[d:], d_rest, back)
    for row in range(d):
        for m in range(n):
            s = opened[row, m]
            back[row, m] *= s * (np.float32(1.0) + mixed[row, m] * (np.float32(1.0) - s))
    active[:] = 0
    _convolve_back(form, grid, back, (normed, gain, taps, before), active, d_taps)
    norm_back(form, active, normed, scale, gain, d_gain, d_gain, g, back[:2])


@called
def product(weight, x, out):  # type: ignore[no-untyped-def]
    """Add to (N, M) `out` what an (N, D) map makes of (D, M) x."""
    (n, d), m = weight.shape, x.shape[1]
    if n:
        add_product((n, m, d), weight.ctypes.data, d, 1, x.ctypes.data, m, out.ctypes.data, m)


@called
def product_back(weight, g, out):  # type: ignore[no-untyped-def]
    """Add to (D, M) `out` what an (N, D) map sends back of (N, M) g."""
    (n, d), m = weight.shape, g.shape[1]
    if n:
        add_product((d, m, n), weight.ctypes.data, 1, d, g.ctypes.data, m, out.ctypes.data, m)


@called
def weight_back(g, read, gradient):  # type: ignore[no-untyped-def]
    """(N, D) gradient of a map, from (N, M) that of its output and the (n, D) rows that it read, n <= M."""
    (n, d), m = read.shape, g.shape[1]
    for row in range(0, len(gradient), 2 * HIGH):  # a few rows are zeroed and filled while they are in the cache
        some = gradient[row : row + 2 * HIGH]
        some[:] = 0
        add_product((len(some), d, n), g.ctypes.data + 4 * row * m, m, 1, read.ctypes.data, d, some.ctypes.data, d)


@called
def sigmoid(x, out):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x) of (D, M) numbers without gaps; M is a multiple of LANES."""
    sigmoids(x.ctypes.data, out.ctypes.data, x.shape[0] * (x.shape[1] // LANES))


@called
def multiply(a, b, out):  # type: ignore[no-untyped-def]
    """a b, number by number."""
    for row in range(a.shape[0]):
        for m in range(a.shape[1]):
            out[row, m] = a[row, m] * b[row, m]


@called
def _read(form, grid, run, row, given, line):  # type: ignore[no-untyped-def]
    """A channel of a run of one document, after the R values before it: zero where they are not of the document."""
    (normed, gain, _, before), n_back = given, form.n_taps - 1
    first, end = grid[4, run], grid[4, run + 1]
    lane, reach = first // form.n_tokens, grid[0, first]
    for i in range(n_back):
        line[i] = before[lane, i, row] if i >= n_back - reach else np.float32(0.0)
    _scale(normed[row, first:end], gain[row], line[n_back:])


@returning
def _convolve(form, grid, normed, gain, taps, before, mixed):  # type: ignore[no-untyped-def]
    """(D, M) sums of the newest values of each channel by their taps, as far as the document reaches."""
    line, n_back = np.empty(form.n_tokens + form.n_taps, np.float32), form.n_taps - 1
    for row in range(form.d_model):
        for token in range(form.n_lanes * form.n_tokens, form.n_columns):
            mixed[row, token] = 0.0
        for run in range(form.n_segments):
            _read(form, grid, run, row, (normed, gain, taps, before), line)
            out = mixed[row, grid[4, run] : grid[4, run + 1]]
            _scale(line[n_back : n_back + len(out)], taps[0, row], out)
            for j in range(1, form.n_taps):
                _add_scaled(line[n_back - j :], taps[j, row], out)


@returning
def _convolve_back(form, grid, g, given, back, d_taps):  # type: ignore[no-untyped-def]
    """Add to (D, M) `back` what came of g (D, M) for the inputs; (n_taps, D) `d_taps` that for the taps."""
    taps, n_back = given[2], form.n_taps - 1
    line, later = np.empty(form.n_tokens + form.n_taps, np.float32), np.empty(form.n_tokens + form.n_taps, np.float32)
    d_taps[:] = 0
    for row in range(form.d_model):
        for run in range(form.n_segments):
            _read(form, grid, run, row, given, line)
            first, end = grid[4, run], grid[4, run + 1]
            n, to = end - first, back[row, first:end]
            _scale(g[row, first:end], np.float32(1.0), later)
            for t in range(n, n + n_back):  # what follows is of another document, or of another batch
                later[t] = 0.0
            for j in range(form.n_taps):
                _add_scaled(later[j:], taps[j, row], to)
                d_taps[j, row] += _dot(later[:n], line[n_back - j :])


# Slices, because indices that might be negative keep the compiler from making vectors of a loop.


@called
def _scale(a, factor, out):  # type: ignore[no-untyped-def]
    for i in range(len(a)):
        out[i] = a[i] * factor


@called
def _add_scaled(a, factor, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += a[i] * factor


@added
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@called
def _keep(form, normed, gain, before, after):  # type: ignore[no-untyped-def]
    """(B, R, D) the last inputs, carried ones where there are fewer new."""
    n_back, n_tokens = form.n_taps - 1, form.n_tokens
    for lane in range(form.n_lanes):
        for i in range(n_back):
            t = n_tokens - n_back + i
            for d in range(form.d_model):
                old = t < 0
                after[lane, i, d] = before[lane, n_tokens + i, d] if old else normed[d, lane * n_tokens + t] * gain[d]
