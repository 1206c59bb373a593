"""What forward and backward of a block share: how tokens lie, norms, rotary positions.

Inside, a row is a channel and a column a token: (D, M) for M = B P tokens, where each lane's T are filled up with zeros
to P, a multiple of the vectors' length. So what happens to each token alone happens to a vector of them at once.
"""

from typing import NamedTuple

import numpy as np

from livelm.compiled import added, called
from livelm.models.ops.turning import turned


class Form(NamedTuple):
    """Sizes and options of the blocks, and of what goes through them."""

    n_lanes: int
    n_tokens: int
    n_padded: int
    """Columns of a lane: `n_tokens`, filled up."""
    n_carried: int
    """Keys that were there before."""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    hidden: int
    context: int
    centred: bool
    """LayerNorm (with a bias), not RMSNorm."""
    norm_eps: float
    qk_norm: bool
    squared: bool
    """relu2, not relu."""


KEY_EPS = 1e-6
"""Of the root mean square of queries and keys, as in `layers.rms_norm`."""


@called
def to_columns(form, x, columns):  # type: ignore[no-untyped-def]
    """(B, T, D) to (D, M)."""
    for lane in range(form.n_lanes):
        start = lane * form.n_padded
        for d in range(form.d_model):
            for t in range(form.n_tokens):
                columns[d, start + t] = x[lane, t, d]
            for t in range(form.n_tokens, form.n_padded):
                columns[d, start + t] = 0.0


@called
def from_columns(form, columns, x):  # type: ignore[no-untyped-def]
    """(D, M) to (B, T, D)."""
    for lane in range(form.n_lanes):
        start = lane * form.n_padded
        turned(columns[:, start : start + form.n_tokens], x[lane])


@called
def norm(form, x, normed, scale):  # type: ignore[no-untyped-def]
    """(D, M) `normed`: x less its mean if `centred`, by (M,) `scale`, over its deviation or root mean square."""
    n_rows, n_columns = x.shape
    mean = np.float32(1 / n_rows)
    for m in range(n_columns):
        scale[m] = 0.0
    if form.centred:
        for row in range(n_rows):
            for m in range(n_columns):
                scale[m] += x[row, m]
        for m in range(n_columns):
            scale[m] *= mean
        for row in range(n_rows):
            for m in range(n_columns):
                normed[row, m] = x[row, m] - scale[m]
        for m in range(n_columns):
            scale[m] = 0.0
    else:
        for row in range(n_rows):
            for m in range(n_columns):
                normed[row, m] = x[row, m]
    for row in range(n_rows):
        for m in range(n_columns):
            scale[m] += normed[row, m] * normed[row, m]
    eps = np.float32(form.norm_eps)
    for m in range(n_columns):
        scale[m] = np.float32(1.0) / np.sqrt(scale[m] * mean + eps)
    for row in range(n_rows):
        for m in range(n_columns):
            normed[row, m] *= scale[m]


@called
def gained(form, normed, gain, bias, out):  # type: ignore[no-untyped-def]
    """(D, M) what a norm with gain (and bias) makes of `normed`."""
    n_rows, n_columns = normed.shape
    for row in range(n_rows):
        more = bias[row] if form.centred else np.float32(0.0)
        for m in range(n_columns):
            out[row, m] = normed[row, m] * gain[row] + more


@added
def norm_back(form, g, normed, scale, gain, d_gain, d_bias, x, spare):  # type: ignore[no-untyped-def]
    """Add to (D, M) x what a norm sends back for the gradient g of its output, which is written over.

    With n = normed and h = g gain: (h - mean(h) - n mean(h n)) scale, where only a centred norm has mean(h).
    (2, M) `spare` is memory.
    """
    n_rows, n_columns = g.shape
    mean = np.float32(1 / n_rows)
    along, whole = spare[0], spare[1]
    along[:] = 0
    whole[:] = 0
    for row in range(n_rows):
        sums, total = np.float32(0.0), np.float32(0.0)
        for m in range(n_columns):
            sums += g[row, m] * normed[row, m]
            total += g[row, m]
        d_gain[row] = sums
        if form.centred:
            d_bias[row] = total
        for m in range(n_columns):
            g[row, m] *= gain[row]
            along[m] += g[row, m] * normed[row, m]
            whole[m] += g[row, m]
    for m in range(n_columns):
        along[m] *= mean
        whole[m] *= mean if form.centred else np.float32(0.0)
    for row in range(n_rows):
        for m in range(n_columns):
            x[row, m] += (g[row, m] - whole[m] - normed[row, m] * along[m]) * scale[m]


@called
def turn(form, head, cos, sin, size, scale):  # type: ignore[no-untyped-def]
    """Divide (K, M) channels of a head by their root mean square if `qk_norm`, turn them, and make them `size` long.

    `scale` (M,) takes what they were divided by, inverted.
    """
    n_rows, n_columns = head.shape
    half, mean = n_rows // 2, np.float32(1 / n_rows)
    for m in range(n_columns):
        scale[m] = 0.0 if form.qk_norm else 1.0
    if form.qk_norm:
        for row in range(n_rows):
            for m in range(n_columns):
                scale[m] += head[row, m] * head[row, m]
        for m in range(n_columns):
            scale[m] = np.float32(1.0) / np.sqrt(scale[m] * mean + np.float32(KEY_EPS))
    for row in range(half):
        for m in range(n_columns):
            by = scale[m] * size
            one, other = head[row, m] * by, head[row + half, m] * by
            head[row, m] = one * cos[row, m] - other * sin[row, m]
            head[row + half, m] = other * cos[row, m] + one * sin[row, m]


@called
def turn_back(form, g, head, cos, sin, size, scale, along):  # type: ignore[no-untyped-def]
    """What `turn` sends back for the gradient (K, M) g of what it made, `head`; in place.

    Lengths do not change by turning, so what leads along the length is found before turning back.
    (M,) `along` is memory.
    """
    n_rows, n_columns = g.shape
    half, mean = n_rows // 2, np.float32(1 / n_rows)
    if form.qk_norm:
        along[:] = 0
        for row in range(n_rows):
            for m in range(n_columns):
                along[m] += g[row, m] * head[row, m]
        for m in range(n_columns):
            along[m] *= mean / (size * size)
        for row in range(n_rows):
            for m in range(n_columns):
                g[row, m] -= head[row, m] * along[m]
    for row in range(half):
        for m in range(n_columns):
            by = scale[m] * size
            one, other = g[row, m] * by, g[row + half, m] * by
            g[row, m] = one * cos[row, m] + other * sin[row, m]
            g[row + half, m] = other * cos[row, m] - one * sin[row, m]
