"""What goes through compiled functions, and what is better left to torch."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from livelm.compiled.vectors import LANES
from livelm.types import State

MOST_TOKENS = 256
"""Of a lane."""
MOST_WORK = 1 << (23 if LANES == 16 else 24)
"""Tokens of all lanes times D^2 times torch's threads, above which torch has enough to do in each of its operations.
Measured on one core, there and back, D of 64 to 512. With vectors of 16 numbers: below 1.2 to 2.8 times as fast as
torch, above 0.8 to 1.1 (before large products went by blocks). With 8 (Zen 3), 16 to 256 tokens: 2.5 to 1.3 times as
fast at D = 64, 2.0 to 1.1 at 128, 1.6 to 1.03 at 256, and at 512 1.6 to 1.2 up to 64 tokens, 0.85 for 256."""


def few(tokens: Int[Tensor, "B T"], d_model: int) -> bool:
    """Whether these are few enough tokens on a CPU."""
    small = tokens.is_cpu and tokens.dtype == torch.int64 and 0 < tokens.shape[1] <= MOST_TOKENS
    return small and tokens.numel() * d_model**2 * torch.get_num_threads() <= MOST_WORK


def as_expected(c: Any, n_lanes: int, state: State) -> bool:
    """Whether a state has the shapes that it should, without gaps: compiled functions look at no bounds."""
    keys = n_lanes, state["documents"].shape[1], c.kv_heads, c.d_head
    return all(
        tensor.is_contiguous() and tensor.shape[0] == n_lanes and (tensor.dim() != 4 or _are_keys(tensor, keys))
        for tensor in state.values()
    )


def _are_keys(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.shape == shape and tensor.dtype == torch.float32
