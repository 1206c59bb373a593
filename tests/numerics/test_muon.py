"""Muon's quick orthogonalisation against singular value decomposition."""

import pytest
import torch
from torch import nn

from livelm.optim.muon import MuonConfig, MuonMatrices, orthogonalize, orthogonalize_reference

shapes = pytest.mark.parametrize("shape", [(1, 1, 7), (2, 63, 100), (3, 100, 63), (2, 32, 32), (1, 128, 512)])


@shapes
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.25
    assert values.median() > 0.65


@shapes
def test_the_direction_is_that_of_the_slow_twin(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quick, slow = orthogonalize(matrices).flatten(1), orthogonalize_reference(matrices).flatten(1)
    assert torch.cosine_similarity(quick, slow).min() > 0.97


def test_more_than_five_steps_stay_bounded() -> None:
    matrices = torch.randn(1, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.svdvals(orthogonalize(matrices, n_steps=12)).max() < 1.25


def test_a_zero_gradient_gives_a_zero_update() -> None:
    assert orthogonalize(torch.zeros(1, 4, 6)).abs().max() == 0


def test_the_step_is_the_written_formula() -> None:
    weight = nn.Parameter(torch.randn(40, 10, generator=torch.Generator().manual_seed(0)))
    config = MuonConfig(rate=0.1, momentum=0.9, weight_decay=0.3)
    optimizer = MuonMatrices([{"params": [weight], "lr": 0.1}], config)
    expected, momentum = weight.detach().clone(), torch.zeros(40, 10)
    for step in range(3):
        gradient = torch.randn(40, 10, generator=torch.Generator().manual_seed(step + 1))
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        direction = orthogonalize((gradient + 0.9 * momentum)[None])[0]
        expected = (1 - 0.1 * 0.3) * expected - 0.1 * 2.0 * direction  # sqrt(40 / 10) = 2
    torch.testing.assert_close(weight.detach(), expected)
