"""What architectures share: linear maps, norms, rotary positions and their initial values."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def linear(d_in: int, d_out: int, *, bias: bool = False, scale: float = 1.0) -> nn.Linear:
    """A linear map whose output has `scale` times the deviation of its input: weights of std scale / sqrt(d_in)."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=scale * d_in**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def silent_linear(d_in: int, d_out: int, *, bias: bool = False) -> nn.Linear:
    """A linear map that starts at zero, so a residual block begins as the identity."""
    layer = linear(d_in, d_out, bias=bias)
    nn.init.zeros_(layer.weight)
    return layer


def make_norm(kind: str, d_model: int) -> nn.Module:
    """`rms`: divided by the root mean square, with gain. `layer`: LayerNorm with gain and bias."""
    return nn.RMSNorm(d_model, eps=1e-6) if kind == "rms" else nn.LayerNorm(d_model)


def rms_norm(x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """x / rms(x) over the last axis, without parameters."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


Rotation = tuple[Float[Tensor, "B T 1 K"], Float[Tensor, "B T 1 K"]]
"""Cosines and signed sines for `rotate`."""


def rotation(first: Int[Tensor, " B"], n_positions: int, d_head: int, base: float = 10_000.0) -> Rotation:
    """Rotary angles of positions first .. first + n_positions - 1 of each lane (Su et al. 2021).

    Angles are computed in float64: float32 would be off by whole turns after ten million tokens of a stream.
    """
    positions = first[:, None] + torch.arange(n_positions, device=first.device)
    angles = positions[..., None].double() * frequencies(d_head, first.device, base)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], -1)[:, :, None], torch.cat([-sin, sin], -1)[:, :, None]


@cache
def frequencies(d_head: int, device: torch.device, base: float = 10_000.0) -> Float[Tensor, " K"]:
    """Radians per position of each pair of channels, K = d_head / 2, float64."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never be used to learn
        return base ** (-torch.arange(0, d_head, 2, dtype=torch.float64, device=device) / d_head)


def rotate(x: Float[Tensor, "B T H K"], angles: Rotation) -> Float[Tensor, "B T H K"]:
    """Turn channel i against channel i + K/2 by the angle of its position."""
    cos, sin = angles
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
