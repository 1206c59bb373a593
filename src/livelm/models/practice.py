"""Compile what a model needs before its first update, or load what was compiled."""

from typing import Any

import torch

from livelm.compiled import compiles
from livelm.types import Compiled


def practise(model: Any) -> None:
    """One token there and back, of which nothing stays, if that is compiled; some ten seconds the first time."""
    tokens, starts = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    if not (compiles() and isinstance(model, Compiled)):
        return
    state = model.init_state(1)  # type: ignore[attr-defined]
    if not model.is_compiled(tokens, starts, state):
        return
    nats, _ = model.nats(tokens, starts, tokens, state)  # type: ignore[attr-defined]
    if nats.requires_grad:
        torch.autograd.grad(nats.sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True)  # type: ignore[attr-defined]
