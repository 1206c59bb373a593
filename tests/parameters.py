"""Parameters and gradients for tests of what optimizers do to them."""

from typing import Any

import torch
from torch import nn

SHAPES = [(3, 5), (64,), (1,), (7, 33), (0, 4), (2, 3, 4), (130,), (100, 100), ()]


def make(seed: int, shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give(parameters: list[nn.Parameter], seed: int, *, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("this was to be done the other way")
