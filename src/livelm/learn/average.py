"""A running mean of the weights, which predicts better than the last ones where nothing more is learned.

The last weights lean towards what was read last, which the next bytes of the stream repay and bytes from elsewhere do
not; their mean over some hundred updates does not lean (Polyak and Juditsky 1992). So it grades in `livelm eval` and
writes in `livelm generate`, and never enters a score of the stream itself, where it is worse (docs/learning.md).
"""

from typing import Any

import torch
from torch import Tensor

EVERY = 8
"""Updates between two looks at the weights: the mean is as good, and an update no dearer."""
TABLES = ("rows", "deferred")
"""Kinds of parameters that stay as they are: to average all rows would cost more than to learn some."""


class Average:
    """Exponential moving average of what an optimizer changes, but for tables of which an update changes few rows."""

    def __init__(self, groups: list[dict[str, Any]], n_updates: int) -> None:
        """`groups`: the optimizer's; `n_updates`: over about how many updates the mean goes."""
        chosen = [group["params"] for group in groups if group.get("kind") not in TABLES]
        self._weights: list[Tensor] = [p.detach() for params in chosen for p in params]
        self._means = [weight.clone() for weight in self._weights]
        self._n_updates, self._n = n_updates, 0

    @torch.no_grad()
    def take(self) -> None:
        """After an update. While few were seen, the mean is over the last quarter: the first ones know nothing."""
        self._n += 1
        if self._n % EVERY == 0:
            share = min(1.0, max(EVERY / self._n_updates, 4 * EVERY / self._n))
            for mean, weight in zip(self._means, self._weights, strict=True):
                mean.lerp_(weight, share)

    @torch.no_grad()
    def put(self) -> None:
        """Put the mean in place of the weights; before the first look there is none, and they stay."""
        if self._n < EVERY:
            return
        for weight, mean in zip(self._weights, self._means, strict=True):
            weight.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """The mean, in the optimizer's order, and how many updates are in it."""
        return {"means": list(self._means), "n": self._n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        with torch.no_grad():
            for mean, saved in zip(self._means, state["means"], strict=True):
                mean.copy_(saved)
        self._n = state["n"]
