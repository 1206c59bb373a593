"""The blocks of the transformer for one lane of few tokens on CUDA: fifteen kernels each, there and back, not ninety.

What 32 tokens cost a card is not arithmetic and not memory, it is the number of kernels that wait for one another, each
some microseconds. So a kernel here is a whole stage: it norms what it reads as often as it needs it, because that is
cheaper than another kernel, and it leaves the gradient of its weights where it has both factors at hand. It loads its
weights while the stage before it ends. Sums over the programs of a stage go through memory and are added in a fixed
order by the next one: no atomics, equal bits each time.

The truth it is tested against is the torch code of `models.transformer`.

    once:         window (which position may see which, by how far each is turned)
    attention:    project (norm, product, compress, rotate) | attend, piece by piece | join | add (product, residual)
    backward:     through the output map | attend | project | norm | sums
    feed-forward: widen (norm, product, rectify) | add
    backward:     through the second map | widen | norm | sums
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from livelm.models.ops.few_tokens.attention import KEYS_AT_ONCE
from livelm.models.ops.few_tokens.feed_forward import CHANNELS_AT_ONCE, HIDDEN_AT_ONCE
from livelm.models.ops.few_tokens.functions import Attend, Widen
from livelm.models.ops.few_tokens.window import window
from livelm.types import State

__all__ = ["block", "fits", "window"]

MOST_TOKENS, MOST_CHANNELS = 64, 512
"""What still fits into the registers and the shared memory of a multiprocessor."""
ACTIVATIONS = {"relu": 1, "relu2": 2}


def fits(model: Any, tokens: Int[Tensor, "B T"], state: State) -> bool:
    """Whether a `transformer.Transformer` can go this way: one lane, few tokens, a full window, no adapters."""
    c = model.config
    maps = [(b.attention.project, b.attention.out, b.mlp.up, b.mlp.down) for b in model.blocks]
    return (
        tokens.shape[0] == 1
        and tokens.shape[1] <= MOST_TOKENS
        and model.norm.weight.dtype == torch.float32
        and state["documents"].shape[1] == c.context >= tokens.shape[1]
        and c.context % KEYS_AT_ONCE.value == 0
        and c.kv_heads == c.n_heads
        and c.d_model <= MOST_CHANNELS
        and c.d_model % CHANNELS_AT_ONCE.value == 0
        and c.hidden % HIDDEN_AT_ONCE.value == 0
        and all(width >= 16 and width & (width - 1) == 0 for width in (c.d_head, c.d_key))
        and not c.gate
        and c.initial_state == "zero"
        and all(type(linear) is nn.Linear for block in maps for linear in block)
    )


def block(
    module: Any,
    x: Float[Tensor, "1 T D"],
    keys: Float[Tensor, "1 C H K"],
    values: Float[Tensor, "1 C H E"],
    bias: Float[Tensor, "1 1 T S"],
    angles: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """What `transformer.Block` computes where it `fits`; of all keys and values only the newest C come back."""
    attention, mlp = module.attention, module.mlp
    compress = getattr(attention, "compress", None)
    inputs = (x.contiguous(), keys.contiguous(), values.contiguous(), bias.contiguous(), *angles)
    inputs += _norm_of(module.attention_norm)
    x, k, v = Attend.apply(  # type: ignore[misc]
        *inputs, attention.project.weight, compress, attention.out.weight, attention.config, module.attention_norm.eps
    )
    activation = ACTIVATIONS["relu2" if mlp.squared else "relu"]
    maps = (mlp.up.weight, mlp.up.bias, mlp.down.weight, mlp.down.bias)
    y = Widen.apply(x, *_norm_of(module.mlp_norm), *maps, activation, module.mlp_norm.eps)  # type: ignore[misc]
    return y, k, v  # type: ignore[return-value]


def _norm_of(norm: Any) -> tuple[Any, Any]:
    return norm.weight, getattr(norm, "bias", None)
