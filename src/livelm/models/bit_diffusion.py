"""The same reversible blocks without a causal mask: masked diffusion over the bits of short texts, with a true bound.

Bits are hidden one after another in random order and predicted from those still seen. If m of L bits are hidden and
every set of m is equally likely, then L times the mean cost of a hidden bit, averaged over m = 1 .. L, is an upper
bound of the code length of the text (Hoogeboom et al. 2022, Autoregressive Diffusion Models), and it is the same number
as the bound of continuous masked diffusion for any schedule (Sahoo et al. 2024, MDLM; Shi et al. 2024). For
conditionals that are exact it is the entropy itself. BitTransformerLM flipped bits and had no bound.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from livelm.config import Settings
from livelm.models.bit import BitConfig, Block, Positive, Reading
from livelm.models.layers import linear, rotation
from livelm.models.ops.reversible import Coupling, reversible
from livelm.types import LN_2

HIDDEN = 2
"""Stands for a bit that is not seen."""
Denoiser = Callable[[Int[Tensor, "N L"]], Float[Tensor, "N L"]]
"""From bits, some of them HIDDEN, to the logit that each is 1."""


class DenoiserConfig(Settings):
    """Sizes of the denoiser."""

    d_model: Positive = 128
    n_layers: Positive = 4
    n_heads: Positive = 4


class BitDenoiser(nn.Module):
    """Sees some bits of a text, both ways, and says of each of the others how likely it is 1.

    A byte is one position, as in `Bit`: its eight bits, seen or hidden, are read as a sum of eight vectors.
    """

    Config: ClassVar[type[DenoiserConfig]] = DenoiserConfig

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(8 * 3, c.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        inner = BitConfig(d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads)
        self.blocks = nn.ModuleList(Block(inner) for _ in range(c.n_layers))
        self.norm = nn.RMSNorm(c.d_model, eps=1e-6)
        self.head = linear(c.d_model, 8)
        nn.init.zeros_(self.head.weight)

    def forward(self, bits: Int[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """The logit that each bit is 1; L is a multiple of 8."""
        n, d_head = bits.shape[1] // 8, self.config.d_model // self.config.n_heads
        x = self.embed(bits.view(len(bits), n, 8) + 3 * torch.arange(8, device=bits.device)).sum(dim=2)
        angles = rotation(torch.zeros(1, dtype=torch.int64, device=bits.device), n, d_head)
        reading = Reading(torch.zeros(1, 1, 1, 1, device=bits.device).expand(1, 1, n, n), angles, angles[0])
        nothing = x.new_zeros(len(x), 0, self.config.n_heads, d_head)
        couplings = [_both_ways(block, nothing, reading) for block in self.blocks]
        x1, x2, _ = reversible(x, x, couplings)
        return self.head(self.norm(x1 + x2)).flatten(1)


def hide(bits: Int[Tensor, "N L"], n_hidden: Int[Tensor, " N"], random: torch.Generator) -> Bool[Tensor, "N L"]:
    """Which bits are hidden: of each text so many, any of them equally likely."""
    order = torch.rand(bits.shape, generator=random).argsort(dim=1).argsort(dim=1)
    return order < n_hidden[:, None]


def bound(denoise: Denoiser, bits: Int[Tensor, "N L"], random: torch.Generator) -> Float[Tensor, " N"]:
    """An unbiased sample, one per text and with its gradient, of a bound of the text's cost, in nats.

    The numbers of hidden bits are spread evenly over the texts (a low-discrepancy sample, as in MDLM), which leaves
    each of them uniform over 1 .. L.
    """
    n, length = bits.shape
    spread = (torch.rand((), generator=random) + torch.arange(n) / n) % 1
    n_hidden = (spread * length).long().clamp(max=length - 1) + 1
    hidden = hide(bits, n_hidden, random)
    logits = denoise(bits.masked_fill(hidden, HIDDEN))
    nats = F.binary_cross_entropy_with_logits(logits, bits.to(logits.dtype), reduction="none")
    return length / n_hidden * (nats * hidden).sum(dim=1)


def evaluate(
    denoise: Denoiser, texts: Int[Tensor, "N L"], n_samples: int, random: torch.Generator
) -> tuple[float, float]:
    """The bound in bits per byte over the texts, and its standard error: of the sampling of masks, not of texts."""
    with torch.no_grad():
        sampled = torch.stack([bound(denoise, texts, random).double().mean() for _ in range(n_samples)])
    per_byte = sampled * 8 / (texts.shape[1] * LN_2)
    return float(per_byte.mean()), float(per_byte.std() / math.sqrt(n_samples))


def sample(denoise: Denoiser, n_texts: int, n_bits: int, n_steps: int, random: torch.Generator) -> Int[Tensor, "N L"]:
    """Texts, from nothing seen to all: each step draws an equal share of the bits, chosen at random.

    Bits of one step do not see each other. With n_steps = n_bits one bit is drawn at a time, and the texts are exactly
    those of the model whose cost is bounded; with fewer steps it is faster and they are not.
    """
    bits = torch.full((n_texts, n_bits), HIDDEN)
    order = torch.rand((n_texts, n_bits), generator=random).argsort(dim=1).argsort(dim=1)
    for step in range(n_steps):
        begin, stop = step * n_bits // n_steps, (step + 1) * n_bits // n_steps
        with torch.no_grad():
            drawn = torch.bernoulli(denoise(bits).sigmoid(), generator=random).long()
        bits = torch.where((order >= begin) & (order < stop), drawn, bits)
    return bits


def _both_ways(block: nn.Module, nothing: Tensor, reading: Reading) -> Coupling:
    """The block of `Bit`, keeping no keys."""
    ours = block.coupling(nothing, nothing, reading)  # type: ignore[operator]
    return Coupling(ours.first, lambda seen: (), ours.second, ours.parameters)
