"""Adagrad for a large token table: rows just read or predicted learn at once, all others every few updates."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from livelm.errors import ContractError
from livelm.kernels import kernels_of
from livelm.optim.rows import sum_by_row

ROWS_AT_ONCE = 4096
"""Rows per step of a pass over the table on a CPU: their gradient (4 MiB at D = 256) stays in the cache."""
WIDEST = 1024
"""Columns of a table that the kernels for CUDA take at most: one program holds a row."""

Named = list[tuple[Tensor, Tensor]]
"""Pairs of (N,) numbers of rows and (N, D) values, or of the factors of a product."""


class Parts(Protocol):
    """The gradient of a (V, D) table as the model leaves it: left' right of each product, plus `rows`, plus `reads`."""

    products: list[tuple[Tensor, Tensor]]
    """(N, V) and (N, D) pairs."""
    rows: list[tuple[Tensor, Tensor]]
    """(N,) numbers of predicted rows and (N, D) float32 values to add to them."""
    reads: list[tuple[Tensor, Tensor]]
    """The same for rows that were looked up."""
    spare: list[Tensor]
    """Left factors that were learned: memory for new ones."""

    def clear(self) -> None:
        """Forget everything."""
        ...


class DeferredAdagrad(Optimizer):
    """w <- w - rate g / (sqrt(a) + eps), a <- a + mean(g^2): Adagrad (Duchi et al. 2011) with one `a` for each row.

    A softmax gradient has every row of the table in it, though most get next to nothing. So the rows named in
    `Parts.rows` take their whole gradient at each step, and what the others get is kept as factors and added up
    once every `every` steps: one long product instead of many short ones, one pass over the table instead of
    `every`. Nothing that waits is part of any prediction: the effective table is the one the parameter holds.

    Nats per token of tokens 20,000 to 30,000 of web text (updates of 32 tokens, rate 0.02, one seed): all rows at each
    step 7.88, this with 16 steps 7.81, every row waiting 16 steps 8.16. A row that is read gets gradients of another
    size than one that is predicted, so each role has its own `a` (one for both: 0.11 worse).

    State per table: `predicted` and `read`, both (V,); for tables below float32 a float32 `master`; up to
    `every` - 1 pending pairs.
    """

    def __init__(self, groups: list[dict[str, Any]], *, every: int = 16, eps: float = 1e-12) -> None:
        super().__init__(groups, {"every": every, "eps": eps})
        self._memory: dict[Tensor, tuple[_Memory, ...]] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the graded graph is the one differentiated
        """Take the gradient parts that backward left at each table.

        Raises ContractError for a table with an ordinary `grad`, which would be lost.
        """
        self.step_now()
        self.step_later()

    @torch.no_grad()
    def step_now(self) -> None:
        """Teach the named rows, and take what they learned out of the products. Raises as `step` does.

        On CUDA this has the same shapes whatever the rows are, and can be captured.
        """
        for table, parts, group in self._tables():
            self._teach_named(table, parts, group)

    @torch.no_grad()
    def step_later(self) -> None:
        """Keep the rest of the products until it is time for a pass over the table."""
        for table, parts, group in self._tables():
            state = self.state[table]
            self._keep(table, parts, group)
            if state["n_waiting"] >= group["every"]:
                self._pass_over(table, list(zip(state["left"], state["right"], strict=True)), group)
                parts.spare[:] = [] if table.is_cuda else state["left"]
                state["left"], state["right"], state["n_waiting"] = [], [], 0
            parts.clear()

    @torch.no_grad()
    def practise_later(self) -> None:
        """A pass over the table with the products of this update alone; what waits goes on waiting."""
        for table, parts, group in self._tables():
            self._pass_over(table, parts.products, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient of the current update; what earlier updates left pending stays."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for table in group["params"]:
                if hasattr(table, "gradient_parts"):
                    table.gradient_parts.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, pending factors included: bit for bit."""
        super().load_state_dict(state_dict)
        # The base class casts state to the type of the table, which would round the master copy.
        tables = [table for group in self.param_groups for table in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for table, number in zip(tables, numbers, strict=True):
            if number in state_dict["state"]:
                saved = state_dict["state"][number]
                self.state[table] = {name: _copy(value, table.device) for name, value in saved.items()}

    def _state_of(self, table: Tensor) -> dict[str, Any]:
        """What is kept of a table, made at the first step."""
        state = self.state[table]
        if not state:
            state["predicted"] = torch.zeros(len(table), device=table.device)
            state["read"] = torch.zeros(len(table), device=table.device)
            state["left"], state["right"], state["n_waiting"] = [], [], 0
            if table.dtype != torch.float32:
                state["master"] = table.float()
        return state

    def _teach_named(self, table: Tensor, parts: Parts, group: dict[str, Any]) -> None:
        state = self._state_of(table)
        for role, named, products in _roles(parts):
            if (kernels := _kernels(table, products)) is not None:
                kernels.teach_rows(*_arguments(table, state, role, named, products), group)
            else:
                rows, gradient = (_take_rows_on_cuda if table.is_cuda else _take_rows)(named, products)
                _descend(table, state, role, rows, gradient, group)

    def _tables(self) -> Iterator[tuple[Tensor, Parts, dict[str, Any]]]:
        """Each table that backward left something at, what that is, and the table's settings."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    raise ContractError(
                        f"a {tuple(table.shape)} table of DeferredAdagrad has a dense gradient; only what "
                        "TokenTable leaves in `gradient_parts` is learned. Score with TokenTable.nats."
                    )
                parts: Parts | None = getattr(table, "gradient_parts", None)
                if parts is not None and (parts.products or parts.rows or parts.reads):
                    yield table, parts, group

    def _keep(self, table: Tensor, parts: Parts, group: dict[str, Any]) -> None:
        """Let the products wait, for at most `every` updates."""
        state = self.state[table]
        for factors in parts.products:
            if table.is_cuda:  # a graph that was captured writes its next factors where the last ones are
                factors = self._copied(table, factors, group["every"])
            state["left"].append(factors[0])
            state["right"].append(factors[1])
        state["n_waiting"] += 1

    def _copied(self, table: Tensor, factors: tuple[Tensor, Tensor], every: int) -> tuple[Tensor, ...]:
        """Copies of both factors, right after the last that wait where there is room for `every` of the first size."""
        if (memory := self._memory.get(table)) is None:
            memory = self._memory[table] = tuple(_Memory(factor, every) for factor in factors)
        first = not self.state[table]["left"]
        return tuple(own.copy(factor, first) for own, factor in zip(memory, factors, strict=True))

    def _pass_over(self, table: Tensor, products: Named, group: dict[str, Any]) -> None:
        """Teach every row what is in the products."""
        if not products:
            return
        state, kernels = self.state[table], _kernels(table, [])
        left, right = (list(factors) for factors in zip(*products, strict=True))
        if kernels is not None and table.shape[1] <= kernels.WIDEST_PASS:
            kernels.teach_all(
                table, state.get("master", table), state["predicted"], (_stacked(left), _stacked(right)), group
            )
            return
        for rows, gradient in _pending(left, right, len(table) if table.is_cuda else ROWS_AT_ONCE):
            _descend(table, state, "predicted", rows, gradient, group)


