"""Adagrad for tables of which a batch touches few rows: untouched rows cost nothing."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from livelm.compiled import compiles
from livelm.optim import rows_compiled


class RowAdagrad(Optimizer):
    """w <- w - rate * g / (sqrt(sum of g^2) + eps), for the rows of a sparse gradient only (Duchi et al. 2011).

    A row is seldom touched and each time at another moment: a sum per element needs no clock, a moving average
    (Adam) would need one per row. Dense gradients are taken too and give the same result.
    """

    def __init__(self, groups: list[dict[str, Any]], eps: float = 1e-8) -> None:
        super().__init__(groups, {"eps": eps})

    def step(self) -> None:  # type: ignore[override]  # no closure: the graded graph is the one differentiated
        """Change the touched rows of every table."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step_table(table, table.grad, group)

    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]  # for torch: not to wrap it in a profiler's span

    def _step_table(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["sum"] = torch.zeros_like(table)
        sums = state["sum"]
        compiled = gradient.is_sparse and compiles()
        if compiled and rows_compiled.step(table, sums, gradient, group["lr"], group["eps"]):
            return
        with torch.no_grad():
            if not gradient.is_sparse:
                adagrad_reference(table, sums, gradient, group["lr"], group["eps"])
            elif table.is_cuda:
                self._step_rows(table, sums, gradient, group)
            else:
                step_coalesced(table, sums, gradient, group["lr"], group["eps"])

    def _step_rows(self, table: Tensor, sums: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """The same without a shape that depends on which rows there are, so that it can be captured."""
        rows = gradient._indices()[0]
        values = sum_by_row(rows, gradient._values())
        total = sums[rows].addcmul_(values, values)
        changed = table[rows].sub_(values.div_(total.sqrt().add_(group["eps"])).mul_(group["lr"]))
        sums[rows], table[rows] = total, changed


def sum_by_row(rows: Int[Tensor, " N"], values: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """For each number in `rows` the sum of all values at that number: those that repeat get the same sum.

    As one product of (N, N) by (N, D), in the same order each time: adding them up with atomic operations is not.
    """
    return (rows[:, None] == rows).to(values.dtype) @ values


def step_coalesced(table: Tensor, sums: Tensor, gradient: Tensor, rate: float, eps: float) -> None:
    """One step by a sparse gradient, in place, for tensors of any type: the slow twin of `rows_compiled`."""
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    total = sums.index_select(0, rows).addcmul_(values, values)
    sums.index_copy_(0, rows, total)
    table.index_add_(0, rows, values / total.sqrt_().add_(eps), alpha=-rate)


def adagrad_reference(table: Tensor, total: Tensor, gradient: Tensor, rate: float, eps: float) -> None:
    """One dense step, in place: what `RowAdagrad` does to the rows it touches, and to the others (nothing)."""
    total.addcmul_(gradient, gradient)
    table.sub_(rate * gradient / (total.sqrt() + eps))
