"""The walk in Triton equals the softmax in float64: on a CUDA device, or else on the CPU under Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from tests.interpreted import DEVICE, both_types, round_as_cards_do
from torch import Tensor, nn

from livelm.kernels import kernels
from livelm.models.ops import token_table
from livelm.models.ops.token_table import TokenTable, _way_through, gradient_parts

pytest.importorskip("triton", reason="the kernels for CUDA need Triton")
from livelm.models.ops import softmax_walk_cuda
from livelm.models.ops.softmax_walk_cuda import CLAMP, WalkedNats, grade_on_cuda

on_card = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
Found = dict[str, Tensor]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five multiprocessors where there are none."""
    round_as_cards_do(monkeypatch)
    if DEVICE == "cpu":
        monkeypatch.setattr(softmax_walk_cuda, "n_multiprocessors", lambda device: 5)


def example(n: int, v: int, d: int, dtype: torch.dtype, *, std: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that bfloat16 holds exactly, a table and targets, which repeat."""
    generator = torch.Generator().manual_seed(n * v + d)
    h = torch.randn(n, d, generator=generator).bfloat16().float()
    weight = (torch.randn(v, d, generator=generator) * std).to(dtype)
    return h.to(DEVICE), weight.to(DEVICE), torch.randint(v // 3, v, (n,), generator=generator).to(DEVICE)


def walk(h: Tensor, weight: Tensor, targets: Tensor) -> Found:
    """Scores and gradients, tokens weighted unevenly."""
    table, h = nn.Parameter(weight.clone()), h.clone().requires_grad_()
    nats: Tensor = WalkedNats.apply(h, table, targets)  # type: ignore[assignment]
    (nats * uneven(nats)).sum().backward()
    assert h.grad is not None
    assert table.grad is None
    parts = gradient_parts(table)
    ((left, right),) = parts.products
    assert left.dtype == right.dtype == weight.dtype
    assert left.shape == (len(h), len(weight))
    assert left.is_contiguous()
    return {"nats": nats.detach(), "h": h.grad, "weight": parts.dense(table)}


def truth(h: Tensor, weight: Tensor, targets: Tensor) -> Found:
    """The same in float64 by autograd."""
    h, table = h.double().requires_grad_(), weight.double().requires_grad_()
    nats = F.cross_entropy(h @ table.T, targets, reduction="none")
    (nats * uneven(nats)).sum().backward()
    assert h.grad is not None
    assert table.grad is not None
    return {"nats": nats.detach(), "h": h.grad, "weight": table.grad}


def uneven(nats: Tensor) -> Tensor:
    return torch.arange(len(nats), device=nats.device).cos().to(nats.dtype) / len(nats)


def assert_near(found: Found, true: Found, dtype: torch.dtype) -> None:
    """Within float32 rounding, or within bfloat16 rounding (2^-8) of the largest element."""
    limit = 1e-5 if dtype == torch.float32 else 2**-8
    for name, plain in true.items():
        assert (found[name] - plain).abs().max() <= limit * max(1e-3, plain.abs().max().item()), name


@both_types
@pytest.mark.parametrize(
    ("n", "v", "d"),
    [
        (1, 1000, 64),
        (5, 1031, 128),
        (31, 1000, 256),
        (32, 1024, 256),
        (32, 1031, 64),
        (33, 1000, 64),
        (128, 1031, 128),
        (7, 301, 16),
        (7, 301, 48),
        (3, 40, 10),
    ],
)
def test_scores_and_gradients_equal_the_truth(n: int, v: int, d: int, dtype: torch.dtype) -> None:
    given = example(n, v, d, dtype)
    assert_near(walk(*given), truth(*given), dtype)


@both_types
@pytest.mark.parametrize("n_programs", [1, 3, 16, 40])
def test_any_number_of_programs_finds_the_same(
    n_programs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax_walk_cuda, "n_multiprocessors", lambda device: n_programs)
    given = example(33, 1031, 64, dtype)  # 17 blocks of rows
    found = walk(*given)
    assert_near(found, truth(*given), dtype)
    again = walk(*given)
    assert all(torch.equal(found[name], again[name]) for name in found)


@both_types
def test_sums_are_of_what_exponentials_were_rounded_to(dtype: torch.dtype) -> None:
    h, weight, targets = example(32, 1031, 64, dtype)
    graded = grade_on_cuda(h, weight, targets, back=True)
    exps = graded.exps.double()
    exact = exps.scatter(1, targets[:, None], 1.0)
    torch.testing.assert_close(graded.total.double(), exact.sum(dim=1), rtol=1e-6, atol=0)
    assert graded.back is not None
    torch.testing.assert_close(graded.back.double(), exps @ weight.double(), rtol=1e-4, atol=1e-3)
    shift = (h.double() * weight[targets].double()).sum(dim=1, keepdim=True)
    rounding = 5e-5 if dtype == torch.float32 else 2**-8  # cards cut what tf32x3 leaves over
    torch.testing.assert_close(exps, (h.double() @ weight.double().T - shift).exp(), rtol=rounding, atol=0)


@both_types
def test_a_target_far_below_the_best_stays_finite(dtype: torch.dtype) -> None:
    h, weight, targets = example(5, 301, 64, dtype, std=0.01)
    weight[:100] = 100 * h[0].sign() / h[0].abs().sum()  # each some 100 above the rest, and 200 above
    weight[targets[0]] = -weight[0]
    assert truth(h, weight, targets)["nats"][0] > 150
    found = walk(h, weight, targets)
    assert found["nats"][0] >= CLAMP
    assert all(value.isfinite().all() for value in found.values())


@both_types
def test_extreme_scores_stay_finite(dtype: torch.dtype) -> None:
    h, weight, targets = example(33, 1000, 64, dtype, std=30.0)
    assert all(value.isfinite().all() for value in walk(h * 100, weight, targets).values())


@both_types
def test_states_that_are_not_numbers_are_scored_as_such(dtype: torch.dtype) -> None:
    h, weight, targets = example(7, 301, 64, dtype)
    h[3] = torch.nan
    graded = grade_on_cuda(h, weight, targets, back=True)
    assert graded.back is not None
    for value in (graded.nats, graded.total, graded.back.sum(dim=1)):
        assert value.isfinite().tolist() == [i != 3 for i in range(7)]


@both_types
def test_no_uninitialised_memory_is_read(dtype: torch.dtype) -> None:
    given = example(33, 1031, 48, dtype)
    torch.use_deterministic_algorithms(True)  # which fills memory, and changes the order in which torch adds up
    found = []
    try:
        for fill in (False, True):
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]  # with NaN
            found.append(walk(*given))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@both_types
def test_a_walk_without_the_way_back_grades_the_same(dtype: torch.dtype) -> None:
    h, weight, targets = example(33, 1000, 64, dtype)
    table = nn.Parameter(weight)
    nats: Tensor = WalkedNats.apply(h, table, targets)  # type: ignore[assignment]
    nats.sum().backward()  # whose gradient is one number for all
    torch.testing.assert_close(nats, grade_on_cuda(h, weight, targets, back=True).nats)
    probabilities = (h.double() @ weight.double().T).softmax(dim=1)
    probabilities[torch.arange(33, device=DEVICE), targets] -= 1
    found, true = gradient_parts(table).dense(table), probabilities.T @ h.double()
    assert_near({"weight": found}, {"weight": true}, dtype)


@on_card
@both_types
def test_a_large_table_on_a_card_is_walked(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_table, "WALKED", 0)
    table = TokenTable(1031, 64, std=0.3, dtype=dtype).to(DEVICE)
    h, _, targets = example(150, 1031, 64, dtype)
    assert _way_through(table.weight) is not WalkedNats
    with kernels(True):
        assert _way_through(table.weight) is WalkedNats
        nats = table.nats(h, targets)
    assert_near({"nats": nats}, {"nats": truth(h, table.weight.detach(), targets)["nats"]}, dtype)


@on_card
@both_types
def test_a_captured_walk_equals_a_plain_one(dtype: torch.dtype) -> None:
    h, weight, targets = example(32, 20_000, 256, dtype, std=0.1)
    read = torch.zeros_like(h)
    walk(read, weight, targets)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = grade_on_cuda(read, weight, targets, back=True)
    read.copy_(h)
    graph.replay()
    plain = grade_on_cuda(h, weight, targets, back=True)
    for name in ("nats", "exps", "total", "back"):
        assert torch.equal(getattr(captured, name), getattr(plain, name))
