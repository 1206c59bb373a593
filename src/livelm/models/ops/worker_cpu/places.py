"""Where things lie: weights, gradients and states by their addresses, what forward keeps in one buffer.

Inside, a row is a channel and a column a token: (D, M), where the T tokens of each lane follow those of the one before.
The workers of all lanes have columns of their own, (D, N), in the same order.
"""

from typing import NamedTuple

from numba import carray  # type: ignore[attr-defined]

from livelm.compiled import returning
from livelm.compiled.addresses import floats_at
from livelm.compiled.vectors import LANES
from livelm.models.ops.few_tokens_cpu.places import matrix, vector

N_WEIGHTS, N_CARRIED = 10, 4
"""Of a block: weights, and tensors of its state."""


class Form(NamedTuple):
    """Sizes of a model, and of what goes through it."""

    n_lanes: int
    n_tokens: int
    """Of a lane."""
    n_columns: int
    """M: tokens of all lanes, filled up so that a whole number of vectors fits behind the last lane's first token."""
    n_carried: int
    """Keys that were there before."""
    n_workers: int
    n_working: int
    """N: workers of all lanes, filled up in the same way."""
    n_wide: int
    """Q: workers of the lane that has most, filled up."""
    n_segments: int
    """Runs of tokens that are of one lane and document."""
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    hidden: int
    n_taps: int
    context: int
    centred: bool = False
    """As are the norms here; `few_tokens_cpu.parts` knows others."""
    norm_eps: float = 1e-6
    qk_norm: bool = True


