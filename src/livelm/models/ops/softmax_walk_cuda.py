"""The walk of `softmax_walk` on a CUDA device, with all arithmetic around it, in three launches.

A launch in a CUDA graph costs 1.5 to 2 microseconds and the walk itself some thirty, so what surrounds it is folded in:
each program of the walk finds the scores of the targets for itself, and adding up what the programs found gives the
nats. No number decides on the host what runs, and every sum is taken in one order: the same input gives the same bits.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from livelm.models.ops.token_table import gradient_parts

jit: Any = triton.jit
"""What it makes is launched as kernel[grid](...), which types do not know."""

CLAMP = 75.0
"""Exponent above which scores are taken for equal: e^75 summed over a vocabulary still fits into float32."""
STATES = 32
"""Hidden states of one program: with more, as many programs share what the cache holds of the same rows."""
ROWS = 64
"""Rows of the table between reading and multiplying back: the least that a warp group of Hopper multiplies."""
LEAST_STEPS = 2
"""Blocks of rows of a program: with one there is no loop, and what Triton 3.6 makes of that in bfloat16 multiplies back
what it should not on Hopper (`compute-sanitizer` finds reads outside of shared memory)."""
WIDEST = 256
"""Numbers of a row, for each of which a program has `STATES` sums in its registers."""
_N_SUMMED, _WIDTH_SUMMED = 64, 64  # of the programs' results at once, so that all multiprocessors add


@dataclass(frozen=True, slots=True, eq=False)
class Graded:
    """What one walk over a (V, D) table found for N hidden states and their targets."""

    nats: Float[Tensor, " N"]
    """ln(total)."""
    exps: Float[Tensor, "N V"]
    """e^(h W' - score of the target) in the type of the table, with exponents up to `CLAMP`."""
    total: Float[Tensor, " N"]
    """Their sums over V, of what they were rounded to but for the target's, which is 1."""
    back: Float[Tensor, "N D"] | None
    """exps W, if asked for."""


class WalkedNats(torch.autograd.Function):
    """What `token_table` does with a walk, in kernels: two launches forward, one backward."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: nn.Parameter, targets: Tensor) -> Tensor:
        """(N,) nats of the targets, from (N, D) hidden states and the (V, D) table."""
        graded = grade_on_cuda(h, weight, targets, back=ctx.needs_input_grad[0])
        ctx.save_for_backward(h, weight, targets, graded.exps, graded.total, graded.back)
        ctx.parts = gradient_parts(weight)
        return graded.nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        """The gradient of the states; the table's stays in its parts."""
        h, weight, targets, exps, total, back = ctx.saved_tensors
        dh, right, values = gradients_on_cuda(h, weight, targets, (total, back), grads[0])
        if ctx.needs_input_grad[1]:
            ctx.parts.products.append((exps, right))
            ctx.parts.rows.append((targets, values))
        return dh, None, None


def walkable_on_cuda(weight: Float[Tensor, "V D"]) -> bool:
    """Whether the table has a type, a place and a width that the kernels were written for."""
    if not weight.is_cuda or weight.dtype not in (torch.bfloat16, torch.float32):
        return False
    if weight.shape[1] > WIDEST or weight.numel() >= 1 << 31:  # offsets are 32 bits
        return False
    card = torch.cuda.get_device_properties(weight.device)
    block = ROWS * _width(weight.shape[1]) * weight.element_size()
    # two blocks and the states are 144 KiB at most: more than cards for games have
    there = getattr(card, "shared_memory_per_multiprocessor", 164 << 10)  # of an A100, where torch does not say
    return card.major >= 8 and there >= block * 5 // 2


def grade_on_cuda(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"], *, back: bool
) -> Graded:
    """Score h against every row relative to its target, and multiply the exponentials back if `back`. Two launches.

    h is rounded to the type of the table, sums are float32. A target whose score lies more than `CLAMP` below the best
    is graded as about that far below: all that is known of it is that the model was that wrong.
    """
    h, targets = h.contiguous(), targets.contiguous()
    n, n_rows, d = len(h), *weight.shape
    n_slices = max(1, -(-n // STATES))
    n_programs = max(1, n_multiprocessors(weight.device) // n_slices)
    n_steps = max(LEAST_STEPS, -(-n_rows // (n_programs * ROWS)))
    exps = torch.empty(n, n_rows, dtype=weight.dtype, device=h.device)
    nats, total = torch.empty(n, device=h.device), torch.empty(n, device=h.device)
    totals = torch.empty(n_programs, n, device=h.device)
    backs = torch.empty(n_programs if back else 0, n, d, device=h.device)
    summed = torch.empty(n if back else 0, d, device=h.device)
    with torch.cuda.device_of(weight):
        _walk[(n_slices, n_programs)](
            h, weight, targets, exps, totals, backs, n, n_rows, N_STEPS=n_steps, BACK=back, **walk_options(weight)
        )
        _add_up[(n, -(-d // _WIDTH_SUMMED) if back else 1)](
            exps, totals, backs, targets, nats, total, summed, n, n_rows,
            D=d, BACK=back, N_PROGRAMS=n_programs, N_SUMMED=_N_SUMMED, WIDTH_SUMMED=_WIDTH_SUMMED,
        )  # fmt: skip
    return Graded(nats, exps, total, summed if back else None)


def gradients_on_cuda(
    h: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    found: tuple[Float[Tensor, " N"], Float[Tensor, "N D"] | None],
    grad: Float[Tensor, " N"],
) -> tuple[Float[Tensor, "N D"] | None, Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """The gradient of h, the right factor of the table's and what to add to the rows of the targets. One launch.

    `found` is total and back of the walk; without back there is no gradient of h.
    """
    h, targets, (total, back) = h.contiguous(), targets.contiguous(), found
    values = torch.empty(h.shape, device=h.device)
    right = torch.empty(h.shape, dtype=weight.dtype, device=h.device)
    dh = torch.empty(h.shape, device=h.device) if back is not None else None
    with torch.cuda.device_of(weight):
        _send_back[(len(h),)](
            h, weight, targets, total, values if back is None else back, grad, grad.stride(0),
            values if dh is None else dh, right, values,
            D=h.shape[1], WIDTH=_width(h.shape[1]), BACK=back is not None,
        )  # fmt: skip
    return dh, right, values


@cache
def n_multiprocessors(device: torch.device) -> int:
    """How many there are: one program of the walk for each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def walk_options(weight: Float[Tensor, "V D"]) -> dict[str, Any]:
    """How the walk over a table is compiled.

    bfloat16 is multiplied from the shared memory it is loaded to, while the next three blocks of rows are under way.
    float32 is split in registers (tf32x3), and at D = 256 eight warps lack 200 of them in each thread.
    """
    shape = {"D": weight.shape[1], "WIDTH": _width(weight.shape[1]), "STATES": STATES, "ROWS": ROWS, "CLAMP": CLAMP}
    narrow = weight.dtype == torch.bfloat16
    return shape | {"num_warps": 4 if narrow else 8, "num_stages": 4 if narrow else 2}


def _width(d: int) -> int:
    """The power of two that a row fits into; the least that a product takes is 16."""
    return max(16, 1 << (d - 1).bit_length())


@jit
def _walk(
    h, weight, targets, exps, totals, backs, n, n_rows,
    D: tl.constexpr, WIDTH: tl.constexpr, STATES: tl.constexpr, ROWS: tl.constexpr, N_STEPS: tl.constexpr,
    CLAMP: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Walk one program's share of the rows for one slice of the states.

    The states are columns here: a warp group multiplies no fewer than 64 rows, and there are 32 states.
    """
    program, n_programs = tl.program_id(1), tl.num_programs(1)
    states = tl.program_id(0) * STATES + tl.arange(0, STATES)
    columns = tl.arange(0, WIDTH)
    there = (states < n)[:, None] & (columns < D)[None, :]
    places = states[:, None] * D + columns[None, :]
    rounded = tl.load(h + places, mask=there, other=0.0).to(weight.dtype.element_ty)
    wanted = tl.load(targets + states, mask=states < n, other=0)
    theirs = tl.load(weight + wanted[:, None] * D + columns[None, :], mask=there, other=0.0)
    score = tl.sum(rounded.to(tl.float32) * theirs.to(tl.float32), axis=1)
    turned = tl.trans(rounded)
    sums = tl.zeros((ROWS, STATES), tl.float32)
    back = tl.zeros((WIDTH, STATES), tl.float32)
    for step in range(N_STEPS):  # programs take turns: together they read on and on
        rows = (step * n_programs + program) * ROWS + tl.arange(0, ROWS)
        mask = (rows < n_rows)[:, None] & (columns < D)[None, :]
        table = tl.load(weight + rows[:, None] * D + columns[None, :], mask=mask, other=0.0)
        exponents = tl.dot(table, turned, input_precision="tf32x3") - score[None, :]
        powers = tl.exp(tl.where(exponents > CLAMP, CLAMP, exponents))  # a minimum would take NaN for the other
        kept = tl.where((rows < n_rows)[:, None], powers, 0.0).to(weight.dtype.element_ty)
        sums += kept.to(tl.float32)
        if BACK:
            back = tl.dot(tl.trans(table), kept, back, input_precision="tf32x3")
        mask = (rows < n_rows)[:, None] & (states < n)[None, :]
        tl.store(exps + states[None, :] * n_rows + rows[:, None], kept, mask=mask)
    tl.store(totals + program * n + states, tl.sum(sums, axis=0), mask=states < n)
    if BACK:
        mask = (columns < D)[:, None] & (states < n)[None, :]
        tl.store(backs + (program * n + states[None, :]) * D + columns[:, None], back, mask=mask)


@jit
def _add_up(
    exps, totals, backs, targets, nats, total, summed, n, n_rows,
    D: tl.constexpr, N_PROGRAMS: tl.constexpr, N_SUMMED: tl.constexpr, WIDTH_SUMMED: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Add what the programs of a walk found, for one state and some columns; the first columns' program grades."""
    state = tl.program_id(0)
    if BACK:
        columns = tl.program_id(1) * WIDTH_SUMMED + tl.arange(0, WIDTH_SUMMED)
        back = tl.zeros((N_SUMMED, WIDTH_SUMMED), tl.float32)
        for first in range(0, N_PROGRAMS, N_SUMMED):
            programs = first + tl.arange(0, N_SUMMED)
            mask = (programs < N_PROGRAMS)[:, None] & (columns < D)[None, :]
            back += tl.load(backs + (programs[:, None] * n + state) * D + columns[None, :], mask=mask, other=0.0)
        tl.store(summed + state * D + columns, tl.sum(back, axis=0), mask=columns < D)
    if tl.program_id(1) == 0:
        sums = tl.zeros((N_SUMMED,), tl.float32)
        for first in range(0, N_PROGRAMS, N_SUMMED):
            programs = first + tl.arange(0, N_SUMMED)
            sums += tl.load(totals + programs * n + state, mask=programs < N_PROGRAMS, other=0.0)
        # rounding averages out over the vocabulary but not in the one term that is graded, which is exactly e^0
        others = tl.sum(sums, axis=0) - tl.load(exps + state * n_rows + tl.load(targets + state)).to(tl.float32)
        whole = tl.where(others < 0.0, 0.0, others) + 1.0
        tl.store(total + state, whole)
        tl.store(nats + state, tl.log(whole))


@jit
def _send_back(
    h, weight, targets, total, back, grad, grad_step, dh, right, values,
    D: tl.constexpr, WIDTH: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Make all gradients of one state."""
    state = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    places, there = state * D + columns, columns < D
    own = tl.load(h + places, mask=there, other=0.0).to(tl.float32)
    graded = tl.load(grad + state * grad_step)
    share = graded / tl.load(total + state)
    tl.store(right + places, (own * share).to(weight.dtype.element_ty), mask=there)
    tl.store(values + places, -graded * own, mask=there)
    if BACK:
        theirs = tl.load(weight + tl.load(targets + state) * D + columns, mask=there, other=0.0).to(tl.float32)
        sent = tl.load(back + places, mask=there, other=0.0) * share
        tl.store(dh + places, sent - theirs * graded, mask=there)
