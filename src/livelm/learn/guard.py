"""Refuse updates that would ruin the weights: gradients that are not finite, or far larger than usual."""

import math
from typing import Any

from livelm.config import LearnSettings

WARM_UP = 50
"""Updates during which only non-finite gradients are refused: at first there is no "usual"."""
MEMORY = 0.98
"""Decay per update of the running logarithmic mean of the gradient's norm."""


class Guard:
    """Knows the usual length of the gradient and judges each new one by it.

    The usual length is the geometric mean with exponential decay. A refused length enters it capped at the limit,
    so that a stream which has really changed is refused for some updates and then learned from.
    """

    def __init__(self, settings: LearnSettings) -> None:
        self._explosion = settings.explosion
        self._n_seen = 0
        self._log_norm = 0.0

    def judge(self, norm: float) -> str | None:
        """Why an update with this gradient norm must be skipped; None to take it."""
        if not math.isfinite(norm):
            return "the gradient is not finite"
        usual = math.exp(self._log_norm)
        limit = usual * self._explosion
        exploded = self._n_seen >= WARM_UP and norm > limit
        self._absorb(min(norm, limit) if exploded else norm)
        return f"the gradient is {norm / usual:.0f} times its usual length {usual:.3g}" if exploded else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"n_seen": self._n_seen, "log_norm": self._log_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._n_seen, self._log_norm = state["n_seen"], state["log_norm"]

    def _absorb(self, norm: float) -> None:
        log_norm = math.log(max(norm, 1e-30))
        keep = min(MEMORY, self._n_seen / (self._n_seen + 1))  # an exact mean while few were seen
        self._log_norm = keep * self._log_norm + (1 - keep) * log_norm
        self._n_seen += 1
