"""The compiled head is the head of torch: costs, log probabilities, gradients; and it is really used."""

from typing import Any

import pytest
import torch
from torch import Tensor

from livelm.compiled import in_torch
from livelm.models.ops import head

SHAPES = [(1, 48, 257, 64), (3, 7, 67, 32), (1, 1, 2, 96), (2, 100, 1000, 64)]


def given(n_lanes: int, n_tokens: int, n_symbols: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n_symbols)
    h = torch.randn(n_lanes, n_tokens, width, generator=random, requires_grad=True)
    weight = torch.randn(n_symbols, width, generator=random, requires_grad=True)
    return h, weight, torch.randint(n_symbols, (n_lanes, n_tokens), generator=random)


def learned(function: Any, *arguments: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    h, weight, _ = arguments
    h.grad = weight.grad = None
    found = function(*arguments)
    nats, log_probs = found if isinstance(found, tuple) else (found, None)
    (nats * torch.linspace(0.5, 1.5, nats.numel()).view(nats.shape)).sum().backward()
    assert h.grad is not None
    assert weight.grad is not None
    return nats.detach(), None if log_probs is None else log_probs.detach(), h.grad, weight.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [head.costs, head.says])
def test_it_is_the_head_of_torch(function: Any, shape: tuple[int, int, int, int]) -> None:
    arguments = given(*shape)
    assert head.fits(*arguments[:2])
    found = learned(function, *arguments)
    with in_torch():
        assert not head.fits(*arguments[:2])
        wanted = learned(function, *arguments)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_a_graph_that_is_kept_gives_the_same_gradient_again() -> None:
    h, weight, targets = given(1, 16, 67, 32)
    nats = head.costs(h, weight, targets).sum()
    first, again = (torch.autograd.grad(nats, (h, weight), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_what_is_nearly_impossible_has_a_finite_cost() -> None:
    h, weight, targets = given(1, 16, 67, 32)
    nats, log_probs = head.says(h.detach() * 1000, weight.detach(), targets)
    wanted = torch.log_softmax(h.detach().double() * 1000 @ weight.detach().double().T, -1)
    torch.testing.assert_close(log_probs, wanted.float(), rtol=1e-4, atol=1e-2)
    assert nats.max() > 1000
    torch.testing.assert_close(nats, -log_probs.gather(-1, targets[..., None])[..., 0])


def test_nan_in_one_token_stays_there() -> None:
    h, weight, targets = given(1, 20, 67, 32)
    with torch.no_grad():
        h[0, 3, 5] = torch.nan
    nats = head.costs(h, weight, targets)
    assert nats[0, 3].isnan()
    assert int(nats.isnan().sum()) == 1


@pytest.mark.parametrize("wrong", [-1, 67])
def test_a_target_that_is_no_symbol_is_refused(wrong: int) -> None:
    h, weight, targets = given(1, 16, 67, 32)
    targets[0, 2] = wrong
    with pytest.raises(IndexError):
        head.costs(h, weight, targets)


def test_what_is_large_or_otherwise_made_is_left_to_torch() -> None:
    h, weight, _ = given(1, 16, 67, 32)
    assert head.fits(h, weight)
    assert not head.fits(h.double(), weight)
    assert not head.fits(h[..., :20], weight[:, :20])
    assert not head.fits(h.expand(20, 16, 32).contiguous(), weight)
    assert not head.fits(h, torch.empty(2000, 32))
