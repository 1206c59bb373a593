"""AdamW in a compiled pass is the one of torch, which does what is not for it."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.parameters import SHAPES, give, make, refuse
from torch import nn

from livelm.optim import adamw_compiled
from livelm.optim.adamw import DenseAdamW


def adamw(kind: type[torch.optim.AdamW], parameters: list[nn.Parameter], **options: Any) -> torch.optim.AdamW:
    groups = [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:], "eps": 1e-4}]
    return kind(groups, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0, fused=True, **options)


FILLED = [shape for shape in SHAPES if 0 not in shape]


def both(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Twins: the weights and the optimizer of torch, and ours."""
    weights, twins = make(0, FILLED, dtype), make(0, FILLED, dtype)
    return weights, adamw(DenseAdamW, weights, **options), twins, adamw(torch.optim.AdamW, twins, **options)


def check(weights: Any, optimizer: Any, twins: Any, plain: Any) -> None:
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6)
        assert optimizer.state[weight].keys() == plain.state[twin].keys()
        for name, value in plain.state[twin].items():
            found = optimizer.state[weight][name]
            assert found.dtype == value.dtype
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-7)


def count(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """A list that grows with every call."""
    calls: list[Any] = []
    own = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: (calls.append(arguments), own(*arguments))[1])
    return calls


def test_adamw_is_the_one_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, optimizer, twins, plain = both()
    compiled = count(monkeypatch, adamw_compiled, "_step")
    for seed in range(12):
        for each, its in ((weights, optimizer), (twins, plain)):
            give(each, seed)
            if seed == 4:  # torch skips what has no gradient
                each[2].grad = each[4].grad = None
            if seed == 6:  # a schedule
                its.param_groups[1]["lr"] = 3e-3
            its.step()
    check(weights, optimizer, twins, plain)
    assert float(optimizer.state[weights[2]]["step"]) == 11
    assert len(compiled) == 11  # all but the first, which makes the state


def test_a_weight_whose_gradient_comes_late_learns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, optimizer, twins, plain = both()
    compiled = count(monkeypatch, adamw_compiled, "_step")
    for seed in range(8):
        for each, its in ((weights, optimizer), (twins, plain)):
            give(each, seed)
            if seed < 4:
                each[5].grad = None
            its.step()
        assert (weights[5] in optimizer.state) == (seed >= 4)
    check(weights, optimizer, twins, plain)
    assert float(optimizer.state[weights[5]]["step"]) == 4
    assert len(compiled) == 6


def test_a_gradient_that_is_not_finite_spoils_what_it_spoils_in_torch() -> None:
    weights, optimizer, twins, plain = both()
    for seed in range(3):
        for each, its in ((weights, optimizer), (twins, plain)):
            give(each, seed)
            if seed == 2:
                each[0].grad[0, 1], each[1].grad[5] = math.nan, math.inf
            its.step()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("how", ["loaded", "moved", "copied", "more"])
def test_adamw_goes_on_where_its_tensors_are_now(how: str) -> None:
    weights, optimizer, twins, plain = both()
    more = make(5, [(4, 4)]), make(5, [(4, 4)])
    for seed in range(6):
        if seed == 3:
            if how == "loaded":
                optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
            elif how == "moved":
                for weight in weights:
                    weight.data = weight.data.clone()
            elif how == "copied":
                weights, optimizer = deepcopy((weights, optimizer))
            else:
                for each, its, its_more in ((weights, optimizer, more[0]), (twins, plain, more[1])):
                    its.add_param_group({"params": its_more, "lr": 1e-2})
                    each.extend(its_more)
        for each, its in ((weights, optimizer), (twins, plain)):
            give(each, seed)
            its.step()
    check(weights, optimizer, twins, plain)


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    weights, optimizer, *_ = both()
    for seed in range(4):
        give(weights, seed)
        optimizer.step()
    others = deepcopy(weights)
    other = adamw(DenseAdamW, others)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for seed in range(4, 8):
        for each, its in ((weights, optimizer), (others, other)):
            give(each, seed)
            its.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("kind", ["amsgrad", "maximize", "float64", "transposed"])
def test_other_adamws_are_left_to_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {kind: True} if kind in ("amsgrad", "maximize") else {}
    twins = both(torch.float64 if kind == "float64" else torch.float32, **options)
    monkeypatch.setattr(adamw_compiled, "_step", refuse)
    for seed in range(4):
        for each, its in (twins[:2], twins[2:]):
            give(each, seed)
            if kind == "transposed":
                each[0].grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).T
            its.step()
    check(*twins)


def test_a_graph_from_before_a_step_is_not_differentiated() -> None:
    (weight,) = make(0, [(3, 3)])
    optimizer = DenseAdamW([weight], fused=True)
    for _ in range(2):
        loss = (torch.ones(2, 3, requires_grad=True) @ weight).sum()
        weight.grad = torch.ones(3, 3)
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
