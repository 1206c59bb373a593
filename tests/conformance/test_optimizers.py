"""What every optimizer of OPTIMIZERS promises."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from livelm.models import MODELS
from livelm.optim import OPTIMIZERS, set_rates
from livelm.optim.rows import RowAdagrad, adagrad_reference

every = pytest.mark.parametrize("name", list(OPTIMIZERS))


def build_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    kind = MODELS["transformer"]
    options = {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_bias": True, "ngrams": [2], "ngram_rows": 50}
    return kind(kind.Config.model_validate(options), 20)


def build(name: str, model: nn.Module):
    return OPTIMIZERS[name](OPTIMIZERS[name].Config(), model.parameter_kinds())  # type: ignore[operator]


def learn(model, optimizer, n_updates: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(n_updates):
        tokens = torch.randint(20, (1, 9), generator=generator)
        starts = torch.zeros(1, 8, dtype=torch.bool)
        nats, _ = model.nats(tokens[:, :-1], starts, tokens[:, 1:], model.init_state(1))
        optimizer.zero_grad()
        nats.mean().backward()
        optimizer.step()
        scores.append(nats.mean().item())
    return scores


@every
def test_every_parameter_is_in_one_group(name: str) -> None:
    model = build_model()
    held = [p for group in build(name, model).param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


@every
def test_every_parameter_moves(name: str) -> None:
    model = build_model()
    optimizer = build(name, model)
    before = {label: p.detach().clone() for label, p in model.named_parameters()}
    learn(model, optimizer, 3, seed=1)
    assert all(not torch.equal(before[label], p) for label, p in model.named_parameters())


@every
def test_rates_follow_the_schedule(name: str) -> None:
    model = build_model()
    optimizer = build(name, model)
    set_rates(optimizer, 0.25)
    assert all(group["lr"] == 0.25 * group["base_rate"] for group in optimizer.param_groups)
    set_rates(optimizer, 0.0)
    before = {label: p.detach().clone() for label, p in model.named_parameters()}
    learn(model, optimizer, 2, seed=1)
    assert all(torch.equal(before[label], p) for label, p in model.named_parameters())


@every
def test_all_gradients_are_dropped(name: str) -> None:
    shapes = {"matrix": (4, 4), "table": (5, 4), "vector": (4,), "rows": (6, 4), "deferred": (7, 4)}
    named: dict[str, Any] = {kind: nn.Parameter(torch.ones(shape)) for kind, shape in shapes.items()}
    kinds = {kind: [(kind, parameter)] for kind, parameter in named.items()}
    optimizer = OPTIMIZERS[name](OPTIMIZERS[name].Config(), kinds)
    cleared: list[int] = []
    named["deferred"].gradient_parts = type("Parts", (), {"clear": lambda _: cleared.append(1)})()
    for kind, parameter in named.items():
        parameter.grad = torch.ones_like(parameter).to_sparse(1) if kind == "rows" else torch.ones_like(parameter)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in named.values())
    assert cleared == [1]


@every
def test_a_step_that_is_practised_changes_nothing(name: str) -> None:
    model, twin = build_model(), build_model()
    optimizer, other = build(name, model), build(name, twin)
    for each, its in ((model, optimizer), (twin, other)):
        learn(each, its, 3, seed=1)
    for _ in range(2):
        optimizer.practise()
    assert learn(model, optimizer, 3, seed=2) == learn(twin, other, 3, seed=2)


@every
def test_state_survives_saving(name: str) -> None:
    model = build_model()
    optimizer = build(name, model)
    learn(model, optimizer, 4, seed=1)
    twin = build_model(seed=3)
    other = build(name, twin)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    assert learn(model, optimizer, 5, seed=2) == learn(twin, other, 5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@every
def test_state_bytes_are_reported(name: str) -> None:
    model = build_model()
    optimizer = build(name, model)
    learn(model, optimizer, 1, seed=1)
    n_rows = sum(p.numel() for _, p in model.parameter_kinds()["rows"])  # type: ignore[operator]
    n_matrix = sum(p.numel() for _, p in model.parameter_kinds()["matrix"])  # type: ignore[operator]
    n_rest = sum(p.numel() for p in model.parameters()) - n_rows - n_matrix
    floats = n_rows + 2 * n_rest + (n_matrix if name == "muon" else 2 * n_matrix)
    assert floats * 4 <= optimizer.state_bytes() <= floats * 4 + 1000  # and a step counter per tensor


def test_adamw_equals_its_formula() -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    expected = weight.detach().clone().double()
    config = OPTIMIZERS["adamw"].Config(rate=0.01, beta1=0.8, beta2=0.9, weight_decay=0.5)
    optimizer = OPTIMIZERS["adamw"](config, {"matrix": [("w", weight)], "table": [], "vector": []})
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(1, 6):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient.double() ** 2
        expected -= 0.01 * 0.5 * expected
        expected -= 0.01 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_looked_up", [1, 7, 63, 100])
def test_sparse_adagrad_equals_the_dense_one(n_looked_up: int) -> None:
    generator = torch.Generator().manual_seed(n_looked_up)
    table = nn.Parameter(torch.randn(30, 5, generator=generator))
    expected, total = table.detach().clone(), torch.zeros(30, 5)
    optimizer = RowAdagrad([{"params": [table], "lr": 0.1}])
    for _ in range(4):
        rows = torch.randint(30, (n_looked_up,), generator=generator)  # with repetitions
        values = torch.randn(n_looked_up, 5, generator=generator)
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        adagrad_reference(expected, total, table.grad.to_dense(), rate=0.1, eps=1e-8)
        optimizer.step()
    torch.testing.assert_close(table.detach(), expected)


def test_sparse_adagrad_takes_dense_gradients_too() -> None:
    table, twin = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    gradient = torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.5, 3.0]])
    table.grad, twin.grad = gradient, gradient.to_sparse(1)
    RowAdagrad([{"params": [table], "lr": 0.1}]).step()
    RowAdagrad([{"params": [twin], "lr": 0.1}]).step()
    torch.testing.assert_close(table, twin)