def _roles(parts: Parts) -> Iterator[tuple[str, Named, Named]]:
    """What the named rows were, which they are, and the products that have more of their gradient."""
    if parts.rows:
        yield "predicted", parts.rows, parts.products
    if parts.reads:
        yield "read", parts.reads, []


def _kernels(table: Tensor, products: Named) -> Any:
    """The kernels for such a table (`deferred_cuda`); None where it is taught in torch."""
    if not table.is_cuda or len(products) > 1 or table.shape[1] > WIDEST or not table.is_contiguous():
        return None
    return kernels_of("livelm.optim.deferred_cuda")


def _arguments(table: Tensor, state: dict[str, Any], role: str, named: Named, products: Named) -> tuple[Any, ...]:
    """What the kernels want to know, but for the settings."""
    joined = named[0] if len(named) == 1 else tuple(torch.cat(column) for column in zip(*named, strict=True))
    return table, state.get("master", table), state[role], joined, products[0] if products else None


def _take_rows(named: Named, products: Named) -> tuple[Tensor, Tensor]:
    """The named rows, each once, and their whole gradient; what of it was in the products is taken out of them."""
    values = torch.cat([values for _, values in named])
    rows, place = torch.cat([numbers for numbers, _ in named]).unique(return_inverse=True)
    gradient = values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values)
    for left, right in products:
        gradient.addmm_(left.T.index_select(0, rows).float(), right.float())
        left.T.index_fill_(0, rows, 0)
    return rows, gradient


def _take_rows_on_cuda(named: Named, products: Named) -> tuple[Tensor, Tensor]:
    """The same with rows that may repeat, each time with the same gradient: no shape depends on which they are."""
    rows, values = (torch.cat(column) for column in zip(*named, strict=True))
    gradient = sum_by_row(rows, values)
    for left, right in products:
        gradient.addmm_(left.index_select(1, rows).T.float(), right.float())
        left.index_fill_(1, rows, 0)
    return rows, gradient


