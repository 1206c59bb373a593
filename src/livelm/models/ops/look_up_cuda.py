"""Rows of a token table, read, widened and scaled by one kernel, not three."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from livelm.kernels.dependent_launch import DEPENDENT, jit, wait_for_last


def look_up(weight: Float[Tensor, "V D"], tokens: Int[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape D"]:
    """The row of each token times `scale`, in float32; ids are inside the table."""
    weight, flat, width = weight.contiguous(), tokens.contiguous(), weight.shape[1]
    found = torch.empty(*tokens.shape, width, device=weight.device)
    program: Any = _look_up[(flat.numel(),)]
    program(weight, flat, found, scale, width, WIDTH=triton.next_power_of_2(width), **DEPENDENT)
    return found


@jit
def _look_up(weight, tokens, found, scale, width, WIDTH: tl.constexpr):
    """A program is a token."""
    i, columns = tl.program_id(0), tl.arange(0, WIDTH)
    wait_for_last()
    row = tl.load(tokens + i).to(tl.int64) * width + columns
    read = tl.load(weight + row, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(found + i * width + columns, read * scale, mask=columns < width)
