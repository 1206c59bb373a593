"""Kernels for lists of tensors do what torch does to each: on a CUDA device if there is one, else interpreted."""

import math
from typing import Any

import pytest
import torch
from tests.interpreted import DEVICE, both_types, round_as_cards_do
from torch import Tensor

pytest.importorskip("triton", reason="the kernels for CUDA need Triton")
from livelm.kernels import many_tensors
from livelm.models.ops.look_up_cuda import look_up
from livelm.optim import adamw_cuda

SHAPES = [(3, 5), (100, 100), (7,), (many_tensors.PIECE,), (2, many_tensors.PIECE), (1,), (90, 100)]


def make(seed: int, shapes: Any = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


@pytest.mark.parametrize("most", [1.0, 1e6])
@pytest.mark.parametrize("n", [1, 7, 130])
def test_gradients_are_clipped_as_torch_does(n: int, most: float) -> None:
    shapes = (SHAPES * 20)[:n] if n < 130 else [(3, 5)] * n
    gradients = make(0, shapes)
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    assert many_tensors.fit(gradients)
    norm = many_tensors.clip(gradients, most)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(parameters, most))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_broken_gradient_has_no_length() -> None:
    gradients = make(0)
    gradients[2][3] = math.nan
    assert math.isnan(float(many_tensors.clip(gradients, 1.0)))


def test_tensors_of_any_type_are_copied_bit_for_bit() -> None:
    sources = [*make(1), torch.tensor([1 << 40, -1], device=DEVICE), torch.tensor([math.nan, -0.0], device=DEVICE)]
    targets = [torch.zeros_like(source) for source in sources]
    many_tensors.copy(sources, targets)
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(source.view(torch.int32), target.view(torch.int32))


def test_what_does_not_lie_flat_does_not_fit() -> None:
    assert many_tensors.fit(make(0))
    assert not many_tensors.fit([])
    assert not many_tensors.fit([torch.zeros(3, 4).T])
    assert not many_tensors.fit([torch.zeros(3, dtype=torch.bfloat16)])
    assert not many_tensors.fit([torch.zeros(1, device="meta").expand(many_tensors.LARGE)])


def optimizer_of(parameters: list[Any], rate: float) -> torch.optim.AdamW:
    groups = [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:]}]
    lr: Any = torch.tensor(rate, device=DEVICE)
    options: dict[str, Any] = {"fused": True, "capturable": DEVICE == "cuda"}
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, **options)


def test_adamw_is_the_one_of_torch() -> None:
    twins = [[torch.nn.Parameter(tensor) for tensor in make(2)] for _ in range(2)]
    plain, fast = (optimizer_of(parameters, 1e-2) for parameters in twins)
    for seed in range(5):
        for parameters in twins:
            for parameter, gradient in zip(parameters, make(seed), strict=True):
                parameter.grad = gradient
        plain.step()
        if seed:  # the first makes the state
            assert adamw_cuda.takes(fast)
            adamw_cuda.step(fast)
        else:
            assert not adamw_cuda.takes(fast)
            fast.step()
    for one, other in zip(*twins, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
        for name, value in plain.state[one].items():
            torch.testing.assert_close(fast.state[other][name], value, rtol=1e-5, atol=1e-7)


def test_adamw_leaves_what_it_does_not_know_to_torch() -> None:
    parameters = [torch.nn.Parameter(tensor) for tensor in make(2)]
    optimizer = optimizer_of(parameters, 1e-2)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert adamw_cuda.takes(optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    assert not adamw_cuda.takes(optimizer)
    optimizer.param_groups[0]["amsgrad"] = False
    parameters[4].grad = None
    assert not adamw_cuda.takes(optimizer)


@both_types
@pytest.mark.parametrize(("shape", "d"), [((1, 32), 256), ((2, 3), 5)])
def test_rows_are_looked_up(
    shape: tuple[int, int], d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_as_cards_do(monkeypatch)
    table = torch.randn(67, d, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    tokens = torch.randint(67, shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    assert torch.equal(look_up(table, tokens, 4.0), table[tokens].float() * 4.0)
