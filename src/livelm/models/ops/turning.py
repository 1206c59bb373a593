"""Columns to rows: whole vectors in registers, where a square of them is turned over by interleaving its halves again
and again, which takes a fraction of the time; and anything else number by number.
"""

from typing import Any

from llvmlite import ir
from numba import types

from livelm.compiled import called
from livelm.compiled.vectors import INT, LANES, WORD, WORDS, Builder, llvm, load, store

LINE = 16
"""Numbers of a cache line."""


@llvm
def _square(typing: Any, x: Any, x_row: Any, out: Any, out_row: Any) -> Any:
    """LANES by LANES numbers at an address to another; rows lie `x_row` and `out_row` numbers apart."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        x, x_row, out, out_row = arguments
        half = LANES // 2
        low = [place for i in range(half) for place in (i, LANES + i)]
        masks = [ir.Constant(WORDS, [WORD(shift + place) for place in low]) for shift in (0, half)]
        rows = [load(builder, x, builder.mul(x_row, INT(i))) for i in range(LANES)]
        for _ in range(LANES.bit_length() - 1):  # a perfect shuffle of all numbers moves each index up by one bit
            rows = [builder.shuffle_vector(rows[i], rows[half + i], mask) for i in range(half) for mask in masks]
        for i, row in enumerate(rows):
            store(builder, row, out, builder.mul(out_row, INT(i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@called
def turned_vectors(x, out):  # type: ignore[no-untyped-def]
    """(N, K) `out` of (K, N) x, both multiples of LANES, without gaps in a row."""
    n_rows, n_columns = x.shape
    for left in range(0, n_columns, LANES):
        for top in range(0, n_rows, LANES):
            here = x.ctypes.data + 4 * (top * n_columns + left)
            _square(here, n_columns, out.ctypes.data + 4 * (left * n_rows + top), n_rows)


@called
def turned(x, out):  # type: ignore[no-untyped-def]
    """(N, K) `out` of (K, N) x, of any sizes, in squares that touch each line of both once."""
    n_rows, n_columns = x.shape
    for left in range(0, n_columns, LINE):
        right = min(left + LINE, n_columns)
        for top in range(0, n_rows, LINE):
            bottom = min(top + LINE, n_rows)
            for column in range(left, right):
                for row in range(top, bottom):
                    out[column, row] = x[row, column]
