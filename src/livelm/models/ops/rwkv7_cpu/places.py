"""Where things lie: weights and gradients by their addresses, what forward keeps in one buffer."""

from typing import Any, NamedTuple

from numba import carray  # type: ignore[attr-defined]

from livelm.compiled import returning
from livelm.compiled.addresses import floats_at
from livelm.models.ops.few_tokens_cpu.places import matrix, vector
from livelm.models.ops.rwkv7_cpu.states import SEGMENT


class Form(NamedTuple):
    """Sizes of the blocks, and of what goes through them; named as `few_tokens_cpu.parts` wants them."""

    n_lanes: int
    n_tokens: int
    n_padded: int
    """Columns of a lane: `n_tokens`, filled up to whole vectors."""
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    hidden: int
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int
    norm_eps: float
    centred: bool = True
    """Every norm is a LayerNorm."""


class Weights(NamedTuple):
    """Of a block, or their gradients; those of values are empty in the first."""

    mix: Any
    w0: Any
    w1: Any
    w2: Any
    a0: Any
    a1: Any
    a2: Any
    v0: Any
    v1: Any
    v2: Any
    g1: Any
    g2: Any
    k_k: Any
    k_a: Any
    r_k: Any
    receptance: Any
    key: Any
    value: Any
    output: Any
    head_gain: Any
    head_bias: Any
    gain: Any
    bias: Any
    gain_2: Any
    bias_2: Any
    mix_2: Any
    up: Any
    down: Any


class Kept(NamedTuple):
    """What a block keeps of forward for backward: (rows, M), a column a token, but for the last ones."""

    normed: Any
    """Of time mixing, as `h` and `delta`."""
    h: Any
    delta: Any
    """From a token to the one before."""
    r: Any
    key: Any
    """As projected."""
    value: Any
    """As projected."""
    k: Any
    v: Any
    slope: Any
    """Sigmoid in the logarithm of the decay."""
    w: Any
    rate: Any
    share: Any
    """Of the first layer's values."""
    removal: Any
    gate: Any
    mid: Any
    """What the gate is for."""
    read: Any
    """From the states, normed."""
    of_w: Any
    of_a: Any
    of_v: Any
    of_g: Any
    """(rank, M) between two low-rank maps."""
    scales: Any
    """(2 + 3 H, M): of both norms; of each head's read, its removal key, and its present token."""
    normed_2: Any
    """Of channel mixing, as `h_2` and `delta_2`."""
    h_2: Any
    delta_2: Any
    hidden: Any
    """Rectified."""
    rows: Any
    """(7, M, D): r, w, k, v, removal keys, their rates', and u of `states`."""
    states: Any
    """(B, S, H, n, n): every SEGMENT-th."""


N_WEIGHTS = len(Weights._fields)
"""Of a block; the address of one that is missing is 0."""


@returning
def weights_of(form, at, layer):  # type: ignore[no-untyped-def]
    """Weights, or gradients, of a block; `at` has N_WEIGHTS addresses for each."""
    i, d, f, n = N_WEIGHTS * layer, form.d_model, form.hidden, form.d_head
    v = form.value_rank if layer else 0
    return Weights(
        matrix(at[i], 6, d),
        vector(at[i + 1], d),
        matrix(at[i + 2], d, form.decay_rank),
        matrix(at[i + 3], form.decay_rank, d),
        vector(at[i + 4], d),
        matrix(at[i + 5], d, form.rate_rank),
        matrix(at[i + 6], form.rate_rank, d),
        vector(at[i + 7], d),
        matrix(at[i + 8], d, v),
        matrix(at[i + 9], v, d),
        matrix(at[i + 10], d, form.gate_rank),
        matrix(at[i + 11], form.gate_rank, d),
        vector(at[i + 12], d),
        vector(at[i + 13], d),
        matrix(at[i + 14], form.n_heads, n),
        matrix(at[i + 15], d, d),
        matrix(at[i + 16], d, d),
        matrix(at[i + 17], d, d),
        matrix(at[i + 18], d, d),
        vector(at[i + 19], d),
        vector(at[i + 20], d),
        vector(at[i + 21], d),
        vector(at[i + 22], d),
        vector(at[i + 23], d),
        vector(at[i + 24], d),
        vector(at[i + 25], d),
        matrix(at[i + 26], f, d),
        matrix(at[i + 27], d, f),
    )


