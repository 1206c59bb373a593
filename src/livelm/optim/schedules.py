"""How the learning rate goes: a factor of (updates so far, fraction of the budget spent)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from livelm.config import Settings


class Constant(Settings):
    """Rises linearly over the warm-up, then stays: right for a stream without an end."""

    needs_budget: ClassVar[bool] = False
    warmup: Annotated[int, Field(ge=0)] = 100
    """Updates until the full rate is reached."""

    def factor(self, n_updates: int, elapsed: float) -> float:
        """The factor of the next update. `elapsed` is 0 .. 1, or 0 for a run without a budget; unused here."""
        return min(1.0, (n_updates + 1) / self.warmup) if self.warmup else 1.0


class InverseSqrt(Settings):
    """Rises over the warm-up, stays for `hold` updates, then falls with one over the square root of updates."""

    needs_budget: ClassVar[bool] = False
    warmup: Annotated[int, Field(ge=0)] = 100
    hold: Annotated[int, Field(ge=1)] = 1000
    """The update from which the rate falls."""

    def factor(self, n_updates: int, elapsed: float) -> float:
        """The factor of the next update; `elapsed` is unused here."""
        rising = min(1.0, (n_updates + 1) / self.warmup) if self.warmup else 1.0
        return rising * min(1.0, (self.hold / (n_updates + 1)) ** 0.5)


class Cooldown(Settings):
    """Rises over the warm-up, stays, then falls in a line to `floor` over the last part of the budget."""

    needs_budget: ClassVar[bool] = True
    warmup: Annotated[int, Field(ge=0)] = 100
    share: Annotated[float, Field(gt=0, le=1)] = 0.4
    """The part of the budget (time or bytes) over which the rate falls."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The factor at the end of the budget."""

    def factor(self, n_updates: int, elapsed: float) -> float:
        """The factor of the next update when `elapsed` (0 .. 1) of the budget is spent; 0 without a budget."""
        rising = min(1.0, (n_updates + 1) / self.warmup) if self.warmup else 1.0
        left = max(0.0, 1.0 - elapsed)
        return rising * (self.floor + (1 - self.floor) * min(1.0, left / self.share))


SCHEDULES: dict[str, type[Constant | InverseSqrt | Cooldown]] = {
    "constant": Constant,
    "cooldown": Cooldown,
    "inverse_sqrt": InverseSqrt,
}
"""Schedules by recipe name; each is its own settings, with `factor(n_updates, elapsed)`."""


def set_rates(optimizer: Any, factor: float) -> float:
    """Give every parameter group `factor` times its base rate; returns the rate of the first.

    A rate that is a tensor (on CUDA, see `optim.grouped`) is written in place, and only where it changes.
    """
    for group in optimizer.param_groups:
        rate = group["base_rate"] * factor
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rate
        elif group["written"] != rate:
            group["written"] = rate
            group["lr"].fill_(rate)
    return optimizer.param_groups[0]["base_rate"] * factor
