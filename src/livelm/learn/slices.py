"""Cut what was graded into slices that can be read again, each with some tokens before it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from livelm.memory.reservoir import Reservoir, Slice
from livelm.types import Batch


class Recalled(NamedTuple):
    """Slices as a network reads them, from a fresh state: T = C + N - 1 inputs, of which the last N predict."""

    inputs: Int[Tensor, "B T"]
    starts: Bool[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each input."""
    wanted: Bool[Tensor, "B N"]
    """Which of the last N targets count."""


class _Lane:
    """What of one lane is not in a slice yet, and the tokens before it."""

    names = ("tokens", "places", "wanted", "n_bytes", "nats")

    def __init__(self, n_context: int, mark: int) -> None:
        self.tokens = np.full(n_context, mark, np.int64)
        self.places = np.zeros(n_context, np.int64)  # in their document; before the stream every token is a mark
        self.wanted = np.zeros(0, np.bool_)
        self.n_bytes = np.zeros(0, np.int64)
        self.nats = np.zeros(0, np.float64)

    def drop(self, n: int) -> None:
        for name in self.names:
            setattr(self, name, getattr(self, name)[n:])


class Slicer:
    """Cuts each lane into slices of N tokens, without gap or overlap, each with the C tokens before it.

    Where the roles of tokens depend on their place in the document (patches of bits, workers), reading begins at a
    place that is a multiple of `grain`, so that they keep their roles; up to `grain` - 1 tokens of context go for that.
    """

    def __init__(self, n_lanes: int, mark: int, n_context: int, n_tokens: int, grain: int) -> None:
        """C = `n_context`, at least `grain`; N = `n_tokens`."""
        self._mark, self._n_context, self._n_tokens, self._grain = mark, n_context, n_tokens, grain
        self._n_graded_bytes = 0
        self._lanes = [_Lane(n_context, mark) for _ in range(n_lanes)]

    def cut(self, batch: Batch, wanted: Bool[Tensor, "B T"], nats: Float[Tensor, "B T"]) -> Iterator[Slice]:
        """Take a batch; yield the slices that it completes and in which something is wanted.

        `wanted` says which tokens count, `nats` what they cost. Take every batch, so that contexts have no gaps.
        """
        self._n_graded_bytes += batch.n_graded_bytes
        columns = (batch.tokens, wanted, torch.where(wanted, batch.n_bytes, 0), nats)
        for lane, *rows in zip(self._lanes, *(column.numpy() for column in columns), batch.starts.numpy(), strict=True):
            self._append(lane, *rows)
            while len(lane.wanted) >= self._n_tokens:
                if lane.wanted[: self._n_tokens].any():
                    yield self._slice(lane)
                lane.drop(self._n_tokens)

    def state_dict(self) -> dict[str, Any]:
        """What waits in each lane."""
        lanes = [{name: torch.from_numpy(getattr(lane, name).copy()) for name in _Lane.names} for lane in self._lanes]
        return {"lanes": lanes, "n_graded_bytes": self._n_graded_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the number of lanes must be the same."""
        self.follow(state)
        for lane, saved in zip(self._lanes, state["lanes"], strict=True):
            for name in _Lane.names:
                setattr(lane, name, saved[name].numpy().copy())

    def follow(self, state: dict[str, Any]) -> None:
        """Another stream follows (`fork`) the one of which this is the state: only its bytes are counted on."""
        self._n_graded_bytes = state["n_graded_bytes"]

    def _append(self, lane: _Lane, tokens: Any, wanted: Any, n_bytes: Any, nats: Any, starts: Any) -> None:
        count = np.arange(1, len(tokens) + 1)
        begun = np.maximum.accumulate(np.where(starts, count, 0))  # 1 + the index of the start each token follows
        places = np.where(begun > 0, count - begun, lane.places[-1] + count)
        for name, new in zip(_Lane.names, (tokens, places, wanted, n_bytes, nats), strict=True):
            setattr(lane, name, np.concatenate([getattr(lane, name), new]))

    def _slice(self, lane: _Lane) -> Slice:
        n, whole = self._n_tokens, self._n_context + self._n_tokens
        begin = int(np.argmax(lane.places[: self._n_context] % self._grain == 0))
        tokens = lane.tokens[:whole].copy()
        tokens[:begin] = self._mark
        kept = lane.wanted[:n].copy()
        cost, n_bytes = float(lane.nats[:n][kept].sum()), int(lane.n_bytes[:n].sum())
        return Slice(tokens, kept, begin, n_bytes, self._n_graded_bytes, cost)


def recall(kept: Reservoir, rows: NDArray[np.int64], mark: int) -> Recalled:
    """These rows of a reservoir, as a network reads them."""
    tokens = torch.from_numpy(kept.column("tokens")[rows].astype(np.int64))
    begins = torch.from_numpy(kept.column("begin")[rows].astype(np.int64))
    inputs = tokens[:, :-1]
    starts = (inputs == mark) | (torch.arange(inputs.shape[1]) == begins[:, None])
    return Recalled(inputs, starts, tokens[:, 1:], torch.from_numpy(kept.column("wanted")[rows]))


def cost(model: Any, recalled: Recalled) -> Float[Tensor, " B"]:
    """Nats of the wanted tokens of each slice, read from a fresh state; with its graph, where the model is.

    `model`: `types.Model`.
    """
    device = next(model.parameters()).device
    inputs, starts, targets, wanted = (tensor.to(device) for tensor in recalled)
    nats, _ = model.nats(inputs, starts, targets, model.init_state(len(inputs)))
    return (nats[:, -wanted.shape[1] :] * wanted).sum(dim=1)


def take_over(kept: Reservoir, slicer: Slicer, state: dict[str, Any]) -> bool:
    """Go on with the slices of another run's `state`, if they have the form of `kept`; whether they do."""
    if not kept.fits(state["kept"]):
        return False
    kept.load_state_dict(state["kept"])
    slicer.follow(state["slicer"])
    return True
