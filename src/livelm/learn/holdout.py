"""Hold stretches of the stream out of learning, and keep some of them, to see later what was forgotten.

A stream is read once, so nothing can be set aside beforehand. A stretch that is held out is graded like any other and
then refused: it teaches neither network nor counts, but what was learned around it fits it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from livelm.config import HoldoutSettings
from livelm.learn.learner import Learner
from livelm.learn.slices import Slicer, cost, recall, take_over
from livelm.memory.reservoir import Reservoir
from livelm.types import LN_2, Grained, Record, Scored

REASON = "held out"
AT_ONCE = 32
"""Slices graded in one pass."""


class Holdout:
    """Decides, by its own random numbers, which stretches are held out, and keeps a uniform sample of them.

    Each kept slice is graded twice in the very same way, by the network alone from a fresh state and a short context:
    when it has just been read (`first`, in nats per token), and whenever `grade_again` is asked. The difference is
    what learning did to it in between.
    """

    def __init__(self, settings: HoldoutSettings, learner: Learner, shape: tuple[int, int, int], seed: int) -> None:
        """`shape` is (lanes, vocabulary size, mark). Raises ConfigError where the budget holds no slice."""
        n_lanes, n_vocabulary, self._mark = shape
        self._settings, self._learner = settings, learner
        grain = learner.model.grain if isinstance(learner.model, Grained) else 1
        n_context = max(settings.context_tokens, grain)
        self._slicer = Slicer(n_lanes, self._mark, n_context, settings.slice_tokens, grain)
        self.kept = Reservoir(settings.buffer_bytes, n_context, settings.slice_tokens, n_vocabulary)
        self._generator = np.random.default_rng([seed, 2])
        self._n_left, self._held = 0, False
        self._decide()

    @property
    def refusal(self) -> str | None:
        """Why the next batch is not to be learned; None to learn it."""
        return REASON if self._held else None

    def take(self, scored: Scored) -> Iterator[Record]:
        """After a batch was learned or refused: keep what was held out of it, grade that afresh, decide on the next."""
        graded = scored.batch.graded
        for piece in self._slicer.cut(scored.batch, graded & self._held, scored.nats):
            row = self.kept.offer(piece, self._generator)
            if row is not None:
                rows = np.array([row])
                nats = self._cost(rows)
                self.kept.column("first")[rows] = nats / np.count_nonzero(piece.wanted)
                yield {
                    "kind": "held_out",
                    "batch": scored.batch.index,
                    "n_bytes": piece.n_bytes,
                    "bits": float(nats[0]) / LN_2 if np.isfinite(nats[0]) else None,
                }
        self._decide()

    def grade_again(self) -> dict[str, np.ndarray]:
        """(n,) each, in the order of the stream: `at` (graded bytes), `n_bytes`, `first_bits` and `now_bits`."""
        rows = np.argsort(self.kept.column("at"), kind="stable")
        n_tokens = self.kept.column("wanted").sum(axis=1)[rows]
        parts = [self._cost(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
        return {
            "at": self.kept.column("at")[rows],
            "n_bytes": self.kept.column("n_bytes")[rows].astype(np.int64),
            "first_bits": self.kept.column("first")[rows] * n_tokens / LN_2,
            "now_bits": (np.concatenate(parts) if parts else np.zeros(0)) / LN_2,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions and grades depend on."""
        return {
            "kept": self.kept.state_dict(),
            "slicer": self._slicer.state_dict(),
            "random": self._generator.bit_generator.state,
            "n_left": self._n_left,
            "held": self._held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.kept.load_state_dict(state["kept"])
        self._slicer.load_state_dict(state["slicer"])
        self._generator.bit_generator.state = state["random"]
        self._n_left, self._held = state["n_left"], state["held"]

    def inherit(self, state: dict[str, Any]) -> bool:
        """Take only the slices (`fork`), if they have the form that these settings give them; whether they do."""
        return take_over(self.kept, self._slicer, state)

    def _decide(self) -> None:
        if not self._n_left:
            self._n_left = self._settings.stretch_updates
            self._held = bool(self._generator.random() < self._settings.share)
        self._n_left -= 1

    def _cost(self, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return cost(self._learner.model, recall(self.kept, rows, self._mark)).cpu().double().numpy()
