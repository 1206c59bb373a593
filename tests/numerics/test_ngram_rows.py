"""Compiled n-gram sums equal those of torch: rows bit for bit, sums, gradients, what the next batch looks back on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from livelm.models import ngrams
from livelm.models.ngrams import NOTHING, NgramEmbedding
from livelm.models.ops.ngram_rows import fits

FAR = 1 << 62
"""Ids whose sums wrap around; real ones are small."""


def embedding(orders: tuple[int, ...] = (2, 3, 5), n_rows: int = 101, width: int = 6) -> NgramEmbedding:
    made = NgramEmbedding(orders, n_rows, width)
    torch.nn.init.normal_(made.table, generator=torch.Generator().manual_seed(n_rows))
    return made


def batch(n_lanes: int, n_tokens: int, n_back: int, begins: float, highest: int = 257) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_lanes * 1000 + n_tokens)
    read = torch.randint(0, highest, (n_lanes, n_back + n_tokens), generator=generator)
    starts = torch.rand(n_lanes, n_tokens, generator=generator) < begins
    return read[:, :n_back], read[:, n_back:], starts


def found(look_up: Any, table: Tensor, given: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Sums, what is kept, and the gradient of the table: its entries, and their sum."""
    first, last, kept = look_up(*given)
    table.grad = None
    (first * torch.arange(1.0, 7.0) + last.square() * first.cos()).sum().backward()
    gradient: Any = table.grad
    assert gradient.is_sparse
    return [kept, gradient._indices().sort().values, first.detach(), last.detach(), gradient.to_dense()]


def assert_equal_to_torch(made: NgramEmbedding, given: tuple[Tensor, Tensor, Tensor]) -> None:
    assert fits(made.table, given[1])
    fast, slow = found(made, made.table, given), found(made.look_up, made.table, given)
    for a, b in zip(fast[:2], slow[:2], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(fast[2:], slow[2:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("begins", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n_lanes", "n_tokens"), [(1, 1), (1, 48), (3, 1), (3, 7), (2, 5)])
def test_equal_to_torch(n_lanes: int, n_tokens: int, begins: float) -> None:
    assert_equal_to_torch(embedding(), batch(n_lanes, n_tokens, 4, begins))


@pytest.mark.parametrize(("orders", "n_rows"), [((2,), 64), ((4,), 1), ((2, 3, 4, 5, 6), 65_536), ((3, 9), 7)])
def test_equal_to_torch_for_any_orders_and_rows(orders: tuple[int, ...], n_rows: int) -> None:
    assert_equal_to_torch(embedding(orders, n_rows), batch(2, 20, max(orders) - 1, 0.1))


def test_equal_to_torch_for_ids_that_wrap_around_and_nothing_before() -> None:
    recent, tokens, starts = batch(3, 9, 4, 0.2, highest=FAR)
    assert_equal_to_torch(embedding(), (torch.full_like(recent, NOTHING), tokens, starts))
    assert_equal_to_torch(embedding(), (recent, -tokens, starts))


def test_equal_to_torch_for_views_of_what_is_not_in_order() -> None:
    recent, tokens, starts = batch(4, 8, 4, 0.3)
    assert_equal_to_torch(embedding(), (recent, tokens[:, ::2], starts[:, ::2]))
    assert_equal_to_torch(embedding(), (recent, tokens.T.contiguous().T, starts.T.contiguous().T))


def test_whatever_a_stream_is_cut_into_it_says_the_same() -> None:
    made, (recent, tokens, starts) = embedding(), batch(2, 30, 4, 0.15)
    first, last, kept = made(recent, tokens, starts)
    for at in range(30):
        one, two, recent = made(recent, tokens[:, at : at + 1], starts[:, at : at + 1])
        assert torch.equal(one[:, 0], first[:, at])
        assert torch.equal(two[:, 0], last[:, at])
    assert torch.equal(recent, kept)


def test_one_half_alone_has_a_gradient_and_those_of_two_passes_add_up() -> None:
    made, given = embedding(), batch(1, 12, 4, 0.1)
    made(*given)[0].sum().backward()
    once: Any = made.table.grad
    assert torch.equal(once.to_dense()[:, 6:], torch.zeros(303, 6))
    made(*given)[1].sum().backward()
    twice: Any = made.table.grad
    assert torch.equal(twice.to_dense()[:, :6], once.to_dense()[:, :6])
    assert torch.equal(twice.to_dense()[:, 6:], once.to_dense()[:, :6])


def test_a_frozen_table_and_one_that_is_only_read_have_no_gradient() -> None:
    made, given = embedding(), batch(1, 12, 4, 0.1)
    with torch.inference_mode():
        read = made(*given)
    made.table.requires_grad_(False)
    frozen = made(*given)
    assert not any(tensor.requires_grad for tensor in frozen)
    assert all(torch.equal(a, b) for a, b in zip(read, frozen, strict=True))


def test_the_compiled_way_is_taken_for_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    sums = ngrams.sum_ngram_rows
    monkeypatch.setattr(ngrams, "sum_ngram_rows", lambda *given: taken.append(given[0].dtype) or sums(*given))
    made, given = embedding(), batch(2, 5, 4, 0.3)
    wanted = made(*given)
    for a, b in zip(made.double()(*given), wanted, strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)
    assert taken == [torch.float32]
