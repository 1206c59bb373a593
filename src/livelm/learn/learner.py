"""Score a batch with the weights as they are, then (and only from that) learn: the heart of the honesty."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from livelm.config import LearnSettings
from livelm.errors import CheckpointError, ContractError
from livelm.learn.average import Average
from livelm.learn.guard import Guard
from livelm.learn.score_first import ScoreFirst
from livelm.learn.slices import Recalled, cost
from livelm.optim import set_rates
from livelm.optim.clip import clip
from livelm.types import Batch, Scored, State, Update


class Optimizer(Protocol):
    """What the learner needs of an optimizer; `torch.optim.Optimizer` has it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Change the parameters by their gradients."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        ...


class Learner(ScoreFirst):
    """A model, its optimizer, and the state each lane carries.

    `score` grades a batch and never changes a weight; `update` takes only what `score` made, each thing once, in
    order. One forward pass serves both: the graph that was graded is the graph that is differentiated.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rate_factor: Callable[[int], float],
        settings: LearnSettings,
        shape: tuple[int, int, int],
    ) -> None:
        """`rate_factor(n_updates)` scales every base rate; `shape` is (lanes, vocabulary size, mark)."""
        super().__init__()
        n_lanes, self._n_vocabulary, self._mark = shape
        self.model, self.optimizer = model, optimizer
        self._rate_factor, self.settings = rate_factor, settings
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = _device_of(model)
        self._guard = Guard(settings)
        self._average = self._begin_average()
        self.n_updates = 0
        self.rate_scale: Callable[[int], float] = lambda _: 1.0
        """Multiplies every rate too; growth sets it."""
        self.reset_lanes(n_lanes)

    @property
    def seal(self) -> object:
        """What marks the things that this learner graded."""
        return self._seal

    def rehearse(
        self, recalled: Recalled, weights: Float[Tensor, " B"], guard: Guard
    ) -> tuple[Float[Tensor, " B"], str | None]:
        """One more step, by slices of what was graded and learned before; lanes and grades are not touched.

        The loss is the weighted mean over slices of what their wanted tokens cost, for each token of a slice; rates are
        those of the last update. Returns the nats of the wanted tokens of each slice, and why the step was refused by
        `guard`, if it was. Raises ContractError for a frozen learner, and before what was scored last was learned.
        """
        if self.frozen or self._pending is not None:
            raise ContractError("a frozen learner, or one that has not learned yet what it scored, does not rehearse.")
        nats = cost(self.model, recalled)
        self.optimizer.zero_grad()
        loss = (nats * weights.to(nats)).mean() / recalled.wanted.shape[1]
        _, skipped = self._backward(loss, guard)
        if skipped is None:
            self._step()
        return nats.detach().cpu(), skipped

    def reset_lanes(self, n_lanes: int) -> None:
        """Begin every lane anew, as if nothing had been read; the weights stay."""
        self.lanes: State = self.model.init_state(n_lanes)  # type: ignore[operator]
        self._last = torch.full((n_lanes, 1), self._mark)
        self._last_starts = torch.ones((n_lanes, 1), dtype=torch.bool)

    def replace(self, model: nn.Module, optimizer: Optimizer, lanes: State) -> None:
        """Go on with another model that predicts the same, between an update and the next score."""
        self.model, self.optimizer, self.lanes = model, optimizer, lanes
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._average = self._begin_average()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later scores depend on, as a tree of tensors and plain values."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "guard": self._guard.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "lanes": dict(self.lanes),
            "last": self._last,
            "last_starts": self._last_starts,
            "n_updates": self.n_updates,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self._guard.load_state_dict(state["guard"])
        self._load_average(state)
        self.lanes = {name: tensor.to(self.device) for name, tensor in state["lanes"].items()}
        self._last, self._last_starts = state["last"], state["last_starts"]
        self.n_updates = state["n_updates"]
        torch.set_rng_state(state["random"])

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take only the weights. Raises CheckpointError naming missing and extra tensors, and those of another form."""
        own, given = self.model.state_dict(), state["model"]
        faults = [f"{name} is missing" for name in own.keys() - given.keys()]
        faults += [f"{name} is unknown" for name in given.keys() - own.keys()]
        faults += [
            f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
            for name in own.keys() & given.keys()
            if own[name].shape != given[name].shape
        ]
        faults += [
            f"{name} is {given[name].dtype}, not {own[name].dtype}"
            for name in own.keys() & given.keys()
            if own[name].dtype != given[name].dtype
        ]
        if faults:
            raise CheckpointError(f"the weights do not fit this model: {'; '.join(sorted(faults)[:8])}.")
        self.model.load_state_dict(given)

    def settle(self, state: dict[str, Any]) -> None:
        """For `eval` and `generate`: put the mean of the weights in place of the last ones, where `state` has one."""
        if self._load_average(state):
            self._average.put()  # type: ignore[union-attr]

    def _load_average(self, state: dict[str, Any]) -> bool:
        """Whether there is a mean to go on with: a run from before there was one begins it anew."""
        if self._average is None or state.get("average") is None:
            return False
        self._average.load_state_dict(state["average"])
        return True

    def _begin_average(self) -> Average | None:
        n_updates = self.settings.average_updates
        return Average(self.optimizer.param_groups, n_updates) if n_updates else None

    def _step(self) -> None:
        self.optimizer.step()
        if self._average is not None:
            self._average.take()

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        """One forward pass, whose graph is differentiated by `_learn`."""
        inputs, starts = self._inputs(batch)
        read = (tensor.to(self.device) for tensor in (inputs, starts, batch.tokens))
        nats, lanes = self.model.nats(*read, self.lanes)  # type: ignore[operator]
        graded = nats.detach().cpu().numpy().astype(np.float64)  # for so few numbers torch takes five times as long
        total = float(graded.sum())
        if not math.isfinite(total):
            # a broken prediction is graded as no prediction (uniform), and its state must not reach the next batch
            graded = np.where(np.isfinite(graded), graded, math.log(self._n_vocabulary))
            lanes = self.model.init_state(len(batch.tokens))  # type: ignore[operator]
        self._move(lanes, batch)
        loss = mean_of(nats, batch)
        if batch.n_graded < batch.tokens.numel() or not math.isfinite(total):  # the usual case needs no masks
            graded = graded * batch.graded.numpy()
            total = float(graded.sum())
        return Scored(seal=self._seal, batch=batch, nats=torch.from_numpy(graded), sum_nats=total, loss=loss)

    def _learn(self, scored: Scored) -> Update:
        """One step by the gradient of the loss, or none where the guard refuses it."""
        rate = self._set_rates()
        norm, skipped = 0.0, None
        if scored.n_tokens and scored.loss is not None:
            self.optimizer.zero_grad()
            norm, skipped = self._backward(scored.loss)
            if skipped is None:
                self._step()
        self.n_updates += 1
        return Update(scored.batch.index, norm, rate, skipped)

    def _refuse(self, scored: Scored, reason: str) -> Update:
        rate = self._set_rates()
        self.n_updates += 1  # as for every update that is skipped
        return Update(scored.batch.index, math.nan, rate, reason)

    def _set_rates(self) -> float:
        """Rates of the next update; the one of the first parameter group."""
        return set_rates(self.optimizer, self._rate_factor(self.n_updates) * self.rate_scale(self.n_updates))

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T) what the model reads to predict the batch, and its starts. Raises ContractError for a wrong batch."""
        check_batch(batch, len(self._last), self._n_vocabulary)
        inputs = np.concatenate([self._last.numpy(), batch.tokens.numpy()[:, :-1]], axis=1)
        starts = np.concatenate([self._last_starts.numpy(), batch.starts.numpy()[:, :-1]], axis=1)
        return torch.from_numpy(inputs), torch.from_numpy(starts)

    def _move(self, lanes: State, batch: Batch) -> None:
        """Carry on what the next batch begins with."""
        self.lanes, self._last, self._last_starts = lanes, batch.tokens[:, -1:], batch.starts[:, -1:]

    def _backward(self, loss: Tensor, guard: Guard | None = None) -> tuple[float, str | None]:
        """Gradients, clipped; their norm, and why `guard` (by default the one of updates) refuses them, if it does."""
        if not math.isfinite(float(loss.detach())):
            return math.nan, "the loss is not finite"
        if not loss.requires_grad:  # nothing that learns had a part in it: workers' state, and no worker was there
            return 0.0, None
        loss.backward()
        norm = clip(self._parameters, self.settings.clip)
        return norm, (guard or self._guard).judge(norm)


def check_batch(batch: Batch, n_lanes: int, n_vocabulary: int) -> None:
    """Raise ContractError for ids outside the vocabulary, or another number of lanes."""
    there, n_tokens = batch.tokens.shape
    if there != n_lanes:
        raise ContractError(f"batch {batch.index} has {there} lanes, the learner {n_lanes}.")
    tokens = batch.tokens.numpy()
    low, high = (int(tokens.min()), int(tokens.max())) if n_tokens else (0, -1)
    if n_tokens == 0 or high >= n_vocabulary or low < 0:
        raise ContractError(
            f"batch {batch.index} has {n_tokens} tokens per lane, with ids from {low} to {high}; "
            f"the vocabulary ends at {n_vocabulary - 1}."
        )


def mean_of(nats: Tensor, batch: Batch) -> Tensor:
    """The mean over graded tokens, with its graph."""
    if batch.n_graded == batch.tokens.numel():
        return nats.mean()
    return (nats * batch.graded.to(nats)).sum() / max(batch.n_graded, 1)


def _device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; a model without any computes on the CPU."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
