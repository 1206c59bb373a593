"""One block at a time, for a model that does something else between its blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from livelm.compiled import allocating
from livelm.models.ops.few_tokens_cpu.backward import block_backward
from livelm.models.ops.few_tokens_cpu.forward import block_forward
from livelm.models.ops.few_tokens_cpu.parts import Form, from_columns, to_columns
from livelm.models.ops.few_tokens_cpu.places import (
    buffer_size,
    kept_of,
    kept_size,
    keys_and_values,
    weights_of,
    window_of,
)
from livelm.models.ops.few_tokens_cpu.window import look_around
from livelm.models.ops.plans import addresses


class Window(NamedTuple):
    """What all blocks of a pass have in common."""

    form: Form
    shown: np.ndarray
    """A buffer, see `places`, whose window is filled."""


def window(
    form: Form,
    starts: Bool[Tensor, "B T"],
    position: Int[Tensor, " B"],
    documents: Int[Tensor, "B C"],
    frequencies: np.ndarray,
) -> Window:
    """Which position may see which, and by how far each is turned; the form is that of a model of one layer."""
    everything = np.empty((form.n_lanes, form.n_carried + form.n_tokens), np.int64)
    shown = np.empty(buffer_size(form), np.float32)
    _look(form, starts.numpy(), position.numpy(), documents.numpy(), frequencies, everything, shown)
    return Window(form, shown)


def block(
    at: Window,
    x: Float[Tensor, "B T D"],
    keys: Float[Tensor, "B C G E"],
    values: Float[Tensor, "B C G E"],
    weights: Sequence[Tensor | None],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S G E"], Float[Tensor, "B S G E"]]:
    """What `block_forward` adds to the stream, added, and all keys and values.

    `weights`: gain and bias of a norm, projection, output map; gain and bias, map and bias, map and bias. What has no
    bias has None there; keys and values are contiguous.
    """
    return _Block.apply(at, keys, values, x, *weights)  # type: ignore[return-value]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Window, keys: Tensor, values: Tensor, x: Tensor, *weights: Tensor | None) -> Any:
        form = at.form
        size = form.n_lanes, form.n_carried + form.n_tokens, form.n_kv_heads, form.d_head
        x, y, new = x.contiguous(), torch.empty(x.shape), [torch.empty(size), torch.empty(size)]
        places = addresses(list(weights)), addresses([keys, values]), addresses(new)
        buffer = np.empty(kept_size.py_func(form), np.float32)
        _forward(form, x.detach().numpy(), places, at.shown, buffer, y.numpy())
        ctx.known = at, places, buffer
        ctx.save_for_backward(*weights, *new)  # those change in nobody's hands
        ctx.mark_non_differentiable(*new)
        return y, *new

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        at, (weights_at, _, all_at), buffer = ctx.known
        weights = ctx.saved_tensors[:-2]
        gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        dx = torch.empty(given[0].shape)
        places = weights_at, addresses(gradients), all_at
        _backward(at.form, given[0].contiguous().numpy(), places, at.shown, buffer, dx.numpy())
        return None, None, None, dx, *gradients


@allocating
def _look(form, starts, position, carried, frequencies, documents, shown):  # type: ignore[no-untyped-def]
    look_around(form, window_of(form, shown), starts, position, carried, frequencies, documents)


@allocating
def _forward(form, x, places, shown, buffer, y):  # type: ignore[no-untyped-def]
    weights_at, past_at, all_at = places
    stream = np.empty((form.d_model, form.n_lanes * form.n_padded), np.float32)
    to_columns(form, x, stream)
    past = keys_and_values(form, past_at, 0, form.n_carried)
    keys, values = keys_and_values(form, all_at, 0, form.n_carried + form.n_tokens)
    weights, window = weights_of(form, weights_at, 0), window_of(form, shown)
    block_forward(form, stream, past, window, weights, keys, values, kept_of(form, buffer, 0))
    from_columns(form, stream, y)


@allocating
def _backward(form, dy, places, shown, buffer, dx):  # type: ignore[no-untyped-def]
    weights_at, gradients_at, all_at = places
    g = np.empty((form.d_model, form.n_lanes * form.n_padded), np.float32)
    to_columns(form, dy, g)
    everything = keys_and_values(form, all_at, 0, form.n_carried + form.n_tokens)
    weights, gradients = weights_of(form, weights_at, 0), weights_of(form, gradients_at, 0)
    block_backward(form, g, everything, window_of(form, shown), weights, kept_of(form, buffer, 0), gradients)
    from_columns(form, g, dx)
