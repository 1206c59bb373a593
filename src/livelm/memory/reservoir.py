"""A fixed number of bytes of slices of the stream, at any time a uniform sample of all slices so far."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from livelm.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True)
class Slice:
    """Some tokens of one lane of the stream, with those before them."""

    tokens: NDArray[np.int64]
    """(C + N,): C tokens that are only read, then N."""
    wanted: NDArray[np.bool_]
    """(N,) which of the N count."""
    begin: int
    """Where reading begins, with nothing before it; tokens before that are marks."""
    n_bytes: int
    """Bytes that the wanted tokens stand for."""
    at: int
    """Graded bytes of the stream up to where the slice was complete."""
    cost: float
    """Nats of the wanted tokens when they were graded."""


class Reservoir:
    """Keeps slices by Vitter's algorithm R (1985): after n offers each one offered is held with equal probability.

    All slices have N tokens, so every byte of the stream is as likely to be held as any other. What is held takes no
    more than `n_bytes`, all columns together; a slice costs `slice_bytes`.
    """

    def __init__(self, n_bytes: int, n_context: int, n_tokens: int, n_vocabulary: int) -> None:
        """Raises ConfigError where not even one slice fits."""
        self.n_context, self.n_tokens = n_context, n_tokens
        number = np.uint8 if n_vocabulary <= 1 << 8 else np.int16 if n_vocabulary <= 1 << 15 else np.int32
        forms: dict[str, tuple[Any, tuple[int, ...]]] = {
            "tokens": (number, (n_context + n_tokens,)),
            "wanted": (np.bool_, (n_tokens,)),
            "begin": (np.int32, ()),
            "n_bytes": (np.int32, ()),
            "at": (np.int64, ()),
            "first": (np.float64, ()),
            "surprise": (np.float64, ()),
        }
        self.slice_bytes = sum(np.dtype(kind).itemsize * int(np.prod(form)) for kind, form in forms.values())
        self.capacity = n_bytes // self.slice_bytes
        if not self.capacity:
            raise ConfigError(
                f"buffer_bytes is {n_bytes:,}, but one slice of {n_context} + {n_tokens} tokens takes "
                f"{self.slice_bytes:,}. Give it some hundred times that."
            )
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros((self.capacity, *form), kind) for name, (kind, form) in forms.items()
        }
        self.n_held = 0
        self.n_offered = 0

    def offer(self, new: Slice, generator: np.random.Generator) -> int | None:
        """Keep it or not; the row it now has, or None."""
        self.n_offered += 1
        row = self._row_for(generator)
        if row >= self.capacity:
            return None
        self.n_held = max(self.n_held, row + 1)
        cost = new.cost / max(1, np.count_nonzero(new.wanted))
        values = {"tokens": new.tokens, "wanted": new.wanted, "begin": new.begin, "n_bytes": new.n_bytes}
        for name, value in {**values, "at": new.at, "first": cost, "surprise": cost}.items():
            self._columns[name][row] = value
        return row

    def _row_for(self, generator: np.random.Generator) -> int:
        """Where the newest one goes; beyond the capacity: nowhere."""
        return self.n_held if self.n_held < self.capacity else int(generator.integers(self.n_offered))

    def column(self, name: str) -> NDArray[Any]:
        """(n_held, ...) a view of everything held: `tokens`, `wanted`, `begin`, `n_bytes`, `at`, `first`, `surprise`.

        `first` and `surprise` are nats per wanted token: when it was graded, and when last looked at.
        """
        return self._columns[name][: self.n_held]

    def refresh(self, rows: NDArray[np.int64], costs: NDArray[np.float64]) -> None:
        """Set the surprise of these rows (nats per wanted token); what is not finite leaves it as it was."""
        finite = np.isfinite(costs)
        self.column("surprise")[rows[finite]] = costs[finite]

    def state_dict(self) -> dict[str, Any]:
        """Everything held, as tensors, and how much was offered."""
        held = {name: torch.from_numpy(self.column(name).copy()) for name in self._columns}
        return {"held": held, "n_offered": self.n_offered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises CheckpointError where it has another form or is too large."""
        if not self.fits(state):
            raise CheckpointError("the slices that were kept have another form than these settings give them.")
        held = {name: tensor.numpy() for name, tensor in state["held"].items()}
        self.n_held, self.n_offered = len(held["at"]), state["n_offered"]
        for name, column in held.items():
            self._columns[name][: self.n_held] = column

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether what `state_dict` gave has the form and at most the size of this reservoir."""
        held = {name: tensor.numpy() for name, tensor in state["held"].items()}
        forms = {name: (column.dtype, column.shape[1:]) for name, column in self._columns.items()}
        there = {name: (column.dtype, column.shape[1:]) for name, column in held.items()}
        lengths = {len(column) for column in held.values()}
        return there == forms and len(lengths) == 1 and max(lengths) <= self.capacity
