"""Masked diffusion over bits: the bound is the entropy where that is known, and samples follow what is bounded."""

import math

import torch
from torch import Tensor

from livelm.models.bit_diffusion import HIDDEN, BitDenoiser, bound, evaluate, hide, sample
from livelm.types import LN_2

LENGTH = 6
WORDS = torch.cartesian_prod(*[torch.arange(2)] * LENGTH)


def joint() -> Tensor:
    """A distribution over all words of six bits in which every bit depends on the others."""
    return (torch.randn(len(WORDS), generator=torch.Generator().manual_seed(0)) * 1.5).softmax(0)


def exact(bits: Tensor) -> Tensor:
    """The logit of each bit by the joint distribution, given the bits that are seen."""
    agrees = ((bits[:, None] == WORDS) | (bits[:, None] == HIDDEN)).all(dim=-1) * joint()
    ones = agrees @ WORDS.float()
    return torch.logit((ones / agrees.sum(dim=1, keepdim=True)).clamp(1e-7, 1 - 1e-7))


def draw(n: int) -> Tensor:
    return WORDS[torch.multinomial(joint(), n, replacement=True, generator=torch.Generator().manual_seed(1))]


def test_the_bound_of_exact_conditionals_is_the_entropy() -> None:
    entropy = float(-(joint() * joint().log2()).sum())
    found, error = evaluate(exact, draw(4000), 5, torch.Generator().manual_seed(2))
    assert abs(found * LENGTH / 8 - entropy) < 0.05
    assert error * LENGTH / 8 < 0.02


def test_the_bound_of_any_other_denoiser_is_above_it() -> None:
    entropy = float(-(joint() * joint().log2()).sum())
    for denoise in (lambda bits: 0.5 * exact(bits), lambda bits: exact(bits) + 0.7):
        found, error = evaluate(denoise, draw(4000), 5, torch.Generator().manual_seed(2))
        assert found * LENGTH / 8 - 4 * error > entropy + 0.05
    ignorant, _ = evaluate(lambda bits: torch.zeros(bits.shape), draw(100), 2, torch.Generator())
    assert math.isclose(ignorant, 8.0, rel_tol=1e-6)


def test_every_set_of_hidden_bits_is_equally_likely() -> None:
    counts = torch.arange(1, LENGTH + 1).repeat_interleave(2000)
    hidden = hide(torch.zeros(len(counts), LENGTH), counts, torch.Generator().manual_seed(0))
    assert torch.equal(hidden.sum(dim=1), counts)
    of_three = (hidden[counts == 3] * 2 ** torch.arange(LENGTH)).sum(dim=1).bincount(minlength=64)
    assert (of_three > 0).sum() == math.comb(LENGTH, 3)
    assert of_three[of_three > 0].min() > 60  # 100 expected


def test_samples_drawn_bit_by_bit_follow_the_distribution() -> None:
    n = 20_000
    words = sample(exact, n, LENGTH, LENGTH, torch.Generator().manual_seed(3))
    found = (words * 2 ** torch.arange(LENGTH).flip(0)).sum(dim=1).bincount(minlength=len(WORDS)) / n
    expected = joint()
    chi_square = float(n * ((found - expected) ** 2 / expected).sum())
    assert chi_square < 110  # 63 degrees of freedom: 99.98 %
    rough = sample(exact, n, LENGTH, 1, torch.Generator().manual_seed(3))  # all at once: only the marginals are right
    marginal = (rough.float().mean(dim=0) - expected @ WORDS.float()).abs()
    assert marginal.max() < 0.015


def test_the_denoiser_sees_both_ways_and_nothing_that_is_hidden() -> None:
    torch.manual_seed(0)
    model = BitDenoiser(BitDenoiser.Config(d_model=16, n_layers=2, n_heads=2))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    bits = torch.randint(2, (1, 32), generator=torch.Generator().manual_seed(0))
    bits[0, 12] = HIDDEN
    before = model(bits)[0, 12]
    for at in (0, 11, 13, 31):
        changed = bits.clone()
        changed[0, at] = 1 - changed[0, at]
        assert model(changed)[0, 12] != before


def test_the_denoiser_learns_and_its_bound_falls_to_the_entropy() -> None:
    """Bytes of four kinds, two bits each: the entropy is 2 bits per byte, and all of it lies between bits."""
    torch.manual_seed(0)
    kinds = torch.randint(2, (4, 8), generator=torch.Generator().manual_seed(5))
    kinds[:, :2] = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    model = BitDenoiser(BitDenoiser.Config(d_model=32, n_layers=1, n_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)
    for _ in range(150):
        texts = kinds[torch.randint(4, (64, 2), generator=random)].flatten(1)
        optimizer.zero_grad()
        loss = bound(model, texts, random).mean()
        loss.backward()
        optimizer.step()
    texts = kinds[torch.randint(4, (512, 2), generator=random)].flatten(1)
    found, error = evaluate(model, texts, 8, random)
    assert 2.0 - 4 * error < found < 2.2
    drawn = sample(model, 50, 16, 16, random).view(-1, 8)
    assert (drawn[:, None] == kinds).all(dim=-1).any(dim=1).float().mean() > 0.9
    assert loss.item() < 2 * 2 * LN_2 * 1.3
