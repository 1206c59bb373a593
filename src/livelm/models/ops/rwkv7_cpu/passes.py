"""From tokens to what the head reads, and back: the whole of a pass in one call each."""

import numpy as np

from livelm.compiled import allocating
from livelm.models.ops.few_tokens_cpu.parts import from_columns, gained, norm, norm_back, to_columns
from livelm.models.ops.rwkv7_cpu.backward import block_backward
from livelm.models.ops.rwkv7_cpu.forward import block_forward
from livelm.models.ops.rwkv7_cpu.places import ends_of, kept_of, matrices_at, shifts_at, weights_of


@allocating
def pass_forward(form, tokens, starts, ends, at, h, buffer):  # type: ignore[no-untyped-def]
    """(B, T, D) h, what `RWKV7.hidden` computes; `buffer`: see `places`.

    `ends`: (V, D) rows of tokens, gain and bias of the first norm and of the last. `at`: addresses of weights, of
    shifts and states before (both of each layer, then one), and of the same after.

    Returns false, and computes nothing, for ids outside the vocabulary.
    """
    embedding, gain, bias, last_gain, last_bias = ends
    weights_at, before_at, after_at = at
    d, m = form.d_model, form.n_lanes * form.n_padded
    for lane in range(form.n_lanes):
        for token in tokens[lane]:
            if not 0 <= token < len(embedding):
                return False
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                h[lane, t, i] = embedding[tokens[lane, t], i]
    stream = np.empty((d, m), np.float32)
    first_normed, first_scale, normed, scale = ends_of(form, buffer)
    to_columns(form, h, stream)
    norm(form, stream, first_normed, first_scale)
    gained(form, first_normed, gain, bias, stream)
    first = kept_of(form, buffer, 0).value
    n = form.n_layers
    for layer in range(n):
        past = (
            shifts_at(form, before_at, layer),
            shifts_at(form, before_at, n + layer),
            matrices_at(form, before_at, 2 * n + layer),
            shifts_at(form, after_at, layer),
            shifts_at(form, after_at, n + layer),
            matrices_at(form, after_at, 2 * n + layer),
        )
        weights = weights_of(form, weights_at, layer)
        block_forward(form, stream, first, starts, past, weights, kept_of(form, buffer, layer))
    norm(form, stream, normed, scale)
    gained(form, normed, last_gain, last_bias, stream)
    from_columns(form, stream, h)
    return True


@allocating
def pass_backward(form, dh, tokens, starts, gains, at, buffer, d_ends):  # type: ignore[no-untyped-def]
    """Gradients of everything from (B, T, D) dh.

    `gains` of the first norm and of the last. `at`: addresses of weights and of their gradients. `d_ends` takes those
    of `ends`; that of token rows is zero before.
    """
    (gain, last_gain), (weights_at, gradients_at) = gains, at
    d_embedding, d_gain, d_bias, d_last_gain, d_last_bias = d_ends
    d, m = form.d_model, form.n_lanes * form.n_padded
    g, x, spare = np.empty((d, m), np.float32), np.zeros((d, m), np.float32), np.empty((2, m), np.float32)
    first_normed, first_scale, normed, scale = ends_of(form, buffer)
    to_columns(form, dh, g)
    norm_back(form, g, normed, scale, last_gain, d_last_gain, d_last_bias, x, spare)
    first, d_first = kept_of(form, buffer, 0).value, np.zeros((d, m), np.float32)
    for back in range(form.n_layers):
        layer = form.n_layers - 1 - back
        weights, gradients = weights_of(form, weights_at, layer), weights_of(form, gradients_at, layer)
        block_backward(form, x, first, d_first, starts, weights, kept_of(form, buffer, layer), gradients)
    g[:] = 0
    norm_back(form, x, first_normed, first_scale, gain, d_gain, d_bias, g, spare)
    dx = np.empty(dh.shape, np.float32)
    from_columns(form, g, dx)
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                d_embedding[tokens[lane, t], i] += dx[lane, t, i]
