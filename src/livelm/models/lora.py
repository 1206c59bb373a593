"""Low-rank adapters (Hu et al. 2021): a trained map stays as it is, and a thin product beside it learns.

The published scale alpha / r is left to the learning rate, which it only multiplies (their section 4.1).
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from livelm.errors import ConfigError

A, B = "lora_a", "lora_b"
"""Names of the two thin matrices beside `weight`."""


class LoraLinear(nn.Linear):
    """y = W x + bias + B A x with the weight and bias of another linear map, under their old names.

    A (rank, d_in) begins with rows of length about 1, B (d_out, rank) at zero: at first nothing is added.
    """

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        with torch.device("meta"):  # shapes only: what was trained is taken over
            super().__init__(inner.in_features, inner.out_features, bias=inner.bias is not None)
        self.weight, self.bias = inner.weight, inner.bias
        self.lora_a = nn.Parameter(torch.randn(rank, inner.in_features) * inner.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, input: Float[Tensor, "*shape I"]) -> Float[Tensor, "*shape O"]:
        """The map and what its adapter adds; no gradient of full size is made where the weight is frozen."""
        return super().forward(input) + nn.functional.linear(nn.functional.linear(input, self.lora_a), self.lora_b)


def adapt(modules: Iterable[nn.Module], rank: int) -> list[nn.Parameter]:
    """Put adapters beside every linear map under these modules; they are returned.

    Raises ConfigError for a rank that would make an adapter no thinner than its map, and where there is no map.
    """
    adapters: list[nn.Parameter] = []
    for parent in [inner for module in modules for inner in module.modules()]:
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            if rank >= min(child.weight.shape):
                raise ConfigError(
                    f"learn.policy is 'lora:{rank}', but {name!r} is a map of shape {tuple(child.weight.shape)}: "
                    f"an adapter must be thinner. Take a rank below {min(child.weight.shape)}."
                )
            wrapped = LoraLinear(child, rank)
            setattr(parent, name, wrapped)
            adapters += [wrapped.lora_a, wrapped.lora_b]
    if not adapters:
        raise ConfigError("learn.policy is 'lora', but the layers of this model have no linear map to put adapters to.")
    return adapters


def merge_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name without adapters: what these added is part of the weights, W + B A."""
    merged = {name: tensor for name, tensor in tensors.items() if not name.endswith((f".{A}", f".{B}"))}
    for name in tensors:
        if name.endswith(f".{B}"):
            prefix = name.removesuffix(B)
            merged[f"{prefix}weight"] = merged[f"{prefix}weight"] + tensors[name] @ tensors[prefix + A]
    return merged
