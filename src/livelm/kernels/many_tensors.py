"""One kernel for many tensors: weights and windows are dozens, and a launch each would cost more than the work.

Every tensor is cut into pieces of PIECE numbers, a program each. What libraries launch for lists of tensors takes 64
Ki numbers at a time, which leaves most multiprocessors without work where there are few million in all.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from livelm.kernels.dependent_launch import DEPENDENT, jit, wait_for_last

PIECE = 8192
"""Numbers of a program: 32 for each thread of eight warps."""
MOST = 64
"""Tensors of one launch: their addresses are arguments of the kernel, and each program looks through all of them."""
LARGE = 1 << 24
"""Numbers from which on what libraries launch has enough to do."""


def fit(tensors: Sequence[Tensor]) -> bool:
    """Whether these can be taken together: few numbers in all, in float32, without gaps in memory."""
    flat = all(tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.numel() for tensor in tensors)
    return flat and 0 < sum(tensor.numel() for tensor in tensors) < LARGE


def copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Each of `targets` becomes what is in `sources`, bit for bit; contiguous tensors of types of 4 or 8 bytes."""
    launch(_copy, [[tensor.view(torch.int32) for tensor in tensors] for tensors in (sources, targets)])


def clip(gradients: Sequence[Tensor], most: float) -> Tensor:
    """What `torch.nn.utils.clip_grad_norm_` does: their length, which is `most` at most afterwards."""
    n_sums = sum(-(-gradient.numel() // PIECE) for gradient in gradients)
    sums, norm = gradients[0].new_empty(n_sums), gradients[0].new_empty(())
    launch(_square_sums, [gradients], sums)
    launch(_shorten, [gradients], sums, norm, most, n_sums, SUMS=triton.next_power_of_2(n_sums))
    return norm


def launch(kernel: Any, lists: Sequence[Sequence[Tensor]], *arguments: Any, **constants: Any) -> None:
    """kernel(*lists, *arguments, before, SIZES, FIRSTS, PIECE, **constants): a program for each piece.

    The lists have the same number of tensors; the first says into how many pieces each is cut. SIZES are the numbers
    in its tensors, FIRSTS the first program of each, `before` the programs of earlier launches.
    """
    before = 0
    for begin in range(0, len(lists[0]), MOST):
        some = [tuple(tensors[begin : begin + MOST]) for tensors in lists]
        sizes = tuple(tensor.numel() for tensor in some[0])
        *firsts, n_programs = accumulate((-(-size // PIECE) for size in sizes), initial=0)
        known = {"SIZES": sizes, "FIRSTS": tuple(firsts), "PIECE": PIECE, **constants}
        kernel[(n_programs,)](*some, *arguments, before, **known, **DEPENDENT, num_warps=8)
        before += n_programs


@jit
def piece_of(tensors, SIZES: tl.constexpr, FIRSTS: tl.constexpr, PIECE: tl.constexpr):
    """Addresses (PIECE,) of what belongs to this program, and which of them are inside of its tensor."""
    program = tl.program_id(0)
    at, size, first = tensors[0], SIZES[0], 0
    for i in tl.static_range(1, len(SIZES)):  # pyright: ignore  # what the compiler unrolls
        later = program >= FIRSTS[i]
        at, size, first = (
            tl.where(later, tensors[i], at),
            tl.where(later, SIZES[i], size),
            tl.where(later, FIRSTS[i], first),
        )
    place = (program - first) * PIECE + tl.arange(0, PIECE)
    return at + place, place < size


@jit
def _copy(sources, targets, before, SIZES: tl.constexpr, FIRSTS: tl.constexpr, PIECE: tl.constexpr):
    source, inside = piece_of(sources, SIZES, FIRSTS, PIECE)
    target, _ = piece_of(targets, SIZES, FIRSTS, PIECE)
    wait_for_last()
    tl.store(target, tl.load(source, mask=inside), mask=inside)


@jit
def _square_sums(tensors, sums, before, SIZES: tl.constexpr, FIRSTS: tl.constexpr, PIECE: tl.constexpr):
    at, inside = piece_of(tensors, SIZES, FIRSTS, PIECE)
    wait_for_last()
    read = tl.load(at, mask=inside, other=0.0)
    tl.store(sums + before + tl.program_id(0), tl.sum(read * read, axis=0))


@jit
def _shorten(
    tensors,
    sums,
    norm,
    most,
    n_sums,
    before,
    SIZES: tl.constexpr,
    FIRSTS: tl.constexpr,
    PIECE: tl.constexpr,
    SUMS: tl.constexpr,
):
    at, inside = piece_of(tensors, SIZES, FIRSTS, PIECE)
    place = tl.arange(0, SUMS)
    wait_for_last()
    length = tl.sqrt(tl.sum(tl.load(sums + place, mask=place < n_sums, other=0.0), axis=0))
    if before + tl.program_id(0) == 0:
        tl.store(norm, length)
    factor = most / (length + 1e-6)
    if factor < 1.0:
        tl.store(at, tl.load(at, mask=inside) * factor, mask=inside)
