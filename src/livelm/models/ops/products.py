"""Small products of matrices in one core's registers: no threads, nothing to start, nothing packed while it is small.

A BLAS is made for large products. For some dozens of tokens half of its time goes to packing what it multiplies, and
from Python as much again to starting it. Here a product is a loop over tiles of sums that stay in registers: each step
loads a few vectors of b, and multiplies them by numbers of a that are read where they lie, in any order. Only what is
large goes block by block, from copies: lines that lie far apart throw each other out of the first-level cache.
"""

from typing import Any

import numpy as np
from llvmlite import ir
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

HIGH = 8 if LANES == 16 else 6
"""Rows of a tile of two vectors: its sums take half of 32 registers where vectors are that long, else 12 of 16. With 4
rows, of which each sum is wanted again as soon as it is there, products were 3 to 30 % slower on a Zen 3."""
SIDE = 64
"""Rows, columns and steps of a block: 16 KB, half of a first-level cache."""
LARGE = 1 << 22
"""Multiplications from which on a product goes by blocks. Measured on a Zen 3 (GFLOP/s of a possible 95, W' g): of 64
tokens 84 as before at 2^22, 69 to 78 at 2^24, and 50 to 80 for a sum of 1024; of 256 tokens 65 to 79 and 39 to 73."""


@called
def add_product(shape, a, a_row, a_step, b, b_row, c, c_row):  # type: ignore[no-untyped-def]
    """c += a b. `shape`: rows of c, columns of c (a multiple of LANES), length of the sums; all at least 1.

    a[i, k] is the number at a + 4 (i a_row + k a_step) bytes; rows of b and c lie b_row and c_row numbers apart.
    """
    n_rows, n_columns, n = shape
    # not as constants, for each of which numba would compile all that follows anew
    a_row, a_step, b_row, c_row = np.int64(a_row), np.int64(a_step), np.int64(b_row), np.int64(c_row)
    if n_rows * n_columns * n < LARGE:
        _add_small(shape, a, a_row, a_step, b, b_row, c, c_row)
        return
    near_a, near_b = _space(), _space()
    for k in range(0, n, SIDE):
        deep = min(SIDE, n - k)
        for column in range(0, n_columns, SIDE):
            wide, here, here_row = min(SIDE, n_columns - column), b + 4 * (k * b_row + column), b_row
            if b_row > SIDE and wide == SIDE:
                _copy(here, b_row, deep, near_b)
                here, here_row = near_b, SIDE
            for row in range(0, n_rows, SIDE):
                high, left, left_step = min(SIDE, n_rows - row), a + 4 * (row * a_row + k * a_step), a_step
                if a_row == 1 and high == SIDE:
                    _copy(left, a_step, deep, near_a)
                    left, left_step = near_a, SIDE
                there = c + 4 * (row * c_row + column)
                _add_small((high, wide, deep), left, a_row, left_step, here, here_row, there, c_row)


@called
def _add_small(shape, a, a_row, a_step, b, b_row, c, c_row):  # type: ignore[no-untyped-def]
    """The same, where everything lies: a few rows of a meet all of b while they are in the first-level cache."""
    n_rows, n_columns, n = shape
    n_wide = n_columns // (2 * LANES) * (2 * LANES)
    row = 0
    while row < n_rows:
        high = _height(n_rows - row, HIGH)
        here, there = a + 4 * row * a_row, c + 4 * row * c_row
        for column in range(0, n_wide, 2 * LANES):
            _wide(high, here, a_row, a_step, b + 4 * column, b_row, n, there + 4 * column, c_row)
        row += high
    row = n_rows if n_wide == n_columns else 0
    b, c = b + 4 * n_wide, c + 4 * n_wide
    while row < n_rows:
        high = _height(n_rows - row, 2 * HIGH)
        _narrow(high, a + 4 * row * a_row, a_row, a_step, b, b_row, n, c + 4 * row * c_row, c_row)
        row += high


@called
def _height(left, most):  # type: ignore[no-untyped-def]
    """Rows of the next tile, of those that are left."""
    return most if left >= most else 4 if left >= 4 else min(left, 2)


def _tile(n_vectors: int) -> Any:
    """A tile of c += a b that is so many vectors wide, and as high as `_height` says."""

    @llvm
    def multiply(
        typing: Any, high: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_row: Any, n: Any, c: Any, c_row: Any
    ) -> Any:
        """Rows; addresses of a, b and c, distances between their rows and steps in numbers, and n >= 1 steps."""

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            builder.function.attributes.add("noinline")  # it is long, and nothing is gained by a copy in each caller
            for n_rows in (2 * HIGH // n_vectors, 4, 2, 1):
                with builder.if_then(builder.icmp_signed("==", arguments[0], INT(n_rows))):
                    _multiply(builder, n_rows, n_vectors, arguments[1:])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return multiply


def _multiply(builder: Builder, n_rows: int, n_vectors: int, arguments: Any) -> None:
    """A tile of one size: all its sums stay in registers."""
    a, a_row, a_step, b, b_row, n, c, c_row = arguments
    fma, pieces = multiply_add(builder), [INT(i * LANES) for i in range(n_vectors)]
    starts = [builder.mul(a_row, INT(r)) for r in range(n_rows)]
    places = [builder.add(builder.mul(c_row, INT(r)), piece) for r in range(n_rows) for piece in pieces]

    def step(k: Value, sums: list[Any]) -> list[Value]:
        of_a, of_b = builder.mul(k, a_step), builder.mul(k, b_row)
        right = [load(builder, b, builder.add(of_b, piece)) for piece in pieces]
        new = []
        for r in range(n_rows):
            left = splat(builder, builder.load(at(builder, a, builder.add(of_a, starts[r]), FLOAT)))
            new += [fma(left, right[i], sums[r * n_vectors + i]) for i in range(n_vectors)]
        return new

    sums = loop(builder, n, [load(builder, c, place) for place in places], step)
    for value, place in zip(sums, places, strict=True):
        store(builder, value, c, place)


_wide, _narrow = _tile(2), _tile(1)


@llvm
def _space(typing: Any) -> Any:
    """The address of a block on the stack."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():  # anywhere else a loop would take more and more of it
            block = builder.alloca(ir.ArrayType(FLOAT, SIDE * SIDE))
        block.align = 64
        return builder.ptrtoint(block, INT)

    return types.intp(), generate


@llvm
def _copy(typing: Any, x: Any, row: Any, n: Any, out: Any) -> Any:
    """n >= 1 rows of SIDE numbers that lie `row` numbers apart, to where they lie without gaps."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        x, row, n, out = arguments

        def line(i: Value, values: list[Any]) -> list[Value]:
            for start in range(0, SIDE, LANES):
                value = load(builder, x, builder.add(builder.mul(i, row), INT(start)))
                store(builder, value, out, builder.add(builder.mul(i, INT(SIDE)), INT(start)))
            return []

        loop(builder, n, [], line)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate
