"""Which positions of a stream are workers, counted from the start of each document, and who speaks to whom."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """The workers of T new positions of B lanes: every stride-th token of each document.

    At most W = ceil(T / stride) of them fall into T positions, because a document's first worker is its stride-th
    token: so W is known before the tokens are, and all shapes are the same for every batch. Lanes with fewer have
    idle rows at the end.
    """

    age: Int[Tensor, "B T"]
    """Tokens before each position in its document."""
    place: Int[Tensor, "B W"]
    """The position of each worker among those of all lanes, laid end to end; an idle row has its lane's first."""
    idle: Bool[Tensor, "B W"]
    """Rows that stand for no worker."""
    speaker: Int[Tensor, "B T"]
    """Whom each position hears: its document's last worker so far, itself included. Of its lane's W + 2 speakers, laid
    end to end like the positions: first the one carried from before, then those of this batch, then nobody."""


def ages(starts: Bool[Tensor, "B T"], before: Int[Tensor, " B"]) -> Int[Tensor, "B T"]:
    """Tokens before each position in its document; `before` is what a position right after the state would have."""
    index = torch.arange(starts.shape[1], device=starts.device)
    return index - torch.where(starts, index, -before[:, None]).cummax(dim=1).values


def worker_grid(age: Int[Tensor, "B T"], stride: int) -> Grid:
    """The workers among positions of these ages.

    Fewer positions than a stride hold at most one worker and mostly none; only then are they looked at, which on an
    accelerator means to wait for it, because the work saved is all the work there is.
    """
    n_new = age.shape[1]
    working = age % stride == stride - 1
    n_workers = -(-n_new // stride) if n_new >= stride else int(working.any())
    rank = working.cumsum(dim=1)
    index = torch.arange(n_new, device=age.device).expand_as(age)
    # what is no worker is written into a last column, which is dropped
    place = torch.zeros(len(age), n_workers + 1, dtype=torch.int64, device=age.device)
    place = place.scatter_(1, torch.where(working, rank - 1, n_workers), index)[:, :n_workers]
    idle = torch.arange(n_workers, device=age.device) >= rank[:, -1:]
    speaker = torch.where(age >= stride - 1, rank, n_workers + 1)
    lane = torch.arange(len(age), device=age.device)[:, None]
    return Grid(age, place + lane * n_new, idle, speaker + lane * (n_workers + 2))


def worker_grid_reference(age: Int[Tensor, "B T"], stride: int) -> tuple[list[list[int]], list[list[int | None]]]:
    """Places of the workers of each lane, and the distance back to whom each position hears (None: nobody)."""
    rows = age.tolist()
    places = [[t for t, a in enumerate(row) if (a + 1) % stride == 0] for row in rows]
    distances = [[(a + 1) % stride if a + 1 >= stride else None for a in row] for row in rows]
    return places, distances


def worker_mask(grid: Grid, n_kept: int, context: int) -> Bool[Tensor, "B 1 W S"]:
    """Which of the S = n_kept + T keys each worker sees: its own and the context - 1 before it, of its document."""
    n_new = grid.age.shape[1]
    back = (grid.place % n_new + n_kept)[..., None] - torch.arange(n_kept + n_new, device=grid.age.device)
    farthest = grid.age.flatten()[grid.place].clamp(max=context - 1)
    return ((back >= 0) & (back <= farthest[..., None]))[:, None]


def take(x: Float[Tensor, "B S *D"], rows: Int[Tensor, "B N"]) -> Float[Tensor, "B N *D"]:
    """Those rows of the lanes of x, laid end to end."""
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def add_at(x: Float[Tensor, "B T D"], grid: Grid, rows: Float[Tensor, "B W D"]) -> Float[Tensor, "B T D"]:
    """x with the row of each worker added at its place."""
    rows = rows.masked_fill(grid.idle[..., None], 0.0)
    return x.flatten(0, 1).index_add(0, grid.place.flatten(), rows.flatten(0, 1)).view_as(x)