@returning
def kept_size(form):  # type: ignore[no-untyped-def]
    """Numbers that a block keeps."""
    m, d, h = form.n_lanes * form.n_padded, form.d_model, form.n_heads
    ranks = form.decay_rank + form.rate_rank + form.value_rank + form.gate_rank
    n_states = form.n_lanes * ((form.n_tokens + SEGMENT - 1) // SEGMENT)
    return m * (26 * d + ranks + 2 + 3 * h + form.hidden) + n_states * d * form.d_head


@returning
def kept_of(form, buffer, layer):  # type: ignore[no-untyped-def]
    """A block's part of a buffer."""
    m, d, f = form.n_lanes * form.n_padded, form.d_model, form.hidden
    ranks = form.decay_rank, form.rate_rank, form.value_rank, form.gate_rank
    at, step = buffer.ctypes.data + 4 * layer * kept_size(form), 4 * d * m
    of = at + 19 * step, at + 19 * step + 4 * m * ranks[0], at + 19 * step + 4 * m * (ranks[0] + ranks[1])
    of_g = of[2] + 4 * m * ranks[2]
    scales = of_g + 4 * m * ranks[3]
    hidden = scales + 4 * m * (2 + 3 * form.n_heads)
    rows = hidden + 4 * m * f
    n_states = (form.n_tokens + SEGMENT - 1) // SEGMENT
    shape = form.n_lanes, n_states, form.n_heads, form.d_head, form.d_head
    return Kept(
        matrix(at, d, m),
        matrix(at + step, d, m),
        matrix(at + 2 * step, d, m),
        matrix(at + 3 * step, d, m),
        matrix(at + 4 * step, d, m),
        matrix(at + 5 * step, d, m),
        matrix(at + 6 * step, d, m),
        matrix(at + 7 * step, d, m),
        matrix(at + 8 * step, d, m),
        matrix(at + 9 * step, d, m),
        matrix(at + 10 * step, d, m),
        matrix(at + 11 * step, d, m),
        matrix(at + 12 * step, d, m),
        matrix(at + 13 * step, d, m),
        matrix(at + 14 * step, d, m),
        matrix(at + 15 * step, d, m),
        matrix(of[0], ranks[0], m),
        matrix(of[1], ranks[1], m),
        matrix(of[2], ranks[2], m),
        matrix(of_g, ranks[3], m),
        matrix(scales, 2 + 3 * form.n_heads, m),
        matrix(at + 16 * step, d, m),
        matrix(at + 17 * step, d, m),
        matrix(at + 18 * step, d, m),
        matrix(hidden, f, m),
        carray(floats_at(rows), (7, m, d)),
        carray(floats_at(rows + 7 * step), shape),
    )


@returning
def ends_of(form, buffer):  # type: ignore[no-untyped-def]
    """What is behind the blocks' parts: (D, M) normed and (M,) scale of the first norm, and of the last."""
    m, d = form.n_lanes * form.n_padded, form.d_model
    at = buffer.ctypes.data + 4 * form.n_layers * kept_size(form)
    first, last = at + 8 * d * m, at + 8 * d * m + 4 * m
    return matrix(at, d, m), vector(first, m), matrix(at + 4 * d * m, d, m), vector(last, m)


def buffer_size(form: Form) -> int:
    """Numbers of all that a pass keeps."""
    m = form.n_lanes * form.n_padded
    return form.n_layers * kept_size.py_func(form) + m * (2 * form.d_model + 2)


@returning
def matrices_at(form, at, layer):  # type: ignore[no-untyped-def]
    """(B, H, n, n) states of a block, by their address."""
    return carray(floats_at(at[layer]), (form.n_lanes, form.n_heads, form.d_head, form.d_head))


@returning
def shifts_at(form, at, i):  # type: ignore[no-untyped-def]
    """(B, D) last inputs of a mixer, by their address."""
    return carray(floats_at(at[i]), (form.n_lanes, form.d_model))
