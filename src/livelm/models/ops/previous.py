"""What stood one position earlier in the same document: carried over batches, nothing at a document's start."""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


def previous(
    x: Shaped[Tensor, "B T *rest"], carried: Shaped[Tensor, "B *rest"], starts: Bool[Tensor, "B T"], nothing: float
) -> Shaped[Tensor, "B T *rest"]:
    """x one position later: `carried` comes before x[:, 0], and `nothing` before every document start."""
    shifted = torch.cat([carried[:, None], x[:, :-1]], dim=1)
    return shifted.masked_fill(starts.view(*starts.shape, *[1] * (x.dim() - 2)), nothing)


def previous_reference(
    x: Shaped[Tensor, "B T *rest"], carried: Shaped[Tensor, "B *rest"], starts: Bool[Tensor, "B T"], nothing: float
) -> Shaped[Tensor, "B T *rest"]:
    """What `previous` computes, one position after another."""
    lanes = []
    for lane, before, begins in zip(x, carried, starts, strict=True):
        row = []
        for here, begin in zip(lane, begins, strict=True):
            row.append(torch.full_like(here, nothing) if begin else before)
            before = here
        lanes.append(torch.stack(row))
    return torch.stack(lanes)
