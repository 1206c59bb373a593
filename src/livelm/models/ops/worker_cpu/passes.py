"""From tokens to what the head reads, and back: the whole of a pass in one call each."""

import numpy as np

from livelm.compiled import allocating, called
from livelm.models.ops.few_tokens_cpu.parts import gained, norm, norm_back, turn, turn_back
from livelm.models.ops.ngram_rows import look_up, spread
from livelm.models.ops.turning import turned
from livelm.models.ops.worker_cpu.mixer import mixer_back, mixer_forward
from livelm.models.ops.worker_cpu.places import (
    carried_of,
    last_norm_of,
    local_of,
    mixer_of,
    mixer_weights,
    told_of,
    window_of,
    work_of,
    work_weights,
)
from livelm.models.ops.worker_cpu.window import look_around
from livelm.models.ops.worker_cpu.work import hear, work_forward
from livelm.models.ops.worker_cpu.work_back import work_back


@allocating
def pass_forward(form, read, grid, ends, ngrams, at, h, buffer):  # type: ignore[no-untyped-def]
    """(B T, D) h, what `Worker.hidden` computes; `buffer`: see `places`, `grid`: see `window`.

    `read`: tokens and starts (B, T), frequencies. `ends`: (V, D) rows of tokens, gain of the last norm. `ngrams`: the
    arguments of `ngram_rows.look_up` from the table to `kept`, but for the tokens, of no rows where there are none.
    `at`: addresses of weights, of the state, and of that after the pass.

    Returns false, and computes nothing, for ids outside the vocabulary.
    """
    (tokens, starts, frequencies), (embedding, gain), (weights_at, past_at, after_at) = read, ends, at
    table, recent, multipliers, rows, first, last, kept = ngrams
    for lane in range(form.n_lanes):
        for token in tokens[lane]:
            if not 0 <= token < len(embedding):
                return False
    if len(table):
        look_up(table, recent, tokens, starts, multipliers, rows, first, last, kept)
    _embed(form, tokens, embedding, first, h)
    d, n, size = form.d_model, form.n_lanes * form.n_tokens, (form.d_model, form.n_columns)
    n_kept = min(form.context, form.n_carried + form.n_tokens)
    stream, told = np.zeros(size, np.float32), np.empty((d, form.n_working), np.float32)
    turned(h, stream)
    window = window_of(form, buffer)
    look_around(form, grid, frequencies, window)
    _, (cos, sin), _ = window
    for layer in range(form.n_layers):
        new, key_scale = told_of(form, buffer, layer)
        new[:] = 0
        local, after_local = local_of(form, past_at, layer), local_of(form, after_at, layer)
        weights, kept_local = mixer_weights(form, weights_at, layer), mixer_of(form, buffer, layer)
        mixer_forward(form, stream, grid, weights, local, kept_local, new, after_local)
        for head in range(form.n_heads):
            turn(form, new[head * form.d_head : (head + 1) * form.d_head], cos, sin, np.float32(1.0), key_scale[head])
        keys, values, carried = carried_of(form, past_at, layer, form.n_carried)
        after_keys, after_values, after_told = carried_of(form, after_at, layer, n_kept)
        _keep(form, new[:d], keys, after_keys)
        _keep(form, new[d:], values, after_values)
        told[:] = 0
        if form.n_workers:
            work, kept_work = work_weights(form, weights_at, layer), work_of(form, buffer, layer)
            work_forward(form, stream, told, grid, window, work, (keys, values), new, kept_work)
        hear(form, stream, told, grid, carried, after_told)
    _finish(form, stream, grid, gain, (weights_at, past_at, after_at), buffer)
    turned(stream[:, :n], h)
    if len(table):
        _add(last, h)
    return True


