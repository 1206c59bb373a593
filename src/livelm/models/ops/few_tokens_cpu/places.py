"""Where things lie: weights, gradients and states by their addresses, what forward keeps in one buffer.

A compiled function takes a list of addresses in the time that it takes to unpack one array; a model has dozens.
"""

from numba import carray  # type: ignore[attr-defined]

from livelm.compiled import returning
from livelm.compiled.addresses import floats_at

N_WEIGHTS = 10
"""Of a block; the address of one that is missing is 0."""


@returning
def matrix(address, n_rows, n_columns):  # type: ignore[no-untyped-def]
    """(n_rows, n_columns) float32 numbers at an address."""
    return carray(floats_at(address), (n_rows, n_columns))


@returning
def vector(address, n):  # type: ignore[no-untyped-def]
    """n float32 numbers at an address; none where that is 0."""
    return carray(floats_at(address), (n if address else 0,))


@returning
def weights_of(form, at, layer):  # type: ignore[no-untyped-def]
    """Weights, or gradients, of a block; `at` has N_WEIGHTS addresses for each."""
    i, d, found = N_WEIGHTS * layer, form.d_model, form.n_heads * form.d_head
    projected = found + 2 * form.n_kv_heads * form.d_head
    attention = vector(at[i], d), vector(at[i + 1], d), matrix(at[i + 2], projected, d), matrix(at[i + 3], d, found)
    return (
        *attention,
        vector(at[i + 4], d),
        vector(at[i + 5], d),
        matrix(at[i + 6], form.hidden, d),
        vector(at[i + 7], form.hidden),
        matrix(at[i + 8], d, form.hidden),
        vector(at[i + 9], d),
    )


@returning
def keys_and_values(form, at, layer, n_keys):  # type: ignore[no-untyped-def]
    """(B, S, G, E) keys and values of a block; `at` has the addresses of both for each."""
    shape = form.n_lanes, n_keys, form.n_kv_heads, form.d_head
    return carray(floats_at(at[2 * layer]), shape), carray(floats_at(at[2 * layer + 1]), shape)


@returning
def kept_size(form):  # type: ignore[no-untyped-def]
    """Numbers that a block keeps for its gradient."""
    m, n_normed = form.n_lanes * form.n_padded, form.n_heads + form.n_kv_heads
    of_token = 2 * form.d_model + 2 + (2 * form.n_heads + 2 * form.n_kv_heads) * form.d_head + n_normed + form.hidden
    return m * (of_token + form.n_heads * (form.n_carried + form.n_tokens))


@returning
def kept_of(form, buffer, layer):  # type: ignore[no-untyped-def]
    """A block's part of a buffer.

    (D, M) normed input and (M,) its scale; (projected, M) queries, keys and values, (normed heads, M) their scales;
    (B, H, S, P) probabilities; (H E, M) what heads found; normed input and scale of the feed-forward layer, and (F, M)
    what it rectified.
    """
    at, m, d = buffer.ctypes.data + 4 * layer * kept_size(form), form.n_lanes * form.n_padded, form.d_model
    found, n_normed = form.n_heads * form.d_head, form.n_heads + form.n_kv_heads
    projected, n_keys = found + 2 * form.n_kv_heads * form.d_head, form.n_carried + form.n_tokens
    normed, at = matrix(at, d, m), at + 4 * d * m
    scale, at = vector(at, m), at + 4 * m
    heads, at = matrix(at, projected, m), at + 4 * projected * m
    head_scale, at = matrix(at, n_normed, m), at + 4 * n_normed * m
    probabilities = carray(floats_at(at), (form.n_lanes, form.n_heads, n_keys, form.n_padded))
    at += 4 * form.n_heads * n_keys * m
    of_heads, at = matrix(at, found, m), at + 4 * found * m
    normed_2, at = matrix(at, d, m), at + 4 * d * m
    scale_2, at = vector(at, m), at + 4 * m
    return normed, scale, heads, head_scale, probabilities, of_heads, normed_2, scale_2, matrix(at, form.hidden, m)


@returning
def window_of(form, buffer):  # type: ignore[no-untyped-def]
    """What is behind the blocks' parts: (B, S, P) what is added to scores, (E/2, M) cosines and sines."""
    at, m = buffer.ctypes.data + 4 * form.n_layers * kept_size(form), form.n_lanes * form.n_padded
    n_keys, half = form.n_carried + form.n_tokens, form.d_head // 2
    bias = carray(floats_at(at), (form.n_lanes, n_keys, form.n_padded))
    at += 4 * n_keys * m
    return bias, matrix(at, half, m), matrix(at + 4 * half * m, half, m)


@returning
def last_norm_of(form, buffer):  # type: ignore[no-untyped-def]
    """What is behind that: (D, M) normed stream after the blocks, and (M,) its scale."""
    m, n_keys = form.n_lanes * form.n_padded, form.n_carried + form.n_tokens
    at = buffer.ctypes.data + 4 * (form.n_layers * kept_size(form) + m * (n_keys + form.d_head))
    return matrix(at, form.d_model, m), vector(at + 4 * form.d_model * m, m)


def buffer_size(form) -> int:  # type: ignore[no-untyped-def]
    """Numbers of all that a pass keeps."""
    m, n_keys = form.n_lanes * form.n_padded, form.n_carried + form.n_tokens
    return form.n_layers * kept_size.py_func(form) + m * (n_keys + form.d_head + form.d_model + 1)
