"""The softmax over a large table and what it sends back, in one walk over the table by all threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from livelm.models.ops.tiles import HIGHEST, N_TOKENS, PAIRS, walk, walk_pairs

SLICE_ROWS = 8064
"""Rows of one task, of which idle threads take the next: 16 for 128,256. Sums are added in the order of the table,
so that the number of threads changes no bit."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """What one walk over a (V, D) table found for N hidden states."""

    exps: Float[Tensor, "N V"]
    """e^(h W' - shift) in the type of the table, a view of (V, N) memory. Below e^-87 it is that."""
    totals: Float[Tensor, " N"]
    """Their sums over V, of what they were rounded to."""
    shift: Float[Tensor, " N"]
    """What was taken off the scores: as asked, or the greatest score where that is much higher."""
    back: Float[Tensor, "N D"] | None
    """exps W, if asked for."""


def walkable(weight: Float[Tensor, "V D"]) -> bool:
    """Whether this machine has a compiled walk for a table of this type, place and width."""
    pairs = weight.dtype == torch.bfloat16 and PAIRS and weight.shape[1] % 2 == 0
    return weight.is_cpu and (weight.dtype == torch.float32 or pairs)


def softmax_walk(
    h: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    shift: Float[Tensor, " N"],
    spare: list[Tensor],
    *,
    back: bool,
) -> Walked:
    """Score h against every row, and multiply the exponentials back if `back`, for a table that is `walkable`.

    Sums are float32; h comes in the type of the table, and exponentials are rounded to it. `shift` is any score of
    each state, such as that of its target. `spare` holds `exps` of earlier walks that nobody reads any more; one that
    fits is taken and written over, because new memory is paid for in page faults.
    """
    found, highest = _walk(h, weight, shift, spare, back)
    if (highest > HIGHEST).any():  # nothing but an untrained or a broken model is that far off
        found, _ = _walk(h, weight, shift + highest.clamp(min=0), [found.exps], back)
    return found


def softmax_walk_reference(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], shift: Float[Tensor, " N"]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """exps, totals and back, product by product: the slow twin, in the type that it is given."""
    exps = (h @ weight.T - shift[:, None]).exp()
    return exps, exps.sum(dim=1), exps @ weight


def _walk(h: Tensor, weight: Tensor, shift: Tensor, spare: list[Tensor], back: bool) -> tuple[Walked, Tensor]:
    n, n_rows, d = len(h), *weight.shape
    n_padded = -(-n // N_TOKENS) * N_TOKENS
    pairs = weight.dtype == torch.bfloat16
    words = F.pad(h, (0, 0, 0, n_padded - n)).view(torch.float32 if pairs else h.dtype)  # 32 bits: two of bfloat16
    panels = words.view(-1, N_TOKENS, words.shape[1]).transpose(1, 2).contiguous()
    exps = _take(spare, (n_rows, n_padded), weight.dtype)
    starts = range(0, n_rows, SLICE_ROWS)
    totals = torch.empty(len(starts), n_padded, dtype=torch.float64)
    highest = torch.empty(len(starts), n_padded)
    backs = torch.empty(len(starts), d if back else 0, n_padded)
    fixed = [_array(x) for x in (weight, panels, F.pad(shift, (0, n_padded - n)), exps)]
    found = [x.numpy() for x in (totals, highest, backs)]
    one_walk = walk_pairs if pairs else walk

    def task(i: int) -> None:
        one_walk(*fixed, starts[i], min(starts[i] + SLICE_ROWS, n_rows), *(x[i] for x in found))

    n_threads = min(torch.get_num_threads(), len(starts))
    if n_threads == 1:
        for i in range(len(starts)):
            task(i)
    else:
        list(_workers(n_threads).map(task, range(len(starts))))
    gradient = backs.sum(dim=0).T[:n] if back else None
    walked = Walked(exps.T[:n], totals.sum(dim=0)[:n].float(), shift, gradient)
    return walked, highest.amax(dim=0)[:n]


def _take(spare: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(V, N) memory: that of a spare tensor, if one fits."""
    while spare:
        memory = spare.pop().T
        if memory.shape == shape and memory.dtype == dtype and memory.is_contiguous():
            return memory
    return torch.empty(shape, dtype=dtype)


def _array(x: Tensor) -> np.ndarray:
    """The same memory for numba, which has no bfloat16: its bits."""
    x = x.detach()
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


@cache
def _workers(n_threads: int) -> ThreadPoolExecutor:
    """Threads that wait for tasks; one pool for each number, which lasts as long as the process."""
    return ThreadPoolExecutor(n_threads, "softmax-walk")