def filled_up(n: int) -> int:
    """The next multiple of the vectors' length."""
    return -(-n // LANES) * LANES


@returning
def mixer_weights(form, at, layer):  # type: ignore[no-untyped-def]
    """Gain, taps and map of a local mixer, that of the last one after all blocks; or their gradients."""
    i, d = N_WEIGHTS * layer, form.d_model
    d_out = 3 * d if layer < form.n_layers else d
    return vector(at[i], d), matrix(at[i + 1], form.n_taps, d), matrix(at[i + 2], d_out, d)


@returning
def work_weights(form, at, layer):  # type: ignore[no-untyped-def]
    """What the workers of a block have: gain, map to queries and gate, output map; gain, two maps; what is told."""
    i, d = N_WEIGHTS * layer, form.d_model
    attention = vector(at[i + 3], d), matrix(at[i + 4], 2 * d, d), matrix(at[i + 5], d, d)
    return (
        *attention,
        vector(at[i + 6], d),
        matrix(at[i + 7], form.hidden, d),
        matrix(at[i + 8], d, form.hidden),
        matrix(at[i + 9], d, d),
    )


@returning
def carried_of(form, at, layer, n_keys):  # type: ignore[no-untyped-def]
    """A block's (B, n_keys, H E) keys and values, and (B, D) what was told."""
    i, shape = N_CARRIED * layer, (form.n_lanes, n_keys, form.d_model)
    keys, values = carray(floats_at(at[i]), shape), carray(floats_at(at[i + 1]), shape)
    return keys, values, matrix(at[i + 3], form.n_lanes, form.d_model)


@returning
def local_of(form, at, layer):  # type: ignore[no-untyped-def]
    """(B, R, D) inputs that a mixer looks back on, those of the last one after all blocks."""
    place = N_CARRIED * layer + (2 if layer < form.n_layers else 0)
    return carray(floats_at(at[place]), (form.n_lanes, form.n_taps - 1, form.d_model))


@returning
def mixer_size(form):  # type: ignore[no-untyped-def]
    """Numbers that a mixer keeps for its gradient."""
    return form.n_columns * (3 * form.d_model + 1)


@returning
def kept_size(form):  # type: ignore[no-untyped-def]
    """Numbers that a block keeps, its mixer included."""
    n_keys = form.n_carried + form.n_tokens
    of_token = 2 * form.d_model + form.n_heads
    of_worker = 6 * form.d_model + 2 + form.n_heads + form.hidden
    seen = form.n_lanes * form.n_heads * n_keys * form.n_wide
    return mixer_size(form) + form.n_columns * of_token + form.n_working * of_worker + seen


@returning
def mixer_of(form, buffer, layer):  # type: ignore[no-untyped-def]
    """A mixer's part of a buffer: (D, M) normed input and (M,) scale; (D, M) mixed, and its sigmoid."""
    at, d, m = buffer.ctypes.data + 4 * layer * kept_size(form), form.d_model, form.n_columns
    normed, at = matrix(at, d, m), at + 4 * d * m
    scale, at = vector(at, m), at + 4 * m
    return normed, scale, matrix(at, d, m), matrix(at + 4 * d * m, d, m)


@returning
def told_of(form, buffer, layer):  # type: ignore[no-untyped-def]
    """A block's (2 D, M) keys and values of the new tokens, and (H, M) scales of its keys."""
    at, d, m = buffer.ctypes.data + 4 * (layer * kept_size(form) + mixer_size(form)), form.d_model, form.n_columns
    return matrix(at, 2 * d, m), matrix(at + 8 * d * m, form.n_heads, m)


@returning
def work_of(form, buffer, layer):  # type: ignore[no-untyped-def]
    """The workers' part.

    (D, N) normed and (N,) its scale; (2 D, N) queries and sigmoids of the gate; (H, N) scales of queries; (B, H, S, Q)
    probabilities; (D, N) what heads found; normed and scale of the feed-forward layer; (F, N) what it rectified; (D, N)
    the stream after it.
    """
    d, n, start = form.d_model, form.n_working, mixer_size(form) + form.n_columns * (2 * form.d_model + form.n_heads)
    at, n_keys = buffer.ctypes.data + 4 * (layer * kept_size(form) + start), form.n_carried + form.n_tokens
    normed, at = matrix(at, d, n), at + 4 * d * n
    scale, at = vector(at, n), at + 4 * n
    asked, at = matrix(at, 2 * d, n), at + 8 * d * n
    ask_scale, at = matrix(at, form.n_heads, n), at + 4 * form.n_heads * n
    probabilities = carray(floats_at(at), (form.n_lanes, form.n_heads, n_keys, form.n_wide))
    at += 4 * form.n_lanes * form.n_heads * n_keys * form.n_wide
    found, at = matrix(at, d, n), at + 4 * d * n
    normed_2, at = matrix(at, d, n), at + 4 * d * n
    scale_2, at = vector(at, n), at + 4 * n
    hidden, at = matrix(at, form.hidden, n), at + 4 * form.hidden * n
    return normed, scale, asked, ask_scale, probabilities, found, normed_2, scale_2, hidden, matrix(at, d, n)


@returning
def last_norm_of(form, buffer):  # type: ignore[no-untyped-def]
    """What is behind the last mixer's: (D, M) normed stream, and (M,) its scale."""
    at, d, m = buffer.ctypes.data, form.d_model, form.n_columns
    at += 4 * (form.n_layers * kept_size(form) + mixer_size(form))
    return matrix(at, d, m), vector(at + 4 * d * m, m)


@returning
def window_of(form, buffer):  # type: ignore[no-untyped-def]
    """What is behind that: (B, S, Q) what is added to scores, (E/2, M) cosines and sines, (E/2, N) the workers'."""
    at, m, n, half = buffer.ctypes.data, form.n_columns, form.n_working, form.d_head // 2
    at += 4 * (form.n_layers * kept_size(form) + mixer_size(form) + m * (form.d_model + 1))
    n_keys = form.n_carried + form.n_tokens
    bias = carray(floats_at(at), (form.n_lanes, n_keys, form.n_wide))
    at += 4 * form.n_lanes * n_keys * form.n_wide
    angles, at = (matrix(at, half, m), matrix(at + 4 * half * m, half, m)), at + 8 * half * m
    return bias, angles, (matrix(at, half, n), matrix(at + 4 * half * n, half, n))


def buffer_size(form: Form) -> int:
    """Numbers of all that a pass keeps."""
    n_keys, m = form.n_carried + form.n_tokens, form.n_columns
    mixer = m * (3 * form.d_model + 1)
    window = form.n_lanes * n_keys * form.n_wide + form.d_head * (m + form.n_working)
    return form.n_layers * kept_size.py_func(form) + mixer + m * (form.d_model + 1) + window
