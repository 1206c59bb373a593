"""Scores, exponentials and gradient of a large softmax in one walk over its table, in tiles that stay in registers.

A BLAS packs the table anew for every product and reads it twice; with 32 tokens per update that packing, and not the
arithmetic, is what its time goes to (40 % of the processor's peak). Here some rows of the table are read once, scored,
exponentiated and multiplied back while they are in the cache, on one AVX2 core at about 80 % of the peak.

Tables of bfloat16 are multiplied in pairs of numbers, where the processor has an instruction for that.
"""

from typing import Any

import numpy as np
from numba import types

from livelm.compiled import allocating, called
from livelm.compiled.vectors import (
    FLOAT,
    INT,
    LANES,
    PAIRS,
    VECTOR,
    WORD,
    WORDS,
    Builder,
    Value,
    at,
    constant,
    exponential,
    llvm,
    load,
    loop,
    multiply_add,
    multiply_add_pairs,
    prefetch,
    round_to_bfloat16,
    splat,
    store,
)

N_TOKENS = 2 * LANES
"""Tokens of a tile. With 6 rows it has 12 sums, which 16 registers hold beside what is multiplied."""
ROWS_AT_ONCE = 96
"""Rows of the table between reading and multiplying back: 96 KiB at D = 256, a part of every second-level cache."""
HIGHEST = 60.0
"""e^60 summed over a vocabulary is still far from the end of float32."""


