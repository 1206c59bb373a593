"""The fast token table and its deferred optimizer equal their slow twins: scores, gradients, tables after updates."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from livelm.errors import ContractError
from livelm.models.ops import token_table
from livelm.models.ops.softmax_walk import SLICE_ROWS, softmax_walk, softmax_walk_reference, walkable
from livelm.models.ops.token_table import N_AT_ONCE, GradientParts, TokenTable, gradient_parts, nats_reference
from livelm.optim.deferred import DeferredAdagrad, DeferredReference

V, D = 301, 16
TYPES = [torch.float32, torch.bfloat16]
odd_sizes = pytest.mark.parametrize("n", [1, 7, 63, 100, N_AT_ONCE + 1])
both_types = pytest.mark.parametrize("dtype", TYPES)


@pytest.fixture(autouse=True, params=["by products", "walked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds for both ways through a table."""
    monkeypatch.setattr(token_table, "WALKED", 0 if request.param == "walked" else 1 << 60)


def make_table(dtype: torch.dtype, *, std: float = 0.3) -> TokenTable:
    torch.manual_seed(0)
    return TokenTable(V, D, std=std, scale=3.0, dtype=dtype)


def examples(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that bfloat16 holds exactly, targets and tokens read; both with repeats."""
    generator = torch.Generator().manual_seed(seed * 1000 + n)
    h = torch.randn(n, D, generator=generator).bfloat16().float()
    targets = torch.randint(V // 3, (n,), generator=generator)
    return h, targets, torch.randint(V // 2, (n,), generator=generator)


def backward(table: TokenTable, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One update's gradients, tokens weighted unevenly; returns the scores and the gradient of h."""
    h, targets, tokens = examples(n, seed)
    h.requires_grad_()
    nats = table.nats(h, targets)
    weights = torch.arange(n).cos().div(n)
    ((nats * weights).sum() + (table(tokens).sin() * weights[:, None]).sum()).backward()
    assert h.grad is not None
    return nats.detach(), h.grad


def backward_reference(table: TokenTable, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by autograd in float32: scores, then gradients of h, the output matrix and the embedding."""
    h, targets, tokens = examples(n, seed)
    h.requires_grad_()
    output, embedding = (table.weight.detach().float().requires_grad_() for _ in range(2))
    nats = nats_reference(h, output, targets)
    weights = torch.arange(n).cos().div(n)
    ((nats * weights).sum() + ((3.0 * embedding[tokens]).sin() * weights[:, None]).sum()).backward()
    assert h.grad is not None
    assert output.grad is not None
    assert embedding.grad is not None
    return nats.detach(), h.grad, output.grad, embedding.grad


def assert_near(fast: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    """Within float32 rounding, or within bfloat16 rounding (2^-8) of the largest element."""
    limit = 1e-5 if dtype == torch.float32 else 2**-8
    assert (fast.float() - plain).abs().max() <= limit * max(1e-3, plain.abs().max().item())


@odd_sizes
@both_types
def test_scores_and_gradients_equal_the_reference(n: int, dtype: torch.dtype) -> None:
    table = make_table(dtype)
    nats, grad = backward(table, n)
    plain_nats, plain_grad, output, embedding = backward_reference(table, n)
    assert_near(nats, plain_nats, dtype)
    assert_near(grad, plain_grad, dtype)
    assert_near(gradient_parts(table.weight).dense(table.weight), output + embedding, dtype)
    assert table.weight.grad is None


@both_types
def test_first_scores_are_uniform(dtype: torch.dtype) -> None:
    h, targets, _ = examples(100)
    nats = make_table(dtype, std=0.001).nats(h, targets)
    assert (nats - torch.tensor(V).log()).abs().max() < 0.02


@both_types
def test_scores_over_the_vocabulary_sum_to_one(dtype: torch.dtype) -> None:
    table = make_table(dtype, std=1.0)
    h = examples(1)[0].expand(V, D)
    assert abs(table.nats(h, torch.arange(V)).neg().exp().sum().item() - 1) < 2e-3


@both_types
def test_logits_give_the_graded_scores(dtype: torch.dtype) -> None:
    table = make_table(dtype)
    h, targets, _ = examples(63)
    from_logits = torch.nn.functional.cross_entropy(table.logits(h), targets, reduction="none")
    assert_near(table.nats(h, targets), from_logits, dtype)


def test_extreme_logits_stay_finite() -> None:
    table = make_table(torch.bfloat16, std=30.0)
    h, targets, _ = examples(63)
    h = (h * 100).requires_grad_()
    nats = table.nats(h, targets)
    nats.mean().backward()
    assert nats.isfinite().all()
    assert h.grad is not None
    assert h.grad.isfinite().all()
    assert gradient_parts(table.weight).dense(table.weight).isfinite().all()


def test_scoring_leaves_no_gradient() -> None:
    table = make_table(torch.bfloat16)
    h, targets, tokens = examples(7)
    with torch.no_grad():
        table.nats(h, targets)
        table(tokens)
    assert gradient_parts(table.weight) == GradientParts() or not gradient_parts(table.weight).products


@pytest.mark.parametrize("sizes", [[32] * 9, [1, 7, 63, 100, 7, 1, 1]])
@pytest.mark.parametrize("every", [1, 4])
def test_deferred_updates_equal_the_dense_reference(sizes: list[int], every: int) -> None:
    table = make_table(torch.float32)
    optimizer = build(table, every)
    twin = DeferredReference(table.weight, rate=0.05, every=every)
    for seed, n in enumerate(sizes):
        _, _, output, embedding = backward_reference(table, n, seed)
        backward(table, n, seed)
        optimizer.step()
        at_once = torch.zeros(V, dtype=torch.bool).index_fill(0, examples(n, seed)[1], True)
        twin.step(output, at_once, embedding)
        torch.testing.assert_close(table.weight.detach(), twin.table, rtol=1e-4, atol=1e-4)


def test_bfloat16_updates_stay_near_the_dense_reference() -> None:
    table = make_table(torch.bfloat16)
    optimizer = build(table, every=4)
    start = table.weight.detach().float().clone()
    twin = DeferredReference(table.weight, rate=0.05, every=4)
    for seed in range(9):
        _, _, output, embedding = backward_reference(table, 63, seed)
        backward(table, 63, seed)
        optimizer.step()
        at_once = torch.zeros(V, dtype=torch.bool).index_fill(0, examples(63, seed)[1], True)
        twin.step(output, at_once, embedding)
    master = optimizer.state[table.weight]["master"]
    assert torch.equal(master.to(torch.bfloat16), table.weight)
    assert (master - twin.table).norm() < 0.02 * (twin.table - start).norm()


def test_predicted_rows_learn_at_once_and_others_later() -> None:
    table = make_table(torch.float32)
    optimizer = build(table, every=3)
    _, targets, tokens = examples(7)
    at_once = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.cat([targets, tokens]), True)
    start = table.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        backward(table, 7)
        optimizer.step()
        moved = (table.weight != start).any(dim=1)
        assert torch.equal(moved, at_once if step < 2 else torch.ones_like(moved))


def test_extreme_logits_of_a_walked_table_stay_finite() -> None:
    table = make_table(torch.float32, std=30.0)
    h, targets, _ = examples(63)
    h = (h * 100).requires_grad_()
    nats = table.nats(h, targets)
    nats.mean().backward()
    torch.testing.assert_close(nats, nats_reference(h, table.weight, targets), rtol=1e-5, atol=1e-2)
    assert h.grad is not None
    assert h.grad.isfinite().all()
    assert gradient_parts(table.weight).dense(table.weight).isfinite().all()


@both_types
@pytest.mark.parametrize("n", [1, 16, 33])
def test_a_walk_equals_its_products_with_any_number_of_threads(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(2 * SLICE_ROWS + 5, 10, generator=generator).to(dtype)
    if not walkable(weight):
        pytest.skip("this processor does not multiply pairs of bfloat16, so nothing walks such a table")
    h = torch.randn(n, 10, generator=generator).to(dtype)
    used = torch.full((-(-n // 32) * 32, len(weight)), torch.nan, dtype=dtype)
    shift = h.float() @ weight[3].float()
    n_threads, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(softmax_walk(h, weight, shift, [used.T.contiguous().T], back=True))
    finally:
        torch.set_num_threads(n_threads)
    alone, together = ((f.exps, f.totals, f.back) for f in found)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    truth = softmax_walk_reference(h.double(), weight.double(), shift.double())
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    for fast, plain in zip(alone, truth, strict=True):
        torch.testing.assert_close(
            fast.double(), plain, rtol=max(1e-4, rounding), atol=rounding / 10 * plain.abs().max().item()
        )
    assert torch.allclose(alone[0].double().sum(dim=1), alone[1].double(), rtol=1e-5)  # of what was rounded


@both_types
def test_states_that_are_not_numbers_are_scored_as_such(dtype: torch.dtype) -> None:
    h, targets, _ = examples(7)
    h[3] = torch.nan
    nats = make_table(dtype).nats(h, targets)
    assert nats.isfinite().tolist() == [i != 3 for i in range(7)]


def test_an_ordinary_gradient_is_refused() -> None:
    table = make_table(torch.float32)
    optimizer = build(table, every=1)
    table.weight.sum().backward()
    with pytest.raises(ContractError, match="dense gradient"):
        optimizer.step()


def test_dropping_a_gradient_keeps_what_waits() -> None:
    tables = [make_table(torch.bfloat16) for _ in range(2)]
    for table, refused in zip(tables, [False, True], strict=True):
        optimizer = build(table, every=2)
        backward(table, 7, seed=1)
        optimizer.step()
        if refused:
            optimizer.zero_grad()
            backward(table, 63, seed=5)
        optimizer.zero_grad()
        backward(table, 7, seed=2)
        optimizer.step()
    assert torch.equal(tables[0].weight, tables[1].weight)


@both_types
def test_resuming_equals_never_stopping(dtype: torch.dtype) -> None:
    table, resumed = make_table(dtype), make_table(dtype)
    optimizer, other = build(table, every=4), build(resumed, every=4)
    for seed in range(6):  # two updates wait
        optimizer.zero_grad()
        backward(table, 7, seed)
        optimizer.step()
    resumed.load_state_dict(deepcopy(table.state_dict()))
    saved = deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    for seed in range(6, 13):
        for one, its in ((table, optimizer), (resumed, other)):
            its.zero_grad()
            backward(one, 7, seed)
            its.step()
    assert torch.equal(table.weight, resumed.weight)
    assert len(saved["state"][0]["left"]) == 2  # the snapshot itself was not eaten


@both_types
def test_no_uninitialised_memory_is_read(dtype: torch.dtype) -> None:
    results: list[tuple[Tensor, ...]] = []
    for fill in (False, True):
        torch.use_deterministic_algorithms(fill)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # with NaN
        try:
            table = make_table(dtype)
            optimizer = build(table, every=2)
            for seed in range(4):
                optimizer.zero_grad()
                results.append(backward(table, 63, seed))
                optimizer.step()
            results.append((table.weight.detach().clone(),))
        finally:
            torch.use_deterministic_algorithms(False)
    for plain, filled in zip(results[:5], results[5:], strict=True):
        assert all(one.isfinite().all() for one in filled)
        torch.testing.assert_close(filled, plain)


def test_a_learned_pattern_is_predicted() -> None:
    table = make_table(torch.bfloat16, std=0.02)
    optimizer = build(table, every=4)
    h, _, _ = examples(32)
    targets = torch.arange(32)
    for _ in range(60):
        optimizer.zero_grad()
        table.nats(h.clone().requires_grad_(), targets).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert table.nats(h, targets).mean() < 1.0


def build(table: TokenTable, every: int) -> DeferredAdagrad:
    return DeferredAdagrad([{"params": [table.weight], "lr": 0.05}], every=every)
