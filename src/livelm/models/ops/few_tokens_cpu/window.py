"""Which position may see which, and by how far each is turned: once for all blocks."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from livelm.compiled import compiled
from livelm.models.ops.vectors import LANES
from livelm.types import State

Window = tuple[Float[np.ndarray, "B S P"], Float[np.ndarray, "K M"], Float[np.ndarray, "K M"]]
"""What is added to scores [key, query], cosines and sines; see `parts` for P and M."""


def window(
    starts: Bool[Tensor, "B T"], state: State, context: int, frequencies: Float[Tensor, " K"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, State]:
    """What `transformer.window` computes, in the layout of this package: `Window`, and the next batch's state."""
    n_lanes, n_new = starts.shape
    n_keys, n_padded = state["documents"].shape[1] + n_new, padded(n_new)
    bias = np.empty((n_lanes, n_keys, n_padded), np.float32)
    cos, sin = (np.empty((len(frequencies), n_lanes * n_padded), np.float32) for _ in range(2))
    documents = torch.empty(n_lanes, n_keys, dtype=torch.int64)
    told = starts.numpy(), state["position"].numpy(), state["documents"].numpy(), frequencies.numpy()
    _fill(*told, context, bias, cos, sin, documents.numpy())
    after: State = {"position": state["position"] + n_new, "documents": documents[:, -context:].contiguous()}
    return bias, cos, sin, after


def padded(n_tokens: int) -> int:
    """Columns for so many tokens: whole vectors."""
    return -(-n_tokens // LANES) * LANES


@compiled
def _fill(starts, position, carried, frequencies, context, bias, cos, sin, documents):  # type: ignore[no-untyped-def]
    n_lanes, n_new = starts.shape
    n_carried, n_padded = carried.shape[1], bias.shape[2]
    for lane in range(n_lanes):
        for s in range(n_carried):
            documents[lane, s] = carried[lane, s]
        document = carried[lane, n_carried - 1] if n_carried else 0
        for t in range(n_new):
            document += starts[lane, t]
            documents[lane, n_carried + t] = document
        for s in range(n_carried + n_new):
            for t in range(n_new):
                back = n_carried + t - s
                seen = 0 <= back < context and documents[lane, s] == documents[lane, n_carried + t]
                bias[lane, s, t] = 0.0 if seen else -np.inf
            for t in range(n_new, n_padded):  # what fills up may see anything: nothing of it is looked at
                bias[lane, s, t] = 0.0
        for k in range(len(frequencies)):  # of float64: see `layers.rotation`
            angle = position[lane] * frequencies[k]
            one, other, c, s = np.cos(angle), np.sin(angle), np.cos(frequencies[k]), np.sin(frequencies[k])
            for t in range(n_padded):
                cos[k, lane * n_padded + t], sin[k, lane * n_padded + t] = one, other
                one, other = one * c - other * s, other * c + one * s
