"""The kernel for named rows does what torch does: on a CUDA device if there is one, else in Triton's interpreter."""

from typing import Any

import pytest
import torch
from tests.interpreted import DEVICE, INTERPRETED, both_types, round_as_cards_do
from torch import Tensor

from livelm.models.ops.token_table import GradientParts
from livelm.optim import deferred
from livelm.optim.deferred import DeferredAdagrad, _descend, _take_rows
from livelm.optim.grouped import Grouped

V = 53

pytest.importorskip("triton", reason="triton is not installed, so nothing here runs")


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    round_as_cards_do(monkeypatch)


def make_parts(n: int, d: int, dtype: torch.dtype, seed: int, *, n_products: int = 1) -> GradientParts:
    """Rows of the first half of the table, so that they repeat; the factors of `n` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def named() -> tuple[Tensor, Tensor]:
        return torch.randint(V // 2, (n,), generator=generator), torch.randn(n, d, generator=generator)

    def product() -> tuple[Tensor, Tensor]:
        left, right = torch.rand(n, V, generator=generator), torch.randn(n, d, generator=generator) / n
        return left.to(dtype), right.to(dtype)

    return GradientParts(
        [product() for _ in range(n_products)], [named() for _ in range(n_products)], [named(), named()]
    )


def moved(parts: GradientParts) -> GradientParts:
    """A copy on the device."""
    lists = ([tuple(t.to(DEVICE, copy=True) for t in pair) for pair in pairs] for pairs in all_of(parts))
    return GradientParts(*lists)  # type: ignore[arg-type]


def all_of(parts: GradientParts) -> tuple[list[tuple[Tensor, Tensor]], ...]:
    return parts.products, parts.rows, parts.reads


def make_state(table: Tensor) -> dict[str, Any]:
    state: dict[str, Any] = {role: torch.zeros(len(table), device=table.device) for role in ("predicted", "read")}
    return state if table.dtype == torch.float32 else state | {"master": table.float()}


def make_table(d: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(V, d, generator=torch.Generator().manual_seed(d)).to(dtype)


def teach(table: Tensor, state: dict[str, Any], parts: GradientParts, group: dict[str, Any]) -> None:
    from livelm.optim.deferred_cuda import teach_rows

    for role, named, products in deferred._roles(parts):
        teach_rows(*deferred._arguments(table, state, role, named, products), group)


def teach_in_torch(table: Tensor, state: dict[str, Any], parts: GradientParts, group: dict[str, Any]) -> None:
    for role, named, products in deferred._roles(parts):
        _descend(table, state, role, *_take_rows(named, products), group)


def assert_same(table: Tensor, state: dict[str, Any], twin: Tensor, its: dict[str, Any]) -> None:
    for name in state:
        torch.testing.assert_close(state[name].cpu(), its[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(table.cpu(), twin, rtol=1e-5 if table.dtype == torch.float32 else 2**-7, atol=1e-5)
    if "master" in state and not INTERPRETED:  # which cuts bfloat16 off where devices round it
        assert torch.equal(state["master"].to(table.dtype), table)


@both_types
@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 24), (32, 64), (33, 256), (130, 16), (7, 1024)])
def test_it_does_what_torch_does(n: int, d: int, rate: str, dtype: torch.dtype) -> None:
    twin = make_table(d, dtype)
    table = twin.to(DEVICE, copy=True)
    state, its = make_state(table), make_state(twin)
    lr: Any = 0.05 if rate == "number" else torch.tensor(0.05, device=DEVICE)
    for seed in range(4):
        parts = make_parts(n, d, dtype, seed, n_products=0 if seed == 3 else 1)
        there = moved(parts)
        teach(table, state, there, {"lr": lr, "eps": 1e-12})
        teach_in_torch(twin, its, parts, {"lr": 0.05, "eps": 1e-12})
        assert_same(table, state, twin, its)
        for (left, right), (its_left, its_right) in zip(there.products, parts.products, strict=True):
            assert torch.equal(left.cpu(), its_left)
            assert torch.equal(right.cpu(), its_right)


@both_types
@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize(("n", "d", "v"), [(1, 16, 53), (33, 24, 53), (130, 256, 300), (64, 100, 128)])
def test_a_pass_teaches_all_rows(n: int, d: int, v: int, rate: str, dtype: torch.dtype) -> None:
    from livelm.optim.deferred_cuda import teach_all

    generator = torch.Generator().manual_seed(n)
    left, right = torch.rand(n, v, generator=generator), torch.randn(n, d, generator=generator) / n
    left[:, 5] = 0
    left, right = left.to(dtype), right.to(dtype)
    twin = torch.randn(v, d, generator=generator).to(dtype)
    table, lr = twin.to(DEVICE, copy=True), 0.05
    own: Any = table if dtype == torch.float32 else table.float()
    its = {"predicted": torch.rand(v, generator=generator)} | ({} if own is table else {"master": twin.float()})
    total = its["predicted"].to(DEVICE, copy=True)
    settings = {"lr": lr if rate == "number" else torch.tensor(lr, device=DEVICE), "eps": 1e-12}
    teach_all(table, own, total, (left.to(DEVICE), right.to(DEVICE)), settings)
    _descend(twin, its, "predicted", slice(0, v), left.float().T @ right.float(), settings | {"lr": lr})
    torch.testing.assert_close(total.cpu(), its["predicted"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.cpu(), its.get("master", twin), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table.cpu(), twin, rtol=1e-4 if dtype == torch.float32 else 2**-7, atol=1e-5)


def test_factors_may_lie_any_way_round() -> None:
    results = []
    for turn in (lambda x: x, lambda x: x.T.contiguous().T):
        table, parts = make_table(24, torch.float32).to(DEVICE), moved(make_parts(9, 24, torch.float32, 0))
        parts.products = [(turn(left), turn(right)) for left, right in parts.products]
        parts.rows = [(rows, turn(values)) for rows, values in parts.rows]
        teach(table, make_state(table), parts, {"lr": 0.05, "eps": 1e-12})
        results.append((table, parts.products[0][0]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_rows_without_a_gradient_stay() -> None:
    table, parts = make_table(24, torch.float32).to(DEVICE), moved(make_parts(9, 24, torch.float32, 0))
    kept = table.clone()
    for tensor in (parts.products[0][0], parts.rows[0][1], parts.reads[0][1], parts.reads[1][1]):
        tensor.zero_()
    teach(table, make_state(table), parts, {"lr": 0.05, "eps": 1e-12})
    assert torch.equal(table, kept)


@both_types
@pytest.mark.parametrize("n_products", [1, 2])
def test_the_optimizer_learns_the_same(n_products: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from livelm.optim import deferred_cuda

    def kernels(table: Tensor, products: list[Any]) -> Any:
        return deferred_cuda if table is fast and len(products) < 2 else None

    monkeypatch.setattr(deferred, "_kernels", kernels)
    twin = torch.nn.Parameter(make_table(24, dtype))
    fast = torch.nn.Parameter(twin.detach().to(DEVICE, copy=True))
    optimizers = [DeferredAdagrad([{"params": [table], "lr": 0.05}], every=4) for table in (fast, twin)]
    for seed in range(9):
        parts = make_parts(9, 24, dtype, seed, n_products=n_products)
        fast.gradient_parts, twin.gradient_parts = moved(parts), parts  # type: ignore[attr-defined]
        for optimizer in optimizers:
            optimizer.step()
    state, its = optimizers[0].state[fast], optimizers[1].state[twin]
    assert state["n_waiting"] == its["n_waiting"] == 1
    # the long product is rounded to the type of the table, and each device adds in its own order
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fast.detach().cpu(), twin.detach(), rtol=limit, atol=limit)
    for role in ("predicted", "read"):
        torch.testing.assert_close(state[role].cpu(), its[role], rtol=limit, atol=limit)


@pytest.mark.parametrize(("sizes", "together"), [([4] * 5, True), ([4, 2, 3, 1], True), ([1, 3, 9], False)])
def test_factors_are_kept_one_after_another_where_there_is_room(sizes: list[int], together: bool) -> None:
    pieces = [torch.randn(n, 7) for n in sizes]
    memory = deferred._Memory(pieces[0], 5)
    for _ in range(2):  # the second time where it was the first time
        kept = [memory.copy(piece, i == 0) for i, piece in enumerate(pieces)]
        assert all(torch.equal(one, other) for one, other in zip(kept, pieces, strict=True))
        stacked = deferred._stacked(kept)
        assert torch.equal(stacked, torch.cat(pieces))
        assert (stacked.data_ptr() == kept[0].data_ptr()) == together
    resumed = deferred._copy(kept[:2], torch.device("cpu"))
    resumed.append(deferred._Memory(pieces[0], 5).copy(pieces[0], False))  # elsewhere than those before it
    assert torch.equal(deferred._stacked(resumed), torch.cat([*pieces[:2], pieces[0]]))


def test_practice_leaves_alone_what_waits() -> None:
    table = torch.nn.Parameter(make_table(24, torch.float32).to(DEVICE))
    optimizer = DeferredAdagrad([{"params": [table], "lr": 0.05}], every=4)
    for seed in range(2):
        table.gradient_parts = moved(make_parts(9, 24, torch.float32, seed))  # type: ignore[attr-defined]
        optimizer.step()
    state = optimizer.state[table]
    waiting = list(zip(state["left"], state["right"], strict=True))
    state["left"], state["right"] = [], []
    for factors in waiting:  # as on a card, whatever this is
        left, right = optimizer._copied(table, factors, 4)
        state["left"].append(left)
        state["right"].append(right)
    kept = {name: [tensor.clone() for tensor in state[name]] for name in ("left", "right")}
    table.gradient_parts = moved(make_parts(9, 24, torch.float32, 2))  # type: ignore[attr-defined]
    optimizer.practise_later()
    assert state["n_waiting"] == 2
    for name, tensors in kept.items():
        assert all(torch.equal(one, other) for one, other in zip(state[name], tensors, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
@both_types
def test_a_captured_step_is_a_plain_one(dtype: torch.dtype) -> None:
    tables = [torch.nn.Parameter(make_table(24, dtype).to(DEVICE)) for _ in range(2)]
    lr = torch.tensor(0.05, device=DEVICE)
    plain, captured = (DeferredAdagrad([{"params": [table], "lr": lr}], every=99) for table in tables)
    held = moved(make_parts(9, 24, dtype, 0))
    tables[1].gradient_parts = held  # type: ignore[attr-defined]
    captured._state_of(tables[1])  # what the first step makes is not taken back
    Grouped([captured]).practise()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step_now()
    for seed in range(5):
        parts = moved(make_parts(9, 24, dtype, seed))
        for pairs, its in zip(all_of(held), all_of(parts), strict=True):
            for pair, other in zip(pairs, its, strict=True):
                for tensor, value in zip(pair, other, strict=True):
                    tensor.copy_(value)
        graph.replay()
        tables[0].gradient_parts = parts  # type: ignore[attr-defined]
        plain.step_now()
        assert torch.equal(*tables)
        assert torch.equal(held.products[0][0], parts.products[0][0])
