"""What the blocks need to know of the positions, in one kernel: which may see which, and how far each is turned."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from livelm.kernels.dependent_launch import DEPENDENT, jit, wait_for_last
from livelm.types import State

AT_ONCE = 64
"""Positions of a program."""


def window(
    starts: Bool[Tensor, "1 T"], state: State, context: int, frequencies: Float[Tensor, " K / 2"]
) -> tuple[Tensor, tuple[Tensor, Tensor], State]:
    """What `transformer.window` finds, for one lane whose window is full."""
    kept, position, n_new, d_key = state["documents"], state["position"], starts.shape[1], 2 * len(frequencies)
    n_seen = context + n_new
    bias = torch.empty(1, 1, n_new, n_seen, device=starts.device)
    cos, sin = torch.empty(2, 1, n_new, 1, d_key, device=starts.device)
    after: State = {"position": torch.empty_like(position), "documents": torch.empty_like(kept)}
    program: Any = _window[(triton.cdiv(n_seen, AT_ONCE) + 1,)]
    program(
        *(starts, kept, position, frequencies),
        *(bias, cos, sin, after["documents"], after["position"], n_new),
        CONTEXT=context,
        N_PAIRS=d_key // 2,
        PAIRS=triton.next_power_of_2(d_key // 2),
        ROWS=triton.next_power_of_2(n_new),
        AT_ONCE=AT_ONCE,
        **DEPENDENT,
    )
    return bias, (cos, sin), after


@jit
def _window(
    starts,
    kept,
    position,
    frequencies,
    bias,
    cos,
    sin,
    documents_after,
    position_after,
    n_new,
    CONTEXT: tl.constexpr,
    N_PAIRS: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """A program is some of the positions that are seen; the last one turns the new ones."""
    program, rows = tl.program_id(0), tl.arange(0, ROWS)
    wait_for_last()
    if program < tl.num_programs(0) - 1:
        at = program * AT_ONCE + tl.arange(0, AT_ONCE)
        last = tl.load(kept + CONTEXT - 1)
        own = last + tl.cumsum(tl.load(starts + rows, mask=rows < n_new, other=0).to(tl.int64), axis=0)
        # all pieces but the last are of the window: no start of a new document is in them
        new = (at >= CONTEXT) & (at < CONTEXT + n_new)
        begun = tl.cumsum(tl.load(starts + at - CONTEXT, mask=new, other=0).to(tl.int64), axis=0)
        theirs = tl.where(new, last + begun, tl.load(kept + at, mask=at < CONTEXT, other=-1))
        tl.store(documents_after + at - n_new, theirs, mask=(at >= n_new) & (at < CONTEXT + n_new))
        behind = CONTEXT + rows[:, None] - at[None, :]  # positions from the newer to the older
        sees = (own[:, None] == theirs[None, :]) & (behind >= 0) & (behind < CONTEXT)
        place = bias + rows[:, None] * (CONTEXT + n_new) + at[None, :]
        inside = (rows < n_new)[:, None] & (at < CONTEXT + n_new)[None, :]
        tl.store(place, tl.where(sees, 0.0, float("-inf")), mask=inside)
    else:
        first, pairs = tl.load(position), tl.arange(0, PAIRS)
        turned = (rows < n_new)[:, None] & (pairs < N_PAIRS)[None, :]
        per_position = tl.load(frequencies + pairs, mask=pairs < N_PAIRS, other=0.0)
        angles = (first + rows).to(tl.float64)[:, None] * per_position[None, :]
        c, s = tl.cos(angles).to(tl.float32), tl.sin(angles).to(tl.float32)
        to = rows[:, None] * (2 * N_PAIRS) + pairs[None, :]
        tl.store(cos + to, c, mask=turned)
        tl.store(cos + to + N_PAIRS, c, mask=turned)
        tl.store(sin + to, -s, mask=turned)
        tl.store(sin + to + N_PAIRS, s, mask=turned)
        tl.store(position_after, first + n_new)
