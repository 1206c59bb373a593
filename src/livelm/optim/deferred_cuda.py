"""What `deferred` does to named rows, as one CUDA kernel: in torch it takes fifteen, each of which costs a launch."""

from typing import Any

import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA; `deferred` minds its absence
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

TILE = 4096
"""Numbers that one program adds up at a time: 32 for each thread of four warps."""


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
