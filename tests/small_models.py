"""Small models with something in every weight, and what they make of a few batches: to compare two ways."""

from typing import Any

import pytest
import torch
from torch import Tensor

from livelm.models.transformer import Transformer
from livelm.types import State

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_VOCABULARY = 67

Learned = tuple[Tensor, State, dict[str, Tensor]]
"""Costs, state and gradients of a batch."""


def lively(kind: Any, options: dict[str, Any], n_vocabulary: int = N_VOCABULARY) -> Any:
    """A model of a kind, away from its silent start, so that all of it shows."""
    torch.manual_seed(0)
    model = kind(kind.Config.model_validate(options), n_vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(DEVICE)


def build(options: dict[str, Any]) -> Transformer:
    return lively(Transformer, options)


def read(n_tokens: int, n_batches: int, n_lanes: int = 1) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(N_VOCABULARY, (2 * n_batches, n_lanes, n_tokens), generator=generator)
    starts = torch.rand(n_batches, n_lanes, n_tokens, generator=generator) < 1 / 20
    return [tuple(x.to(DEVICE) for x in row) for row in zip(tokens[::2], starts, tokens[1::2], strict=True)]  # type: ignore[misc]


def learn(model: Any, batches: list[Any]) -> Learned:
    """Costs, state and gradients of the last batch; the ones before fill the window."""
    state = model.init_state(len(batches[0][0]))
    with torch.no_grad():
        for tokens, starts, targets in batches[:-1]:
            _, state = model.nats(tokens, starts, targets, state)
    tokens, starts, targets = batches[-1]
    nats, state = model.nats(tokens, starts, targets, state)
    nats.mean().backward()
    return nats.detach(), state, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_learned_alike(found: Learned, wanted: Learned, tolerance: float) -> None:
    """Costs and state to `tolerance`, each gradient to twice that of its length."""
    (nats, state, gradients), (wanted_nats, wanted_state, wanted_gradients) = found, wanted
    torch.testing.assert_close(nats, wanted_nats, rtol=tolerance, atol=tolerance)
    assert state.keys() == wanted_state.keys()
    for name, tensor in wanted_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        apart = float((gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
        assert apart <= 2 * tolerance, (name, apart)


def note(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[bool]:
    """Of each call of owner.name from now on, whether it found a way."""
    went: list[bool] = []
    choose = getattr(owner, name)

    def noted(*arguments: Any) -> Any:
        found = choose(*arguments)
        went.append(found is not None)
        return found

    monkeypatch.setattr(owner, name, noted)
    return went