@allocating
def pass_backward(form, dh, tokens, grid, gain, at, buffer, d_ends, d_values):  # type: ignore[no-untyped-def]
    """Gradients of everything from (B T, D) dh.

    `at`: addresses of weights, of their gradients, and of the state before. `d_ends` takes those of token rows, which
    is zero before, and of the gain; `d_values` (B T N, 2 D) those of rows of n-grams, with N = 0 orders or more.
    """
    (weights_at, gradients_at, past_at), (d_embedding, d_gain), layers = at, d_ends, form.n_layers
    d, n, size = form.d_model, form.n_lanes * form.n_tokens, (form.d_model, form.n_columns)
    g, x, spare = np.zeros(size, np.float32), np.zeros(size, np.float32), np.empty((2, form.n_columns), np.float32)
    turned(dh, g)
    normed, scale = last_norm_of(form, buffer)
    norm_back(form, g, normed, scale, gain, d_gain, d_gain, x, spare)
    weights, gradients = mixer_weights(form, weights_at, layers), mixer_weights(form, gradients_at, layers)
    local, d_new = local_of(form, past_at, layers), np.empty((2 * d, form.n_columns), np.float32)
    mixer_back(form, x, d_new[:0], grid, weights, local, mixer_of(form, buffer, layers), gradients)
    window, listeners = window_of(form, buffer), np.zeros((n, form.n_working), np.float32)
    _, (cos, sin), _ = window
    for token in range(n):
        if grid[1, token] > form.n_lanes:
            listeners[token, grid[1, token] - form.n_lanes - 1] = 1.0
    for back in range(layers):
        layer = layers - 1 - back
        new, key_scale = told_of(form, buffer, layer)
        keys, values, _ = carried_of(form, past_at, layer, form.n_carried)
        d_new[:] = 0
        if form.n_workers:
            work, d_work = work_weights(form, weights_at, layer), work_weights(form, gradients_at, layer)
            kept = work_of(form, buffer, layer)
            work_back(form, x, d_new, grid, listeners, window, work, (keys, values), new, kept, d_work)
        for head in range(form.n_heads):
            here = slice(head * form.d_head, (head + 1) * form.d_head)
            turn_back(form, d_new[here], new[here], cos, sin, np.float32(1.0), key_scale[head], spare[0])
        weights, gradients = mixer_weights(form, weights_at, layer), mixer_weights(form, gradients_at, layer)
        local = local_of(form, past_at, layer)
        mixer_back(form, x, d_new, grid, weights, local, mixer_of(form, buffer, layer), gradients)
    dx = np.empty(dh.shape, np.float32)
    turned(x[:, :n], dx)
    shape = form.n_lanes, form.n_tokens, d
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                d_embedding[tokens[lane, t], i] += dx[lane * form.n_tokens + t, i]
    if len(d_values):
        spread(dx.reshape(shape), dh.reshape(shape), d_values)


@called
def _embed(form, tokens, embedding, first, h):  # type: ignore[no-untyped-def]
    """(B T, D) rows of tokens, with those of n-grams where there are any."""
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            place = lane * form.n_tokens + t
            for i in range(form.d_model):
                h[place, i] = embedding[tokens[lane, t], i]
            for i in range(first.shape[2]):
                h[place, i] += first[lane, t, i]


@called
def _add(last, h):  # type: ignore[no-untyped-def]
    """To (B T, D) h the (B, T, D) last."""
    n_tokens = last.shape[1]
    for place in range(len(h)):
        for i in range(h.shape[1]):
            h[place, i] += last[place // n_tokens, place % n_tokens, i]


@called
def _finish(form, stream, grid, gain, at, buffer):  # type: ignore[no-untyped-def]
    """The last mixer and the last norm."""
    (weights_at, past_at, after_at), layers = at, form.n_layers
    local, after = local_of(form, past_at, layers), local_of(form, after_at, layers)
    weights, kept = mixer_weights(form, weights_at, layers), mixer_of(form, buffer, layers)
    mixer_forward(form, stream, grid, weights, local, kept, stream[:0], after)
    normed, scale = last_norm_of(form, buffer)
    norm(form, stream, normed, scale)
    gained(form, normed, gain, gain, stream)


@called
def _keep(form, new, old, after):  # type: ignore[no-untyped-def]
    """(B, K, D) the last keys or values, of (B, C, D) old and (D, M) new ones."""
    n_kept = after.shape[1]
    n_old = max(n_kept - form.n_tokens, 0)
    for lane in range(form.n_lanes):
        for s in range(n_old):
            for i in range(form.d_model):
                after[lane, s, i] = old[lane, form.n_carried - n_old + s, i]
        end = (lane + 1) * form.n_tokens
        turned(new[:, end - n_kept + n_old : end], after[lane, n_old:])
