"""A batch of one's own making, where no feed is needed."""

import torch
from torch import Tensor

from livelm.types import Batch


def batch_of(tokens: Tensor, index: int = 0, graded: Tensor | None = None, *, starts: Tensor | None = None) -> Batch:
    """(B, T) tokens of a byte each; all of them graded and none a start, if nothing else is said."""
    graded = torch.ones_like(tokens, dtype=torch.bool) if graded is None else graded
    return Batch(
        tokens=tokens,
        starts=torch.zeros_like(graded) if starts is None else starts,
        graded=graded,
        n_bytes=graded.long(),
        index=index,
        spans=(),
        begun=(),
        cursor=None,
    )
