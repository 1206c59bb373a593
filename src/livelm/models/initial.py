"""What every document begins with in a model of attention: trained keys and values, read beside those of its tokens.

Prefix tuning (Li and Liang 2021) with a softmax of its own for the prefix, whose values start at zero (after
LLaMA-Adapter, Zhang et al. 2023): so a trained model predicts at first exactly what it predicted before. Queries are
taken before they are turned by their position, because what comes before a stream without end has no place in it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class InitialMemory(nn.Module):
    """n keys and values for each query head of one layer."""

    def __init__(self, n_heads: int, n: int, d_key: int, d_value: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(n_heads, n, d_key))
        self.values = nn.Parameter(torch.zeros(n_heads, n, d_value))

    def forward(self, q: Float[Tensor, "B T H K"]) -> Float[Tensor, "B T H E"]:
        """What the queries find in it: softmax(q keys' / sqrt(K)) values."""
        keys, values = (part.expand(len(q), -1, -1, -1) for part in (self.keys, self.values))
        return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values).transpose(1, 2)

    @property
    def products(self) -> int:
        """Multiply-adds for one query of every head."""
        return self.keys.numel() + self.values.numel()


def initial_parameters(blocks: nn.Module) -> tuple[nn.Parameter, ...]:
    """All keys and values under these modules."""
    memories = [module for module in blocks.modules() if isinstance(module, InitialMemory)]
    return tuple(parameter for memory in memories for parameter in memory.parameters())
