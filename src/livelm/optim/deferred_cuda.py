"""What `deferred` does to named rows, and in a pass over all, as one CUDA kernel each: in torch it takes fifteen."""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA; `deferred` minds its absence
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

TILE = 4096
"""Numbers that one program adds up at a time: 32 for each thread of four warps."""
ROWS = 64
"""Rows of a program of a pass over the table: with more, their sums and weights do not fit into the registers."""
AT_ONCE = 64
"""Tokens whose factors it multiplies while it loads the next."""
WIDEST_PASS = 256
"""Columns of a table that a pass takes at most: its programs hold whole rows, for each of which there is a sum."""


def teach_rows(
    table: Float[Tensor, "V D"],
    master: Float[Tensor, "V D"],
    total: Float[Tensor, " V"],
    named: tuple[Int[Tensor, " N"], Float[Tensor, "N D"]],
    product: tuple[Float[Tensor, "M V"], Float[Tensor, "M D"]] | None,
    settings: dict[str, Any],
) -> None:
    """One step for the rows named, which may repeat, by their `values` and what `product` has for them.

    What they learned is taken out of the product. `master` is the table itself, or its copy in float32; `settings`
    has `lr` (a number, or a tensor without axes on the same device) and `eps`. The same sums in the same order each
    time, whatever the rows are.
    """
    rows, values = (tensor.contiguous() for tensor in named)
    left, right = (values, values) if product is None else product
    n_columns = table.shape[1]
    width, n_rows = triton.next_power_of_2(n_columns), triton.next_power_of_2(len(rows))
    program: Any = _teach[(len(rows),)]
    program(
        rows,
        values,
        left,
        right.contiguous(),
        total,
        master,
        table,
        settings["lr"],
        settings["eps"],
        len(rows),
        len(left),
        left.stride(0),
        left.stride(1),
        n_columns,
        has_product=product is not None,
        has_master=master is not table,
        is_tensor=isinstance(settings["lr"], Tensor),
        n_rows=n_rows,
        n_factors=triton.next_power_of_2(len(left)),
        width=width,
        height=min(TILE // width, n_rows),
    )


def teach_all(
    table: Float[Tensor, "V D"],
    master: Float[Tensor, "V D"],
    total: Float[Tensor, " V"],
    product: tuple[Float[Tensor, "M V"], Float[Tensor, "M D"]],
    settings: dict[str, Any],
) -> None:
    """One step for every row, by left' right: one pass over the table, and nothing of its size beside it."""
    left, right = (factor.contiguous() for factor in product)
    options = pass_options(table, len(left))
    program: Any = _teach_all[(triton.cdiv(len(table), options["ROWS"]),)]
    program(
        left,
        right,
        total,
        master,
        table,
        settings["lr"],
        settings["eps"],
        len(table),
        len(left),
        has_master=master is not table,
        is_tensor=isinstance(settings["lr"], Tensor),
        **options,
    )


def pass_options(table: Float[Tensor, "V D"], n_factors: int) -> dict[str, Any]:
    """How a pass over a table is compiled: in float32, which is split in three, with half the rows and tokens."""
    narrow = table.dtype == torch.bfloat16
    rows, at_once = (ROWS, AT_ONCE) if narrow else (ROWS // 2, AT_ONCE // 2)
    width = max(16, triton.next_power_of_2(table.shape[1]))
    # at least a loop: see `softmax_walk_cuda.LEAST_STEPS`
    shape = {"n_columns": table.shape[1], "width": width, "n_steps": max(2, triton.cdiv(n_factors, at_once))}
    launch = {"num_warps": 8, "num_stages": 3 if narrow else 2}
    return shape | {"ROWS": rows, "AT_ONCE": at_once} | launch


@triton.jit(do_not_specialize=["n_factors"])
def _teach_all(
    left,
    right,
    total,
    master,
    table,
    rate,
    eps,
    n_rows,
    n_factors,
    n_columns: tl.constexpr,
    has_master: tl.constexpr,
    is_tensor: tl.constexpr,
    width: tl.constexpr,
    n_steps: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """A program teaches ROWS rows."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, width)
    there = rows < n_rows
    g = tl.zeros((ROWS, width), tl.float32)
    for step in range(n_steps):
        factors = step * AT_ONCE + tl.arange(0, AT_ONCE)
        known = (factors < n_factors)[:, None]
        place = left + factors[:, None].to(tl.int64) * n_rows + rows[None, :]
        one = tl.load(place, mask=known & there[None, :], other=0.0)
        place = right + factors[:, None] * n_columns + columns[None, :]
        other = tl.load(place, mask=known & (columns < n_columns)[None, :], other=0.0)
        g = tl.dot(tl.trans(one), other, g, input_precision="tf32x3")
    after = tl.load(total + rows, mask=there, other=0.0) + tl.sum(g * g, axis=1) / n_columns
    tl.store(total + rows, after, mask=there)
    scale = (tl.load(rate) if is_tensor else rate) / (tl.sqrt(after) + eps)
    place = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    inside = there[:, None] & (columns < n_columns)[None, :]
    weights = tl.load(master + place, mask=inside, other=0.0) - g * scale[:, None]
    tl.store(master + place, weights, mask=inside)
    if has_master:
        tl.store(table + place, weights.to(table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_named", "n_left", "left_stride", "left_step"])
def _teach(
    rows,
    values,
    left,
    right,
    total,
    master,
    table,
    rate,
    eps,
    n_named,
    n_left,
    left_stride,
    left_step,
    n_columns: tl.constexpr,
    has_product: tl.constexpr,
    has_master: tl.constexpr,
    is_tensor: tl.constexpr,
    n_rows: tl.constexpr,
    n_factors: tl.constexpr,
    width: tl.constexpr,
    height: tl.constexpr,
):
    """Program i teaches the i-th of the named rows, if it is the first of its number: then no two meet."""
    i = tl.program_id(0)
    place = tl.arange(0, n_rows)
    numbers = tl.load(rows + place, mask=place < n_named, other=-1)
    row = tl.load(rows + i).to(tl.int64)
    first = tl.min(tl.where(numbers == row, place, n_rows), axis=0)
    if first == i:
        column = tl.arange(0, width)
        inside = column < n_columns
        line = tl.arange(0, height)
        at = row * n_columns + column
        weights = tl.load(master + at, mask=inside, other=0.0)
        before = tl.load(total + row)
        scale = tl.load(rate) if is_tensor else rate
        parts = tl.zeros([height, width], dtype=tl.float32)
        for start in range(0, n_rows, height):
            j = start + line
            same = tl.load(rows + j, mask=j < n_named, other=-1) == row
            wanted = same[:, None] & inside[None, :]
            parts += tl.load(values + j[:, None] * n_columns + column[None, :], mask=wanted, other=0.0)
        if has_product:
            mine = left + row * left_step
            for start in range(0, n_factors, height):
                m = start + line
                there = m < n_left
                factor = tl.load(mine + m.to(tl.int64) * left_stride, mask=there, other=0.0).to(tl.float32)
                read = there[:, None] & inside[None, :]
                other = tl.load(right + m[:, None] * n_columns + column[None, :], mask=read, other=0.0).to(tl.float32)
                parts += factor[:, None] * other
        g = tl.sum(parts, axis=0)
        after = before + tl.sum(g * g, axis=0) / n_columns
        weights -= g * (scale / (tl.sqrt(after) + eps))
        tl.debug_barrier()  # a thread reads what another writes: all have read by now
        tl.store(total + row, after)
        tl.store(master + at, weights, mask=inside)
        if has_master:
            tl.store(table + at, weights.to(table.dtype.element_ty), mask=inside)
        if has_product:
            for start in range(0, n_factors, height):
                m = start + line
                there = m < n_left
                nothing = tl.zeros([height], dtype=left.dtype.element_ty)
                tl.store(left + row * left_step + m.to(tl.int64) * left_stride, nothing, mask=there)