def _tile(n_rows: int, *, pairs: bool = False) -> Any:
    """c[r, :N_TOKENS] += sum over k of a[r, k] b[k, :N_TOKENS] for `n_rows` rows; words of two if `pairs`."""
    number, vector = (WORD, WORDS) if pairs else (FLOAT, VECTOR)

    @llvm
    def multiply(
        typing: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_step: Any,
        n: Any,
        c: Any,
        c_row: Any,
        ahead: Any,
        pace: Any,
    ) -> Any:
        """Addresses of a, b, c; distances between rows and steps in numbers; n >= 1 steps.

        At each step the memory at `ahead` + step * `pace` bytes is called into the second-level cache.
        """

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            a, a_row, a_step, b, b_step, n, c, c_row, ahead, pace = arguments
            fma = multiply_add_pairs(builder) if pairs else multiply_add(builder)
            places = [
                builder.add(builder.mul(c_row, INT(r)), INT(half * LANES)) for r in range(n_rows) for half in (0, 1)
            ]
            starts = [builder.mul(a_row, INT(r)) for r in range(n_rows)]

            def step(k: Value, sums: list[Any]) -> list[Value]:
                prefetch(builder, builder.add(ahead, builder.mul(k, pace)))
                of_a, of_b = builder.mul(k, a_step), builder.mul(k, b_step)
                right = [load(builder, b, builder.add(of_b, INT(half * LANES)), vector) for half in (0, 1)]
                new = []
                for r in range(n_rows):
                    left = builder.load(at(builder, a, builder.add(of_a, starts[r]), number))
                    left = splat(builder, left, vector)
                    new += [fma(left, right[half], sums[2 * r + half]) for half in (0, 1)]
                return new

            sums = loop(builder, n, [load(builder, c, place) for place in places], step)
            for value, place in zip(sums, places, strict=True):
                store(builder, value, c, place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return multiply


_multiply_6, _multiply_4, _multiply_1 = _tile(6), _tile(4), _tile(1)
# 32 registers hold 24 sums; without the instruction nothing calls these
_multiply_12_pairs, _multiply_4_pairs, _multiply_1_pairs = (_tile(n, pairs=PAIRS) for n in (12, 4, 1))


def _exponentiate_rows(*, rounded: bool) -> Any:
    """x <- e^x, rounded to bfloat16 if `rounded`."""

    @llvm
    def exponentiate(typing: Any, x: Any, x_row: Any, n: Any, sums: Any, highest: Any) -> Any:
        """For n >= 1 rows of N_TOKENS; sums of what became of them go to `sums`; `highest` takes the greatest x."""

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            x, x_row, n, sums, highest = arguments
            halves = [INT(0), INT(LANES)]

            def step(row: Value, values: list[Any]) -> list[Value]:
                totals, tops = [], []
                for half in (0, 1):
                    place = builder.add(builder.mul(row, x_row), halves[half])
                    value = load(builder, x, place)
                    top = values[2 + half]
                    tops.append(builder.select(builder.fcmp_ordered(">", value, top), value, top))
                    value = exponential(builder, value)
                    if rounded:
                        value = round_to_bfloat16(builder, value)
                    store(builder, value, x, place)
                    totals.append(builder.fadd(values[half], value))
                return totals + tops

            start = [constant(0.0)] * 2 + [load(builder, highest, half) for half in halves]
            ended = loop(builder, n, start, step)
            for half in (0, 1):
                store(builder, ended[half], sums, halves[half])
                store(builder, ended[2 + half], highest, halves[half])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return exponentiate


_exponentiate, _exponentiate_rounded = _exponentiate_rows(rounded=False), _exponentiate_rows(rounded=True)


@called
def multiply(n_rows, a, a_row, a_step, b, b_step, n, c, c_row, ahead, pace):  # type: ignore[no-untyped-def]
    """c[r, :N_TOKENS] += sum over k of a[r, k] b[k, :N_TOKENS], arguments as those of a tile."""
    r = 0
    while r + 6 <= n_rows:
        here, there = a + 4 * r * a_row, c + 4 * r * c_row
        _multiply_6(here, a_row, a_step, b, b_step, n, there, c_row, ahead + 4 * r * a_row, pace)
        r += 6
    if r + 4 <= n_rows:
        _multiply_4(a + 4 * r * a_row, a_row, a_step, b, b_step, n, c + 4 * r * c_row, c_row, ahead, 0)
        r += 4
    while r < n_rows:
        _multiply_1(a + 4 * r * a_row, a_row, a_step, b, b_step, n, c + 4 * r * c_row, c_row, ahead, 0)
        r += 1


@allocating
def walk(weight, panels, shift, exps, first, last, totals, highest, back):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`: exps[v, n] = e^(weight[v] . h[n] - shift[n]), their sums, and weight' exps.

    weight (V, D); panels (N / N_TOKENS, D, N_TOKENS) holds h; shift (N,); exps (V, N); totals (N,) float64 and highest
    (N,), the greatest exponent; back (D, N), or (0, N) where no gradient is wanted.
    """
    d, n = weight.shape[1], exps.shape[1]
    row, sums = 4 * d, np.empty(n, np.float32)
    w, p, e, s, h, g = (
        weight.ctypes.data,
        panels.ctypes.data,
        exps.ctypes.data,
        sums.ctypes.data,
        highest.ctypes.data,
        back.ctypes.data,
    )
    # The rows that come next are fetched while these are scored: the scores of 6 rows by all panels take long enough
    # for 6 rows. Without it the walk took a quarter longer (one core of a busy machine).
    share = 6 * row * N_TOKENS // n
    back[:] = 0
    totals[:] = 0
    highest[:] = -np.inf
    for begin in range(first, last, ROWS_AT_ONCE):
        n_rows = min(ROWS_AT_ONCE, last - begin)
        here, ahead = w + row * begin, w + row * min(begin + ROWS_AT_ONCE, last)
        for v in range(begin, begin + n_rows):
            for t in range(n):
                exps[v, t] = -shift[t]
        for t in range(0, n, N_TOKENS):
            out = e + 4 * (begin * n + t)
            fetched = ahead + t // N_TOKENS * share
            multiply(n_rows, here, d, 1, p + 4 * t * d, N_TOKENS, d, out, n, fetched, share // d)
            _exponentiate(out, n, n_rows, s + 4 * t, h + 4 * t)
        for t in range(n):
            totals[t] += sums[t]
        if back.shape[0]:
            for t in range(0, n, N_TOKENS):
                out = e + 4 * (begin * n + t)
                multiply(d, here, 1, d, out, n, n_rows, g + 4 * t, n, here, 0)


@called
def multiply_pairs(n_rows, a, a_row, a_step, b, b_step, n, c, c_row, ahead, pace):  # type: ignore[no-untyped-def]
    """As `multiply` where a and b hold words of two bfloat16 numbers, and distances are in words."""
    r = 0
    while r + 12 <= n_rows:
        here, there = a + 4 * r * a_row, c + 4 * r * c_row
        _multiply_12_pairs(here, a_row, a_step, b, b_step, n, there, c_row, ahead + 4 * r * a_row, pace)
        r += 12
    while r + 4 <= n_rows:
        _multiply_4_pairs(a + 4 * r * a_row, a_row, a_step, b, b_step, n, c + 4 * r * c_row, c_row, ahead, 0)
        r += 4
    while r < n_rows:
        _multiply_1_pairs(a + 4 * r * a_row, a_row, a_step, b, b_step, n, c + 4 * r * c_row, c_row, ahead, 0)
        r += 1


@allocating
def walk_pairs(weight, panels, shift, exps, first, last, totals, highest, back):  # type: ignore[no-untyped-def]
    """As `walk` for a table of bfloat16, with D even; the totals are those of the rounded exponentials.

    weight (V, D) and exps (V, N) hold the bits as uint16; panels (N / N_TOKENS, D / 2, N_TOKENS) words of two
    neighbouring numbers of h.
    """
    d, n = weight.shape[1], exps.shape[1]
    half, row = d // 2, 2 * d
    sums, scores = np.empty(n, np.float32), np.empty((ROWS_AT_ONCE, n), np.float32)
    # what the gradient sums over are rows: here two of them share a word
    words, bits = np.empty((ROWS_AT_ONCE // 2, n), np.uint32), scores.view(np.uint32)
    table = np.empty((ROWS_AT_ONCE // 2, d), np.uint32)
    p, e, s, h, g, w, u = (
        panels.ctypes.data,
        scores.ctypes.data,
        sums.ctypes.data,
        highest.ctypes.data,
        back.ctypes.data,
        words.ctypes.data,
        table.ctypes.data,
    )
    share = 12 * row * N_TOKENS // n
    back[:] = 0
    totals[:] = 0
    highest[:] = -np.inf
    for begin in range(first, last, ROWS_AT_ONCE):
        n_rows = min(ROWS_AT_ONCE, last - begin)
        n_words = (n_rows + 1) // 2
        here = weight.ctypes.data + row * begin
        ahead = weight.ctypes.data + row * min(begin + ROWS_AT_ONCE, last)
        for v in range(n_rows):
            scores[v] = -shift
        for t in range(0, n, N_TOKENS):
            fetched = ahead + t // N_TOKENS * share
            multiply_pairs(
                n_rows, here, half, 1, p + 4 * t * half, N_TOKENS, half, e + 4 * t, n, fetched, share // half
            )
            _exponentiate_rounded(e + 4 * t, n, n_rows, s + 4 * t, h + 4 * t)
        for t in range(n):
            totals[t] += sums[t]
        for v in range(n_rows):
            for t in range(n):
                exps[begin + v, t] = bits[v, t] >> 16
        if back.shape[0]:
            if n_rows % 2:
                scores[n_rows] = 0
            for i in range(n_words):
                for t in range(n):
                    words[i, t] = (bits[2 * i, t] >> 16) | bits[2 * i + 1, t]
                above, below = begin + 2 * i, min(begin + 2 * i + 1, last - 1)  # an odd last row is multiplied by 0
                for k in range(d):
                    table[i, k] = np.uint32(weight[above, k]) | (np.uint32(weight[below, k]) << np.uint32(16))
            for t in range(0, n, N_TOKENS):
                multiply_pairs(d, u, 1, d, w + 4 * t, n, n_words, g + 4 * t, n, u, 0)
