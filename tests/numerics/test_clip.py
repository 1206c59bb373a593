"""Gradients are clipped in a compiled pass as torch does it, and by torch where they lie otherwise."""

import math
from typing import Any

import pytest
import torch
from tests.parameters import SHAPES, give, make, refuse
from torch import nn

from livelm.compiled.addresses import MOST
from livelm.optim import clip


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shapes", [SHAPES, [(5,)], [(64, 64)] * 30, [(0,)], []])
def test_gradients_are_clipped_as_torch_does(shapes: Any, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, twins = make(0, shapes), make(0, shapes)
    for each in (parameters, twins):
        give(each, 1)
        each.extend(make(2, [(3, 3)]))  # without a gradient
    expected = clip.clip_reference(twins, most)
    monkeypatch.setattr(clip, "clip_reference", refuse)
    assert clip.clip(parameters, most) == pytest.approx(expected, rel=1e-5)
    for parameter, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-5, atol=1e-9)


def test_a_short_gradient_stays_as_it_is() -> None:
    parameters = make(0)
    give(parameters, 1)
    before = [parameter.grad.clone() for parameter in parameters]  # type: ignore[union-attr]
    length = clip.clip(parameters, 1e6)
    assert clip.clip(parameters, 1.01 * length) == length
    assert all(torch.equal(p.grad, was) for p, was in zip(parameters, before, strict=True))  # type: ignore[arg-type]


def test_sparse_gradients_are_neither_counted_nor_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "clip_reference", refuse)
    table, weight = make(0, [(5, 2), (4,)])
    table.grad = torch.full((5, 2), 100.0).to_sparse(1)
    weight.grad = torch.full((4,), 3.0)
    assert clip.clip([table, weight], 1.0) == pytest.approx(6.0)
    assert torch.equal(table.grad._values(), torch.full((5, 2), 100.0))
    torch.testing.assert_close(weight.grad, torch.full((4,), 0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(0, 64, 7))
def test_a_gradient_that_is_not_finite_has_no_finite_length(bad: float, place: int) -> None:
    parameters = make(0)
    give(parameters, 1)
    parameters[1].grad[place] = bad  # type: ignore[index]
    assert not math.isfinite(clip.clip(parameters, 1.0))


def test_a_huge_gradient_has_a_length_and_is_clipped() -> None:
    (weight,) = make(0, [(100,)])
    weight.grad = torch.full((100,), 1e30)
    assert clip.clip([weight], 1.0) == pytest.approx(1e31)
    torch.testing.assert_close(weight.grad, torch.full((100,), 0.1))


def test_the_length_does_not_depend_on_where_the_gradient_lies() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    lengths = set()
    for shift in range(16):
        parameter = nn.Parameter(torch.zeros(1000))
        parameter.grad = torch.zeros(1016)[shift : shift + 1000].copy_(values)
        lengths.add(clip.clip([parameter], 1e6))
    assert len(lengths) == 1


@pytest.mark.parametrize("kind", ["transposed", "float64", "bfloat16", "large"])
def test_other_gradients_are_clipped_by_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    shapes = [(MOST + 1,)] if kind == "large" else [(3, 5), (4, 6)]
    parameters, twins = make(0, shapes, dtype), make(0, shapes, dtype)
    for each in (parameters, twins):
        give(each, 1)
        if kind == "transposed":
            each[1].grad = torch.arange(24.0).view(6, 4).T
    expected = float(nn.utils.clip_grad_norm_(twins, 1.0))
    monkeypatch.setattr(clip, "_scale", refuse)
    assert clip.clip(parameters, 1.0) == pytest.approx(expected, rel=1e-5)
    for parameter, twin in zip(parameters, twins, strict=True):
        assert torch.equal(parameter.grad, twin.grad)  # type: ignore[arg-type]
