"""From patches to what is known after each of them, and back: the whole of a pass in one call each."""

import numpy as np

from livelm.compiled import allocating, called
from livelm.models.ops.few_tokens_cpu.backward import attention_backward, feed_backward
from livelm.models.ops.few_tokens_cpu.forward import add, attention_forward, feed_forward
from livelm.models.ops.few_tokens_cpu.parts import from_columns, gained, norm, norm_back, to_columns
from livelm.models.ops.few_tokens_cpu.places import (
    N_WEIGHTS,
    kept_of,
    kept_size,
    keys_and_values,
    last_norm_of,
    weights_of,
    window_of,
)
from livelm.models.ops.few_tokens_cpu.window import see


@allocating
def pass_forward(form, read, frequencies, ends, at, rows, buffer, streams):  # type: ignore[no-untyped-def]
    """(B, W + 1, D) rows: the first as they are, the others what is known after each patch.

    `read`: numbers and positions of patches (B, W), numbers of all documents (B, S). `ends`: rows of patches, gain of
    the last norm. `at`: addresses of weights, carried keys and values, and all of them. `buffer`: see `places`; blocks
    have parts of it if `form.n_layers` is not 0. `streams` (2, D, M): both, after all blocks.
    """
    (leaves, positions, documents), (embedding, gain), (weights_at, past_at, all_at) = read, ends, at
    first, second = streams[0], streams[1]
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(form.d_model):
                rows[lane, t + 1, i] = embedding[leaves[lane, t], i]
    to_columns(form, rows[:, 1:], first)
    to_columns(form, rows[:, 1:], second)
    window = window_of(form, buffer)
    see(form, documents, window[0])
    _turns(form, positions, frequencies, window[1], window[2])
    found = np.empty(first.shape, np.float32)
    spare = np.empty(0 if form.n_layers else kept_size(form), np.float32)
    for layer in range(len(weights_at) // N_WEIGHTS):
        kept = kept_of(form, buffer, layer) if form.n_layers else kept_of(form, spare, 0)
        past, weights = keys_and_values(form, past_at, layer, form.n_carried), weights_of(form, weights_at, layer)
        keys, values = keys_and_values(form, all_at, layer, form.n_carried + form.n_tokens)
        attention_forward(form, second, past, window, weights[:4], keys, values, kept[:6], found)
        add(found, first)
        feed_forward(form, first, weights[4:], kept[6:], found)
        add(found, second)
    normed, scale = last_norm_of(form, buffer)
    found[:] = 0
    add(first, found)
    add(second, found)
    norm(form, found, normed, scale)
    gained(form, normed, gain, gain, found)
    from_columns(form, found, rows[:, 1:])


@allocating
def pass_backward(form, d_rows, leaves, gain, at, buffer, streams, d_ends):  # type: ignore[no-untyped-def]
    """Gradients of everything from (B, W + 1, D) those of rows, of which the first are not looked at.

    `at`: addresses of weights and of their gradients, and of keys and values: all of them, or the carried ones if
    blocks have no part in the buffer. Then what they read is computed again from the streams, which are written over.
    `d_ends` takes the gradients of rows of patches, which is zero before, and of the gain.
    """
    (weights_at, gradients_at, seen_at), (d_embedding, d_gain) = at, d_ends
    d, m = streams.shape[1:]
    g, spare = np.empty((d, m), np.float32), np.empty((2, m), np.float32)
    g1, g2 = np.zeros((d, m), np.float32), np.zeros((d, m), np.float32)
    to_columns(form, d_rows[:, 1:], g)
    normed, scale = last_norm_of(form, buffer)
    norm_back(form, g, normed, scale, gain, d_gain, d_gain, g1, spare)
    add(g1, g2)
    window = window_of(form, buffer)
    n_keys, again = form.n_carried + form.n_tokens, not form.n_layers
    memory = np.empty(kept_size(form) if again else 0, np.float32)
    size = (form.n_lanes, n_keys if again else 0, form.n_kv_heads, form.d_head)
    new_keys, new_values = np.empty(size, np.float32), np.empty(size, np.float32)
    n_layers = len(weights_at) // N_WEIGHTS
    for back in range(n_layers):
        layer = n_layers - 1 - back
        weights, gradients = weights_of(form, weights_at, layer), weights_of(form, gradients_at, layer)
        if again:
            kept, seen = kept_of(form, memory, 0), (new_keys, new_values)
            past = keys_and_values(form, seen_at, layer, form.n_carried)
            feed_forward(form, streams[0], weights[4:], kept[6:], g)
            _take_away(g, streams[1])
            attention_forward(form, streams[1], past, window, weights[:4], new_keys, new_values, kept[:6], g)
            _take_away(g, streams[0])
        else:
            kept, seen = kept_of(form, buffer, layer), keys_and_values(form, seen_at, layer, n_keys)
        feed_backward(form, g2, g1, weights[4:], kept[6:], gradients[4:])
        attention_backward(form, g1, g2, seen, window, weights[:4], kept[:6], gradients[:4])
    add(g1, g2)
    dx = np.empty((form.n_lanes, form.n_tokens, d), np.float32)
    from_columns(form, g2, dx)
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens):
            for i in range(d):
                d_embedding[leaves[lane, t], i] += dx[lane, t, i]


@called
def _turns(form, positions, frequencies, cos, sin):  # type: ignore[no-untyped-def]
    """(E/2, M) cosines and sines of the angles by which patches at (B, W) positions are turned: see `layers.rotation`.

    One after the other each is turned on from the last one, which is a fraction of the work.
    """
    for lane in range(form.n_lanes):
        for k in range(len(frequencies)):
            frequency, position = frequencies[k], positions[lane, 0]
            c, s = np.cos(frequency), np.sin(frequency)
            one, other = np.cos(position * frequency), np.sin(position * frequency)
            for t in range(form.n_padded):
                column = lane * form.n_padded + t
                cos[k, column], sin[k, column] = one, other
                position += 1
                if t + 1 < form.n_tokens and positions[lane, t + 1] != position:
                    position = positions[lane, t + 1]
                    one, other = np.cos(position * frequency), np.sin(position * frequency)
                else:
                    one, other = one * c - other * s, other * c + one * s


@called
def _take_away(columns, stream):  # type: ignore[no-untyped-def]
    for row in range(stream.shape[0]):
        for m in range(stream.shape[1]):
            stream[row, m] -= columns[row, m]
