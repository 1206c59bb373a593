"""Small products of matrices in one core's registers: no packing, no threads, nothing to start.

A BLAS is made for large products. For some dozens of tokens half of its time goes to packing what it multiplies, and
from Python as much again to starting it. Here a product is a loop over tiles of sums that stay in registers: each step
loads a few vectors of b, and multiplies them by numbers of a that are read where they lie, in any order.
"""

from typing import Any

from numba import types

from livelm.compiled import called
from livelm.compiled.vectors import (
    FLOAT,
    INT,
    LANES,
    Builder,
    Value,
    at,
    llvm,
    load,
    loop,
    multiply_add,
    splat,
    store,
)

HIGH = 8 if LANES == 16 else 4
"""Rows of a tile of two vectors: its sums take half of the registers, 32 where vectors are that long, else 16."""


def _tile(n_rows: int, n_vectors: int) -> Any:
    """A tile of c += a b."""

    @llvm
    def multiply(typing: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, n: Any, c: Any, c_row: Any) -> Any:
        """Addresses of a, b and c, distances between their rows and steps in numbers, and n >= 1 steps."""

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            a, a_row, a_step, b, b_step, n, c, c_row = arguments
            fma, pieces = multiply_add(builder), [INT(i * LANES) for i in range(n_vectors)]
            starts = [builder.mul(a_row, INT(r)) for r in range(n_rows)]
            places = [builder.add(builder.mul(c_row, INT(r)), piece) for r in range(n_rows) for piece in pieces]

            def step(k: Value, sums: list[Any]) -> list[Value]:
                of_a, of_b = builder.mul(k, a_step), builder.mul(k, b_step)
                right = [load(builder, b, builder.add(of_b, piece)) for piece in pieces]
                new = []
                for r in range(n_rows):
                    left = splat(builder, builder.load(at(builder, a, builder.add(of_a, starts[r]), FLOAT)))
                    new += [fma(left, right[i], sums[r * n_vectors + i]) for i in range(n_vectors)]
                return new

            sums = loop(builder, n, [load(builder, c, place) for place in places], step)
            for value, place in zip(sums, places, strict=True):
                store(builder, value, c, place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return multiply


_wide, _wide_row, _narrow, _narrow_row = _tile(HIGH, 2), _tile(1, 2), _tile(2 * HIGH, 1), _tile(1, 1)


@called
def add_product(shape, a, a_row, a_step, b, b_row, c, c_row):  # type: ignore[no-untyped-def]
    """c += a b. `shape`: rows of c, columns of c (a multiple of LANES), length of the sums; all at least 1.

    a[i, k] is the number at a + 4 (i a_row + k a_step) bytes; rows of b and c lie b_row and c_row numbers apart.
    """
    n_rows, n_columns, n = shape
    n_wide = n_columns // (2 * LANES) * (2 * LANES)
    row = 0
    while row < n_rows:  # a few rows of a meet all of b while they are in the first-level cache
        high = row + HIGH <= n_rows
        here, there = a + 4 * row * a_row, c + 4 * row * c_row
        for column in range(0, n_wide, 2 * LANES):
            if high:
                _wide(here, a_row, a_step, b + 4 * column, b_row, n, there + 4 * column, c_row)
            else:
                _wide_row(here, a_row, a_step, b + 4 * column, b_row, n, there + 4 * column, c_row)
        row += HIGH if high else 1
    row = n_rows if n_wide == n_columns else 0
    b, c = b + 4 * n_wide, c + 4 * n_wide
    while row < n_rows:
        high = row + 2 * HIGH <= n_rows
        here, there = a + 4 * row * a_row, c + 4 * row * c_row
        if high:
            _narrow(here, a_row, a_step, b, b_row, n, there, c_row)
        else:
            _narrow_row(here, a_row, a_step, b, b_row, n, there, c_row)
        row += 2 * HIGH if high else 1
