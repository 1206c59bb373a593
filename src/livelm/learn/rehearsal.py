"""Rehearsal: between updates by what is new, some by slices of what was learned before.

What is rehearsed was graded and learned once already, so nothing here is graded: the journal's numbers stay first
scores. Only the network rehearses; counts do not forget.
"""

from typing import Any

import numpy as np
import torch

from livelm.config import RehearsalSettings
from livelm.errors import ContractError
from livelm.learn.guard import Guard
from livelm.learn.learner import Learner
from livelm.learn.slices import Slicer, recall, take_over
from livelm.memory.drawing import chances, draw, importance
from livelm.memory.reservoir import Reservoir
from livelm.types import LN_2, Grained, Record, Scored, Update


class Rehearsal:
    """Keeps slices of the stream under a byte budget, and lets a learner learn from them again."""

    def __init__(self, settings: RehearsalSettings, learner: Learner, shape: tuple[int, int, int], seed: int) -> None:
        """`shape` is (lanes, vocabulary size, mark). Raises ConfigError where the budget holds no slice."""
        n_lanes, n_vocabulary, self._mark = shape
        self._settings, self._learner = settings, learner
        # patches and workers need whole ones of theirs before the first token that is learned
        grain = learner.model.grain if isinstance(learner.model, Grained) else 1
        self._n_context = max(settings.context_tokens, grain)
        self._slicer = Slicer(n_lanes, self._mark, self._n_context, settings.slice_tokens, grain)
        self.kept = Reservoir(settings.buffer_bytes, self._n_context, settings.slice_tokens, n_vocabulary)
        self._guard = Guard(learner.settings)  # a slice's gradient has another usual length than a batch's
        self._generator = np.random.default_rng([seed, 1])
        self._due = 0.0

    def take(self, scored: Scored, update: Update) -> Record | None:
        """After the update by `scored`: keep what was learned, rehearse as much as is due, and say so.

        What was not learned (refused, skipped) is not kept, and nothing is rehearsed after it. Raises ContractError for
        what this learner did not score, or did not learn from yet.
        """
        if scored.seal is not self._learner.seal or not scored.spent or update.index != scored.batch.index:
            raise ContractError(f"batch {scored.batch.index} was not learned by this learner, so it is not rehearsed.")
        learned = scored.batch.graded if update.skipped is None else torch.zeros_like(scored.batch.graded)
        for piece in self._slicer.cut(scored.batch, learned, scored.nats):
            self.kept.offer(piece, self._generator)
        if update.skipped is not None:
            return None
        self._due += self._settings.share / (1.0 - self._settings.share)
        n_updates = int(self._due)
        self._due -= n_updates
        if not n_updates or not self.kept.n_held:  # what was due before there was anything is not made up for
            return None
        done = [self._rehearse() for _ in range(n_updates)]
        return {
            "kind": "rehearsed",
            "batch": scored.batch.index,
            "n_updates": n_updates,
            "n_skipped": sum(skipped is not None for *_, skipped in done),
            "n_bytes": sum(n_bytes for n_bytes, *_ in done),
            "bits": float(sum(bits for _, bits, _ in done)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rehearsals depend on."""
        return {
            "kept": self.kept.state_dict(),
            "slicer": self._slicer.state_dict(),
            "guard": self._guard.state_dict(),
            "random": self._generator.bit_generator.state,
            "due": self._due,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.kept.load_state_dict(state["kept"])
        self._slicer.load_state_dict(state["slicer"])
        self._guard.load_state_dict(state["guard"])
        self._generator.bit_generator.state = state["random"]
        self._due = state["due"]

    def inherit(self, state: dict[str, Any]) -> bool:
        """Take only the slices (`fork`), if they have the form that these settings give them; whether they do."""
        return take_over(self.kept, self._slicer, state)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(B,) rows of the slices that are rehearsed next, and their weights in the loss."""
        s, n = self._settings, self.kept.n_held
        uniform = s.uniform_share if s.how == "surprise" else 1.0
        chance = chances(self.kept.column("surprise"), s.alpha, uniform)
        rows = draw(chance, s.slices, self._generator)
        return rows, importance(chance[rows], n, s.beta)

    def _rehearse(self) -> tuple[int, float, str | None]:
        """One update: (bytes, bits, why it was skipped)."""
        rows, weights = self.draw()
        recalled = recall(self.kept, rows, self._mark)
        nats, skipped = self._learner.rehearse(recalled, torch.from_numpy(weights), self._guard)
        costs = nats.double().numpy()
        self.kept.refresh(rows, costs / recalled.wanted.sum(dim=1).numpy())
        heard = np.isfinite(costs)
        return int(self.kept.column("n_bytes")[rows][heard].sum()), float(costs[heard].sum()) / LN_2, skipped
