"""Division by the length, and the squared rectifier, equal PyTorch's own: values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from livelm.models.ops.pointwise import squared_relu, squared_relu_reference, unit, unit_reference


def differentiate(compute: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = compute(x)
    return [y.detach(), *torch.autograd.grad((y * torch.arange(y.shape[-1]).cos()).sum(), x)]


@pytest.mark.parametrize("shape", [(7,), (1, 2), (3, 5, 8), (2, 1, 4, 63)], ids=str)
@pytest.mark.parametrize("size", [0.01, 1.0, 1e4])
def test_both_equal_their_references(shape: tuple[int, ...], size: float) -> None:
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for fast, plain in ((unit, unit_reference), (squared_relu, squared_relu_reference)):
        for a, b in zip(differentiate(fast, x), differentiate(plain, x), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6 * max(1.0, 1 / size, float(b.abs().max())))


def test_rows_of_zeros_stay_zero_with_finite_gradients() -> None:
    y, gradient = differentiate(unit, torch.zeros(2, 4))
    assert (y == 0).all()
    assert gradient.isfinite().all()


def test_half_precision_goes_to_pytorchs_own() -> None:
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert torch.equal(unit(x), unit_reference(x))
