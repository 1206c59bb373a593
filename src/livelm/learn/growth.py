"""Grow the model in the middle of a stream, when what it reads has stopped getting cheaper."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from livelm.config import GrowSettings
from livelm.errors import ConfigError
from livelm.learn.learner import Learner, Optimizer
from livelm.types import Growing, Record, Scored

POWERS = {"exp_avg": 1, "momentum": 1, "exp_avg_sq": 2, "sum": 2}
"""What optimizers remember that has the shape of a parameter: as which power of a gradient it scales."""


class Plateau:
    """Whether bits per byte have stopped falling: whole windows of graded bytes against the best one before."""

    def __init__(self, settings: GrowSettings) -> None:
        self._settings = settings
        self.begin()

    def begin(self) -> None:
        """Forget everything: what follows is another model."""
        self._bits, self._n_bytes, self._best = 0.0, 0, None

    def take(self, bits: float, n_bytes: int) -> bool:
        """Add what a batch cost; true when it ends a window that is not better by `gain` than the best before it."""
        self._bits, self._n_bytes = self._bits + bits, self._n_bytes + n_bytes
        if self._n_bytes < self._settings.window_bytes:
            return False
        mean, best = self._bits / self._n_bytes, self._best
        self._bits, self._n_bytes = 0.0, 0
        self._best = mean if best is None else min(best, mean)
        return best is not None and best - mean < self._settings.gain

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"bits": self._bits, "n_bytes": self._n_bytes, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._bits, self._n_bytes, self._best = state["bits"], state["n_bytes"], state["best"]


class Growth:
    """Watches what a learner scores, and replaces its model by a larger one that predicts the same."""

    def __init__(
        self, settings: GrowSettings, learner: Learner, make_optimizer: Callable[[dict[str, Any]], Optimizer]
    ) -> None:
        """Raises ConfigError when growth is wanted of an architecture that cannot grow."""
        if settings.steps and not isinstance(learner.model, Growing):
            raise ConfigError(
                f"grow.steps is {list(settings.steps)}, but {type(learner.model).__name__} cannot grow without "
                "forgetting. Take model.name=bit, or leave grow.steps empty."
            )
        self._settings, self._learner, self._make_optimizer = settings, learner, make_optimizer
        self._plateau = Plateau(settings)
        self._grown_at: list[int] = []
        learner.rate_scale = self.rate_scale

    def take(self, scored: Scored) -> Record | None:
        """After the update that learned from `scored`: grow if it is time, and say so.

        Where a memory is mixed in, what counts is what the network would have cost alone.
        """
        if len(self._grown_at) >= len(self._settings.steps):
            return None
        if not self._plateau.take(scored.alone.get("network_bits", scored.bits), scored.n_bytes):
            return None
        what = self._settings.steps[len(self._grown_at)]
        self._grow(what)
        self._grown_at.append(self._learner.n_updates)
        self._plateau.begin()
        model: Any = self._learner.model
        return {
            "kind": "grown",
            "batch": scored.batch.index,
            "what": what,
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "flops_per_token": model.flops_per_token(),
            "context_reach": model.context_reach,
        }

    def rate_scale(self, n_updates: int) -> float:
        """The factor of every rate after so many updates: smaller by `rate_factor` after each growth, and warm-up."""
        if not self._grown_at:
            return 1.0
        s = self._settings
        rising = min(1.0, (n_updates - self._grown_at[-1] + 1) / s.warmup) if s.warmup else 1.0
        return s.rate_factor ** len(self._grown_at) * rising

    def state_dict(self) -> dict[str, Any]:
        """What was grown, and how near the next growth is."""
        return {"grown_at": list(self._grown_at), "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the learner's model the shape it had; its weights are to be loaded afterwards."""
        for what in self._settings.steps[: len(state["grown_at"])]:
            self._grow(what)
        self._grown_at = list(state["grown_at"])
        self._plateau.load_state_dict(state["plateau"])

    def begin_stream(self) -> None:
        """Another stream follows (`fork`): its costs are not compared with those of the one before.

        Where the learner counts its updates anew, what was grown was grown before the first of them.
        """
        self._plateau.begin()
        self._grown_at = [min(n_updates, self._learner.n_updates) for n_updates in self._grown_at]

    def _grow(self, what: str) -> None:
        learner = self._learner
        model: Any = learner.model
        larger = model.enlarged(what)
        optimizer = self._make_optimizer(larger.model.parameter_kinds())
        _carry_over(learner.optimizer, model, optimizer, larger)
        learner.replace(larger.model, optimizer, larger.carry_state(learner.lanes))


def _carry_over(old: Any, old_model: Any, new: Any, larger: Any) -> None:
    """Give the new optimizer what the old one remembers, in the new shapes; new parameters begin without a past."""
    before, names = dict(old_model.named_parameters()), {p: n for n, p in larger.model.named_parameters()}
    for old_part, new_part in zip(old.parts, new.parts, strict=True):
        for parameter in (p for group in new_part.param_groups for p in group["params"]):
            name = names[parameter]
            held = old_part.state.get(before.get(name), {})
            carried = {key: _carried(name, key, value, larger) for key, value in held.items()}
            if carried:
                new_part.state[parameter] = carried


def _carried(name: str, key: str, value: Any, larger: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:  # a count of steps
        return value.clone() if isinstance(value, Tensor) else value
    with torch.no_grad():
        return larger.carry(name, value, POWERS[key])
