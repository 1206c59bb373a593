"""Which position may see which, and by how far each is turned: once for all blocks."""

import numpy as np

from livelm.compiled import called


@called
def look_around(form, window, starts, position, carried, frequencies, documents):  # type: ignore[no-untyped-def]
    """What `transformer.window` computes, into `window` (see `places.window_of`), and (B, S) numbers of all documents.

    `starts` (B, T) of the new tokens, `position` (B,) of the first, `carried` (B, C) numbers of the documents before;
    `frequencies` (E/2,) in float64, in which angles are computed: see `layers.rotation`.
    """
    bias, cos, sin = window
    n_carried, n_new, n_padded = form.n_carried, form.n_tokens, form.n_padded
    for lane in range(form.n_lanes):
        for s in range(n_carried):
            documents[lane, s] = carried[lane, s]
        document = carried[lane, n_carried - 1] if n_carried else 0
        for t in range(n_new):
            document += starts[lane, t]
            documents[lane, n_carried + t] = document
        for k in range(len(frequencies)):
            angle = position[lane] * frequencies[k]
            one, other, c, s = np.cos(angle), np.sin(angle), np.cos(frequencies[k]), np.sin(frequencies[k])
            for t in range(n_padded):
                cos[k, lane * n_padded + t], sin[k, lane * n_padded + t] = one, other
                one, other = one * c - other * s, other * c + one * s
    see(form, documents, bias)


@called
def see(form, documents, bias):  # type: ignore[no-untyped-def]
    """(B, S, P) what is added to scores: 0 for a key in the window and of the same document, -inf for others."""
    for lane in range(form.n_lanes):
        for s in range(form.n_carried + form.n_tokens):
            for t in range(form.n_tokens):
                back = form.n_carried + t - s
                seen = 0 <= back < form.context and documents[lane, s] == documents[lane, form.n_carried + t]
                bias[lane, s, t] = 0.0 if seen else -np.inf
            for t in range(form.n_tokens, form.n_padded):  # what fills up may see anything: nothing of it is looked at
                bias[lane, s, t] = 0.0
