"""Linear maps of tokens in columns, whole and of low rank, there and back; and the token before."""

import numpy as np

from livelm.compiled import called, returning
from livelm.models.ops.few_tokens_cpu.backward import through_back, weight_back
from livelm.models.ops.products import add_product
from livelm.models.ops.turning import turned_vectors


@called
def project(weight, x, out):  # type: ignore[no-untyped-def]
    """(N, M) `out` = (N, D) weight by (D, M) x."""
    (n, d), m = weight.shape, x.shape[1]
    out[:] = 0
    add_product((n, m, d), weight.ctypes.data, d, 1, x.ctypes.data, m, out.ctypes.data, m)


@called
def add_projected(weight, x, stream, space):  # type: ignore[no-untyped-def]
    """Add (N, D) weight by (D, M) x to an (N, M) stream, which is larger: each step of a sum on it would round to it.

    Twelve layers whose sums went on in the stream had eight times the error of torch. `space` is (N, M) of memory.
    """
    project(weight, x, space)
    for row in range(len(stream)):
        for m in range(stream.shape[1]):
            stream[row, m] += space[row, m]


@called
def through(weight, x, out):  # type: ignore[no-untyped-def]
    """(O, M) `out` of (I, M) x by an (I, O) weight, as low-rank maps have them."""
    (d, n), m = weight.shape, x.shape[1]
    out[:] = 0
    add_product((n, m, d), weight.ctypes.data, 1, n, x.ctypes.data, m, out.ctypes.data, m)


@returning
def project_back(weight, x, g, d_weight, dx):  # type: ignore[no-untyped-def]
    """From (N, M) g of what `project` made: (N, D) gradient of the weight, (D, M) of x."""
    rows = np.empty((x.shape[1], x.shape[0]), np.float32)
    turned_vectors(x, rows)
    weight_back(g, rows, d_weight)
    dx[:] = 0
    through_back(weight, g, dx)


@returning
def back_through(weight, x, g, d_weight, dx):  # type: ignore[no-untyped-def]
    """From (O, M) g of what `through` made: (I, O) gradient of the weight, (I, M) of x."""
    (d, n), m = weight.shape, x.shape[1]
    rows = np.empty((m, n), np.float32)
    turned_vectors(g, rows)
    weight_back(x, rows, d_weight)
    dx[:] = 0
    add_product((d, m, n), weight.ctypes.data, n, 1, g.ctypes.data, m, dx.ctypes.data, m)


@called
def from_before(form, h, starts, before, after, delta):  # type: ignore[no-untyped-def]
    """(D, M) `delta`: the token before each, `before` (B, D) the first, zero at starts (B, T), less the token.

    `after` (B, D) takes the last token.
    """
    for lane in range(form.n_lanes):
        at, end = lane * form.n_padded, lane * form.n_padded + form.n_tokens
        for row in range(form.d_model):
            past = before[lane, row]
            after[lane, row] = h[row, end - 1]
            for t in range(form.n_tokens):
                here = h[row, at + t]
                delta[row, at + t] = (np.float32(0.0) if starts[lane, t] else past) - here
                past = here
            for m in range(end, at + form.n_padded):
                delta[row, m] = 0.0


@called
def to_before(form, d_past, starts, dh, heard):  # type: ignore[no-untyped-def]
    """Add to (D, M) dh what each token sends to the one before; (M,) `heard` is memory."""
    for lane in range(form.n_lanes):
        at, n = lane * form.n_padded, form.n_tokens - 1
        for t in range(n):
            heard[t] = 0.0 if starts[lane, t + 1] else 1.0
        for row in range(form.d_model):
            for t in range(n):
                more = d_past[row, at + t + 1]
                dh[row, at + t] += more if heard[t] > 0 else np.float32(0.0)
