"""Compiled scoring: `torch.compile` for the one shape that nearly every update has, the plain model for the rest.

What it saves is the starting of operations, most of the time of a small update on a CPU; what it costs is a minute or
so of compiling in every process. A caught shape is compiled once: documents that begin in a batch, caches that still
grow, and an odd last batch take the plain path. Which path a batch takes depends on nothing but the batch and the
lanes' state, so a resumed run takes the paths of one that never stopped.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import Tensor, nn

from livelm.errors import Unavailable
from livelm.types import State

COMPILERS = ("c++", "g++", "clang++")


def compile_nats(model: nn.Module, n_lanes: int, n_tokens: int) -> None:
    """Put a `CompiledNats` in the place of the model's `nats`.

    Raises Unavailable where the machine has no C++ compiler, which `torch.compile` needs on a CPU.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise Unavailable(
            "run.compile needs a C++ compiler (g++ or clang++), and there is none: install one (apt install g++), "
            "or leave run.compile off."
        )
    model.nats = CompiledNats(model, n_lanes, n_tokens)  # type: ignore[assignment]


class CompiledNats:
    """`model.nats`, compiled where tokens and state have their usual shapes and no document begins."""

    def __init__(self, model: Any, n_lanes: int, n_tokens: int, backend: str = "inductor") -> None:
        self._plain = model.nats
        self._compiled = torch.compile(model.nats, dynamic=False, backend=backend)
        self._shape = (n_lanes, n_tokens)
        self._usual = usual_shapes(model, n_lanes, n_tokens)

    def __call__(self, tokens: Tensor, starts: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """As `types.Model.nats`."""
        usual = tokens.shape == self._shape and _shapes(state) == self._usual and not starts.any()
        return (self._compiled if usual else self._plain)(tokens, starts, targets, state)


@torch.no_grad()
def usual_shapes(model: Any, n_lanes: int, n_tokens: int) -> dict[str, torch.Size]:
    """The shapes of the state when caches are full: those that one more update leaves as they are."""
    tokens = torch.zeros(n_lanes, n_tokens, dtype=torch.int64)
    starts = torch.zeros(n_lanes, n_tokens, dtype=torch.bool)
    state = model.init_state(n_lanes)
    before: dict[str, torch.Size] = {}
    while (now := _shapes(state)) != before:
        before = now
        _, state = model.forward(tokens, starts, state)
    return before


def _shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
