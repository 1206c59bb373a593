"""Adagrad by rows in a compiled pass is the one in torch, which does what is not for it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.parameters import refuse
from torch import Tensor, nn

from livelm.optim import rows, rows_compiled
from livelm.optim.rows import RowAdagrad, step_coalesced


def sparse(indices: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)


def rows_case(kind: str, seed: int) -> tuple[Tensor, tuple[int, int]]:
    """A gradient, and the shape of its table."""
    generator = torch.Generator().manual_seed(seed)
    n, size = {"none": (0, (9, 4)), "one": (1, (9, 4)), "column": (40, (9, 1)), "same": (50, (1, 8))}.get(
        kind, (240, (400, 128))
    )
    indices, values = torch.randint(size[0], (1, n), generator=generator), torch.randn(n, size[1], generator=generator)
    if kind == "spread":
        values = torch.randn(size[1], n, generator=generator).T
    if kind == "broadcast":
        values = torch.randn(1, size[1], generator=generator).expand(n, -1)
    if kind == "often":
        indices = torch.randint(3, (1, n), generator=generator)
    gradient = sparse(indices, values, size)
    return gradient.coalesce() if kind == "coalesced" else gradient, size


CASES = ["none", "one", "column", "same", "usual", "often", "coalesced", "spread", "broadcast"]


@pytest.mark.parametrize("kind", CASES)
def test_rows_learn_as_by_torch(kind: str) -> None:
    _, size = rows_case(kind, 0)
    table = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(9)))
    expected, total = table.detach().clone(), torch.zeros(size)
    optimizer = RowAdagrad([{"params": [table], "lr": 0.1}])
    for seed in range(4):
        table.grad, _ = rows_case(kind, seed)
        before = table.grad.to_dense()
        step_coalesced(expected, total, table.grad, 0.1, 1e-8)
        optimizer.step()
        assert torch.equal(table.grad.to_dense(), before)  # a step may be practised
    torch.testing.assert_close(table.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimizer.state[table]["sum"], total, rtol=1e-4, atol=1e-5)


def test_what_a_row_gets_is_added_up_in_the_order_in_which_it_comes() -> None:
    gradient, size = rows_case("often", 3)
    table, sums = torch.randn(size, generator=torch.Generator().manual_seed(9)), torch.rand(size)
    w, s = table.numpy().copy(), sums.numpy().copy()
    assert rows_compiled.step(table, sums, gradient, 0.1, 1e-8)
    got: dict[int, Any] = {}
    for row, value in zip(gradient._indices()[0].tolist(), gradient._values().numpy(), strict=True):
        got[row] = got[row] + value if row in got else value
    for row, g in got.items():
        s[row] += g * g
        w[row] -= np.float32(0.1) * g / (np.sqrt(s[row]) + np.float32(1e-8))
    assert np.array_equal(sums.numpy(), s)
    assert np.array_equal(table.numpy(), w)


@pytest.mark.parametrize("kind", CASES)
def test_rows_are_taken_in_one_pass_where_they_lie_flat(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, size = rows_case(kind, 0)
    table = nn.Parameter(torch.zeros(size))
    table.grad = gradient
    flat = kind not in ("spread", "broadcast")
    monkeypatch.setattr(*((rows, "step_coalesced") if flat else (rows_compiled, "_step")), refuse)
    RowAdagrad([{"params": [table], "lr": 0.1}]).step()
    assert bool(table.detach().any()) == (kind != "none")


def test_tables_of_other_types_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_compiled, "_step", refuse)
    flat = torch.zeros(6, 3)
    for table, sums in ((flat.double(), flat.double()), (torch.zeros(3, 6).T, flat), (flat, torch.zeros(3, 6).T)):
        table = nn.Parameter(table)
        gradient = torch.zeros(6, 3, dtype=table.dtype)
        gradient[2] = gradient[4] = 1.0
        table.grad = gradient.to_sparse(1)
        optimizer = RowAdagrad([{"params": [table], "lr": 0.1}])
        optimizer.state[table]["sum"] = sums.clone()
        optimizer.step()
        torch.testing.assert_close(table.detach(), -0.1 * gradient)


@pytest.mark.parametrize("row", [-1, 6, 1 << 40])
def test_a_row_that_is_not_there_is_refused_before_anything_changes(row: int) -> None:
    table = nn.Parameter(torch.zeros(6, 3))
    table.grad = torch.sparse_coo_tensor(torch.tensor([[2, row]]), torch.ones(2, 3), (6, 3), check_invariants=False)
    with pytest.raises(IndexError, match="not among the 6"):
        RowAdagrad([{"params": [table], "lr": 0.1}]).step()
    assert not table.detach().any()


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    table = nn.Parameter(torch.zeros(4, 2))
    values = torch.tensor([[1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
    table.grad = sparse(torch.tensor([[0, 1, 2]]), values, (4, 2))
    RowAdagrad([{"params": [table], "lr": 0.1}]).step()
    nan = math.nan
    expected = torch.tensor([[-0.1, -0.1], [nan, -0.1], [nan, -0.1], [0.0, 0.0]])
    torch.testing.assert_close(table.detach(), expected, equal_nan=True)
