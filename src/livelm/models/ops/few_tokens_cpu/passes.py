"""From tokens to what the head reads, and back: the whole of a pass in one call each."""

import numpy as np

from livelm.compiled import allocating
from livelm.models.ops.few_tokens_cpu.backward import block_backward
from livelm.models.ops.few_tokens_cpu.forward import block_forward
from livelm.models.ops.few_tokens_cpu.parts import from_columns, gained, norm, norm_back, to_columns
from livelm.models.ops.few_tokens_cpu.places import (
    kept_of,
    keys_and_values,
    last_norm_of,
    weights_of,
    window_of,
)
from livelm.models.ops.few_tokens_cpu.window import look_around
from livelm.models.ops.ngram_rows import look_up, spread


@allocating
def pass_forward(form, read, state, ends, ngrams, at, h, documents, buffer):  # type: ignore[no-untyped-def]
    """(B, T, D) h, what `Transformer.hidden` computes; (B, S) numbers of documents; `buffer`: see `places`.

    `read`: tokens and starts (B, T). `state`: position, documents and frequencies. `ends`: (V, D) rows of tokens, gain
    and bias of the last norm. `ngrams`: the arguments of `ngram_rows.look_up` from the table to `kept`, but for the
    tokens, of no rows where there are none. `at`: addresses of weights, carried keys and values, and all of them.

    Returns false, and computes nothing, for ids outside the vocabulary.
    """
    (tokens, starts), (position, carried, frequencies), (embedding, gain, bias) = read, state, ends
    weights_at, past_at, all_at = at
    table, recent, multipliers, rows, first, last, kept = ngrams
    d, m = form.d_model, form.n_lanes * form.n_padded
    for lane in range(form.n_lanes):
        for token in tokens[lane]:
            if not 0 <= token < len(embedding):
                return False
    if len(table):
        look_up(table, recent, tokens, starts, multipliers, rows, first, last, kept)
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                h[lane, t, i] = embedding[tokens[lane, t], i]
                if len(table):
                    h[lane, t, i] += first[lane, t, i]
    stream, window = np.empty((d, m), np.float32), window_of(form, buffer)
    to_columns(form, h, stream)
    look_around(form, window, starts, position, carried, frequencies, documents)
    for layer in range(form.n_layers):
        past, weights = keys_and_values(form, past_at, layer, form.n_carried), weights_of(form, weights_at, layer)
        keys, values = keys_and_values(form, all_at, layer, form.n_carried + form.n_tokens)
        block_forward(form, stream, past, window, weights, keys, values, kept_of(form, buffer, layer))
    normed, scale = last_norm_of(form, buffer)
    norm(form, stream, normed, scale)
    gained(form, normed, gain, bias, stream)
    from_columns(form, stream, h)
    if len(table):
        for lane in range(form.n_lanes):
            for t in range(form.n_tokens):
                for i in range(d):
                    h[lane, t, i] += last[lane, t, i]
    return True


@allocating
def pass_backward(form, dh, tokens, gain, at, buffer, d_ends, d_values):  # type: ignore[no-untyped-def]
    """Gradients of everything from (B, T, D) dh.

    `at`: addresses of weights, of their gradients, and of all keys and values. `d_ends` takes those of token rows,
    which is zero before, gain and bias; `d_values` (B T N, 2 D) those of rows of n-grams, with N = 0 orders or more.
    """
    weights_at, gradients_at, all_at = at
    d_embedding, d_gain, d_bias = d_ends
    d, m = form.d_model, form.n_lanes * form.n_padded
    g, x, spare = np.empty((d, m), np.float32), np.zeros((d, m), np.float32), np.empty((2, m), np.float32)
    to_columns(form, dh, g)
    normed, scale = last_norm_of(form, buffer)
    norm_back(form, g, normed, scale, gain, d_gain, d_bias, x, spare)
    window = window_of(form, buffer)
    for back in range(form.n_layers):
        layer = form.n_layers - 1 - back
        everything = keys_and_values(form, all_at, layer, form.n_carried + form.n_tokens)
        weights, gradients = weights_of(form, weights_at, layer), weights_of(form, gradients_at, layer)
        block_backward(form, x, everything, window, weights, kept_of(form, buffer, layer), gradients)
    dx = np.empty(dh.shape, np.float32)
    from_columns(form, x, dx)
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                d_embedding[tokens[lane, t], i] += dx[lane, t, i]
    if len(d_values):
        spread(dx, dh, d_values)