def _pending(lefts: list[Tensor], rights: list[Tensor], n_at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """The gradient that waited in the factors of products, a slice of rows at a time."""
    right, n_rows = torch.cat(rights), lefts[0].shape[1]
    for start in range(0, n_rows, n_at_once):
        rows = slice(start, min(start + n_at_once, n_rows))
        # on a CPU rows of the transpose: they lie together where the table was walked
        cut = _stacked(lefts)[:, rows].T if right.is_cuda else torch.cat([left.T[rows] for left in lefts], dim=1)
        yield rows, (cut @ right).float()


class _Memory:
    """Where factors on a card wait, one after another: in the end all of them are one matrix, without a copy.

    That of 512 rows in bfloat16 is twice the bytes of the table.
    """

    def __init__(self, like: Tensor, n_most: int) -> None:
        self._all, self._end = like.new_empty(n_most * len(like), like.shape[1]), 0
        self._places: dict[tuple[int, int], Tensor] = {}

    def copy(self, new: Tensor, first: bool) -> Tensor:
        """A copy of some rows, after the last ones if there is room; from the beginning if they are the first."""
        begin, n_rows = 0 if first else self._end, new.shape[0]
        there = self._places.get((begin, n_rows))  # found again: a slice costs the host as much as the copy
        if there is None:
            if begin + n_rows > len(self._all):
                return new.clone()
            there = self._places[begin, n_rows] = self._all[begin : begin + n_rows]
        self._end = begin + n_rows
        return there.copy_(new)


def _stacked(pieces: list[Tensor]) -> Tensor:
    """All rows of (N, V) pieces as one matrix: no copy where they lie one after another."""
    first, place = pieces[0], pieces[0].data_ptr()
    for piece in pieces:
        same = piece.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not piece.is_contiguous() or piece.data_ptr() != place:
            return torch.cat(pieces)
        place += piece.nbytes
    return first.as_strided((sum(map(len, pieces)), first.shape[1]), (first.shape[1], 1))


def _descend(
    table: Tensor, state: dict[str, Any], role: str, rows: Tensor | slice, g: Tensor, group: dict[str, Any]
) -> None:
    """One step for some rows; a row whose gradient is zero does not move. Of those that repeat any may be the last."""
    total = state[role][rows] + _mean_squares(g)
    state[role][rows] = total
    master = state.get("master", table)
    step = (total.sqrt() + group["eps"]).reciprocal()[:, None]
    changed = master[rows]  # of a slice the place itself, so that a pass over the table writes it once
    if isinstance(group["lr"], Tensor):
        changed.addcmul_(g, step * group["lr"], value=-1)
    else:
        changed.addcmul_(g, step, value=-group["lr"])
    if isinstance(rows, Tensor):
        master[rows] = changed
        changed = changed.to(table.dtype)
    if master is not table:
        table[rows] = changed


def _mean_squares(g: Tensor) -> Tensor:
    """(N,) means over the columns; on CUDA without the (N, D) squares, which may be as many as a table has numbers."""
    return torch.linalg.vector_norm(g, dim=1).square_().div_(g.shape[1]) if g.is_cuda else g.square().mean(dim=1)


def _copy(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_copy(item, device) for item in value]
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


class DeferredReference:
    """What `DeferredAdagrad` does, on dense float32 gradients: the slow twin."""

    def __init__(self, table: Tensor, *, rate: float, every: int, eps: float = 1e-12) -> None:
        self.table = table.detach().clone().float()
        self.predicted, self.read = torch.zeros(len(table)), torch.zeros(len(table))
        self.waiting = torch.zeros_like(self.table)
        self.n_waiting = 0
        self.rate, self.every, self.eps = rate, every, eps

    def step(self, gradient: Tensor, touched: Tensor, read_gradient: Tensor) -> None:
        """Take one update: (V, D) gradients of the table as output matrix and as embedding.

        `touched` (V,) masks the rows of the first that learn at once; the others wait for the next pass.
        """
        self._descend(self.predicted, gradient * touched[:, None])
        self._descend(self.read, read_gradient)
        self.waiting += gradient * ~touched[:, None]
        self.n_waiting += 1
        if self.n_waiting == self.every:
            self._descend(self.predicted, self.waiting)
            self.waiting, self.n_waiting = torch.zeros_like(self.table), 0

    def _descend(self, total: Tensor, gradient: Tensor) -> None:
        total += gradient.square().mean(dim=1)
        self.table -= self.rate * gradient / (total.sqrt() + self.eps)[:, None]
