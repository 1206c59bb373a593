"""Captured updates of a network that a count memory stands beside, or is mixed with.

A network learns by what it costs alone, so all of its update can be captured; the counts stay on the host, where the
mixture is graded from what the device tells: the probabilities of all symbols, some 50 KB.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from livelm.learn.captured import CapturedLearner
from livelm.learn.learner import Learner
from livelm.learn.mixed import BesideLearner, MixedBitLearner, MixedLearner, told
from livelm.types import Batch, Scored, State


class CapturedMixedLearner(MixedLearner, CapturedLearner):
    """A `MixedLearner` whose network is captured. Arguments: the memory, then those of `CapturedLearner`."""

    def told_shape(self, batch: Batch) -> tuple[int, ...]:
        """(B, T, V)."""
        return (*batch.tokens.shape, self._n_vocabulary)

    def tell(self, inputs: Tensor, starts: Tensor, targets: Tensor, lanes: State) -> tuple[Tensor, Tensor, State]:
        """Nats to learn from, log probabilities of all symbols, and the state after the batch."""
        return told(self.model, inputs, starts, targets, lanes)

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        self._says_by = None
        scored = super()._grade(batch, learns)
        self._used = None if self._says_by is None else (self._says_by, scored)
        return scored

    def _say(self, batch: Batch, learns: bool) -> tuple[NDArray[np.float32], Tensor | None]:
        captured: Any = self._replayed(batch, learns)
        if captured is None:
            return super()._say(batch, learns)
        self._says_by = captured
        says = captured.told()
        if not np.isfinite(np.take_along_axis(says, batch.tokens.numpy()[..., None], -1).sum()):
            self._broken(captured, batch)
        return says, None


class CapturedMixedBitLearner(MixedBitLearner, CapturedMixedLearner):
    """The same over bits. Arguments: the tokenizer first."""


class CapturedBesideLearner(BesideLearner, CapturedLearner):
    """A captured network over tokens that are not bytes, and the memory beside it. Arguments: tokenizer, memory, ..."""


CAPTURED: dict[type[Learner], type[CapturedLearner]] = {
    Learner: CapturedLearner,
    MixedLearner: CapturedMixedLearner,
    MixedBitLearner: CapturedMixedBitLearner,
    BesideLearner: CapturedBesideLearner,
}
"""What does the same with captured updates; the tokens of a whole update come before the model in its arguments."""
