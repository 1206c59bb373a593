"""The operations of the looped transformer equal their slow twins: outputs, gradients, odd sizes, unread memory."""

import math

import pytest
import torch
from torch import Tensor

from livelm.models.looped_inputs import bigram_rows
from livelm.models.ngrams import NOTHING
from livelm.models.ops.exclusive import exclude_own, exclude_own_reference
from livelm.models.ops.previous import previous, previous_reference

sizes = pytest.mark.parametrize("n", [1, 7, 63, 100])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).requires_grad_()


def begins(n: int) -> Tensor:
    starts = torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.2
    starts[1, 0] = True
    return starts


@sizes
@pytest.mark.parametrize(("n_heads", "n_groups"), [(4, 4), (4, 2), (6, 1)])
def test_exclusion_equals_its_reference(n: int, n_heads: int, n_groups: int) -> None:
    results = []
    for compute in (exclude_own, exclude_own_reference):
        y, v = normal(2, n, n_heads, 10), normal(2, n, n_groups, 10, seed=1)
        out = compute(y, v)
        (out * torch.arange(10).cos()).sum().backward()
        results.append([out.detach(), y.grad, v.grad])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_what_is_left_is_at_right_angles_to_the_own_value() -> None:
    y, v = normal(2, 9, 6, 16), normal(2, 9, 3, 16, seed=1)
    left = exclude_own(y, v)
    own = v.repeat_interleave(2, dim=2)
    torch.testing.assert_close((left * own).sum(-1), torch.zeros(2, 9, 6), rtol=0, atol=2e-5)
    torch.testing.assert_close(exclude_own(left, v), left)
    torch.testing.assert_close(exclude_own(own * 3, v), torch.zeros_like(own), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1e6])
def test_exclusion_is_finite_for_values_of_any_length(scale: float) -> None:
    y, v = normal(1, 3, 2, 8), (normal(1, 3, 1, 8).detach() * scale).requires_grad_()
    out = exclude_own(y, v)
    out.sum().backward()
    assert all(t is not None and t.isfinite().all() for t in (out, y.grad, v.grad))
    if scale == 0:
        assert torch.equal(out, y)


@sizes
@pytest.mark.parametrize("rest", [(), (5,), (3, 4)])
def test_previous_equals_its_reference(n: int, rest: tuple[int, ...]) -> None:
    results = []
    for compute in (previous, previous_reference):
        x, carried = normal(2, n, *rest), normal(2, *rest, seed=1)
        out = compute(x, carried, begins(n), 0.5)
        (out * normal(2, n, *rest, seed=2).detach()).sum().backward()
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in (x, carried)]
        results.append([out.detach(), *gradients])
    for fast, slow in zip(*results, strict=True):
        assert torch.equal(fast, slow)


@sizes
def test_previous_in_pieces_equals_previous_at_once(n: int) -> None:
    x, carried, starts = normal(2, 2 * n, 3), normal(2, 3, seed=1), begins(2 * n)
    whole = previous(x, carried, starts, 0.0)
    first = previous(x[:, :n], carried, starts[:, :n], 0.0)
    second = previous(x[:, n:], x[:, n - 1], starts[:, n:], 0.0)
    assert torch.equal(torch.cat([first, second], dim=1), whole)


def test_what_lies_before_a_document_is_not_even_read() -> None:
    x, starts = normal(1, 6, 3), torch.tensor([[True, False, False, True, False, False]])
    with torch.no_grad():
        x[0, 2] = math.nan
    out = previous(x, torch.full((1, 3), math.nan), starts, 0.0)
    assert out.isfinite().all()
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, :, 0], torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0]))


def test_bigram_rows_are_the_published_hash() -> None:
    tokens = torch.randint(8192, (2, 50), generator=torch.Generator().manual_seed(0))
    before = previous(tokens, torch.tensor([NOTHING, 77]), begins(50), NOTHING)
    rows = bigram_rows(tokens, before, 10_240)
    for token, last, row in zip(
        tokens.flatten().tolist(), before.flatten().tolist(), rows.flatten().tolist(), strict=True
    ):
        assert row == (10_239 if last == NOTHING else ((36_313 * token) ^ (27_191 * last)) % 10_239)
    assert (rows == 10_239).any()
    assert (rows != 10_239).any()
