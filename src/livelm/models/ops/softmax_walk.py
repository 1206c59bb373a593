"""The softmax over a large float32 table and what it sends back, in one walk over the table by all threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from livelm.models.ops.tiles import HIGHEST, N_TOKENS, walk

SLICE_ROWS = 8064
"""Rows of one task, of which idle threads take the next: 16 for 128,256. Sums are added in the order of the table,
so that the number of threads changes no bit."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """What one walk over a (V, D) table found for N hidden states."""

    exps: Float[Tensor, "N V"]
    """e^(h W' - shift), a view of (V, N) memory. Below e^-87 it is that."""
    totals: Float[Tensor, " N"]
    """Their sums over V."""
    shift: Float[Tensor, " N"]
    """What was taken off the scores: as asked, or the greatest score where that is much higher."""
    back: Float[Tensor, "N D"] | None
    """exps W, if asked for."""


def softmax_walk(
    h: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    shift: Float[Tensor, " N"],
    spare: list[Tensor],
    *,
    back: bool,
) -> Walked:
    """Score h against every row, and multiply the exponentials back if `back`; float32, on the CPU.

    `shift` is any score of each state, such as that of its target. `spare` holds `exps` of earlier walks that nobody
    reads any more; one of this size is taken and written over, because new memory is paid for in page faults.
    """
    found, highest = _walk(h, weight, shift, spare, back)
    if (highest > HIGHEST).any():  # nothing but an untrained or a broken model is that far off
        found, _ = _walk(h, weight, shift + highest.clamp(min=0), [found.exps], back)
    return found


def softmax_walk_reference(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], shift: Float[Tensor, " N"]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """exps, totals and back, product by product: the slow twin."""
    exps = (h @ weight.T - shift[:, None]).exp()
    return exps, exps.sum(dim=1), exps @ weight


def _walk(h: Tensor, weight: Tensor, shift: Tensor, spare: list[Tensor], back: bool) -> tuple[Walked, Tensor]:
    n, n_rows, d = len(h), *weight.shape
    n_padded = -(-n // N_TOKENS) * N_TOKENS
    padded = F.pad(h, (0, 0, 0, n_padded - n))
    panels = padded.view(-1, N_TOKENS, d).transpose(1, 2).contiguous()
    exps = _take(spare, n_padded, n_rows)
    starts = range(0, n_rows, SLICE_ROWS)
    totals = torch.empty(len(starts), n_padded, dtype=torch.float64)
    highest = torch.empty(len(starts), n_padded)
    backs = torch.empty(len(starts), d if back else 0, n_padded)
    fixed = [x.detach().numpy() for x in (weight, panels, F.pad(shift, (0, n_padded - n)), exps)]
    found = [x.numpy() for x in (totals, highest, backs)]

    def task(i: int) -> None:
        walk(*fixed, starts[i], min(starts[i] + SLICE_ROWS, n_rows), *(x[i] for x in found))

    n_threads = min(torch.get_num_threads(), len(starts))
    if n_threads == 1:
        for i in range(len(starts)):
            task(i)
    else:
        list(_workers(n_threads).map(task, range(len(starts))))
    gradient = backs.sum(dim=0).T[:n] if back else None
    walked = Walked(exps.T[:n], totals.sum(dim=0)[:n].float(), shift, gradient)
    return walked, highest.amax(dim=0)[:n]


def _take(spare: list[Tensor], n_tokens: int, n_rows: int) -> Tensor:
    """(V, N) memory: that of a spare tensor, if one has the size."""
    while spare:
        memory = spare.pop().T
        if memory.shape == (n_rows, n_tokens) and memory.is_contiguous():
            return memory
    return torch.empty(n_rows, n_tokens)


@cache
def _workers(n_threads: int) -> ThreadPoolExecutor:
    """Threads that wait for tasks; one pool for each number, which lasts as long as the process."""
    return ThreadPoolExecutor(n_threads, "softmax-walk")
