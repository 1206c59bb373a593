"""The recurrence of RWKV-7, a token at a time, with the matrix of a head in the first-level cache.

With the state S (row = value channel i, column = key channel j) before a token, Z after it, and the removal key c of
length 1 (a of `ops.rwkv7` is -c),

    u = -S c      Z = S diag(w) + u b' + v k'      y = Z r

forward needs no sums across a vector if it holds S transposed, backward fewer if it does not. Backward keeps u, so that
what the states were is found from every SEGMENT-th without sums, and from the gradient G of Z, once it has y's:

    G += dy r'    dv = G k    du = G b    dr = Z' dy    dw = sums over i of G S    dk = G' v    db = G' u    dc = -S' du

that of S is G diag(w) - du c'.
"""

from typing import Any

import numpy as np
from numba import types

from livelm.compiled import called
from livelm.compiled.vectors import FLOAT, INT, LANES, Builder, Value, at, constant, llvm, load, loop, splat, store
from livelm.models.ops.products import add_product
from livelm.models.ops.rwkv7_cpu.strips import Vector
from livelm.models.ops.turning import turned_vectors

SEGMENT = 16
"""Tokens between two states that are kept. 8, 16 or 32 take the same time."""


def _one(builder: Builder, address: Value, i: Value) -> Value:
    """A vector of the number that is i numbers after an address."""
    return splat(builder, builder.load(at(builder, address, i, FLOAT)))


def _forward(n_vectors: int) -> Any:
    @llvm
    def run(typing: Any, n: Any, state: Any, rows: Any, v: Any, u: Any, y: Any, u_next: Any) -> Any:
        """A token: (n, n) `state` [key, value] in place, for some vectors of values; `rows`: r, w, k, c', b, where c'
        is the next token's; of vectors at addresses v and u are read, y and the next u written."""

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            n, state, rows, v, u, y, u_next = arguments
            r, w, k, c, b = (builder.extract_value(rows, i) for i in range(5))
            pieces = [INT(LANES * i) for i in range(n_vectors)]
            told, removed = ([Vector(builder, load(builder, x, piece)) for piece in pieces] for x in (v, u))

            def step(j: Value, values: list[Any]) -> list[Value]:
                of_r, of_w, of_k, of_c, of_b = (Vector(builder, _one(builder, x, j)) for x in (r, w, k, c, b))
                read, asked = [], []
                for i, piece in enumerate(pieces):
                    place = builder.add(builder.mul(j, n), piece)
                    s = Vector(builder, load(builder, state, place)) * of_w
                    s = s + removed[i] * of_b + told[i] * of_k
                    store(builder, s.value, state, place)
                    read.append((Vector(builder, values[i]) + s * of_r).value)
                    asked.append((Vector(builder, values[n_vectors + i]) - s * of_c).value)
                return read + asked

            sums = loop(builder, n, [constant(0.0)] * (2 * n_vectors), step)
            for i, piece in enumerate(pieces):
                store(builder, sums[i], y, piece)
                store(builder, sums[n_vectors + i], u_next, piece)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, rows, *[types.intp] * 4), generate

    return run


def _again(n_vectors: int) -> Any:
    @llvm
    def run(typing: Any, n: Any, state: Any, after: Any, w: Any, k: Any, b: Any, v: Any, u: Any) -> Any:
        """(n, n) state [value, key] after a token from that before it, for some vectors of keys."""

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            n, state, after, w, k, b, v, u = arguments
            pieces = [INT(LANES * i) for i in range(n_vectors)]
            rows = [[Vector(builder, load(builder, x, piece)) for piece in pieces] for x in (w, k, b)]

            def step(i: Value, values: list[Any]) -> list[Value]:
                of_v, of_u = (Vector(builder, _one(builder, x, i)) for x in (v, u))
                for at_piece, piece in enumerate(pieces):
                    w, k, b = (row[at_piece] for row in rows)
                    place = builder.add(builder.mul(i, n), piece)
                    s = Vector(builder, load(builder, state, place)) * w + of_u * b + of_v * k
                    store(builder, s.value, after, place)
                return []

            loop(builder, n, [], step)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return run


def _backward(n_vectors: int) -> Any:
    @llvm
    def run(typing: Any, g: Any, before: Any, after: Any, rows: Any, columns: Any, d_rows: Any, dv: Any) -> Any:
        """A token from its end: g (n, n) [value, key] in place, n = n_vectors LANES.

        `rows`: r, w, k, c, b; `columns`: v, u, dy; `d_rows` take the gradients of the five, dv that of v.
        """

        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            g, before, after, rows, columns, d_rows, dv = arguments
            pieces, n = [INT(LANES * i) for i in range(n_vectors)], INT(LANES * n_vectors)
            five = [builder.extract_value(rows, i) for i in range(5)]
            known = [[Vector(builder, load(builder, x, piece)) for piece in pieces] for x in five]
            taken = [builder.extract_value(d_rows, i) for i in range(5)]
            of_value = [builder.extract_value(columns, i) for i in range(3)]
            nothing = Vector(builder, constant(0.0))

            def step(i: Value, values: list[Any]) -> list[Value]:
                v, u, dy = (Vector(builder, _one(builder, x, i)) for x in of_value)
                places = [builder.add(builder.mul(i, n), piece) for piece in pieces]
                here = [Vector(builder, load(builder, g, place)) for place in places]
                here = [own + dy * r for own, r in zip(here, known[0], strict=True)]
                to_v, to_u = nothing, nothing
                for own, k, b in zip(here, known[2], known[4], strict=True):
                    to_v, to_u = to_v + own * k, to_u + own * b
                builder.store(to_v.total(), at(builder, dv, i, FLOAT))
                du = 0.0 - Vector(builder, splat(builder, to_u.total()))
                sums: list[Value] = []
                for p, place in enumerate(places):
                    old, new = (Vector(builder, load(builder, x, place)) for x in (before, after))
                    more = (new * dy, here[p] * old, here[p] * v, old * du, here[p] * u)
                    sums += [(Vector(builder, values[5 * p + q]) + one).value for q, one in enumerate(more)]
                    store(builder, (here[p] * known[1][p] + known[3][p] * du).value, g, place)
                return sums

            sums = loop(builder, n, [constant(0.0)] * (5 * n_vectors), step)
            for p, piece in enumerate(pieces):
                for q, address in enumerate(taken):
                    store(builder, sums[5 * p + q], address, piece)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, rows, columns, d_rows, types.intp), generate

    return run


_forward_wide, _forward_narrow, _again_wide, _again_narrow = _forward(2), _forward(1), _again(2), _again(1)
_backward_1, _backward_2, _backward_4, _backward_8 = (_backward(n) for n in (1, 2, 4, 8))
WIDTHS = tuple(LANES * n for n in (1, 2, 4, 8))
"""Of heads that backward can do."""


@called
def _copy(x, out):  # type: ignore[no-untyped-def]
    for row in range(len(x)):
        for column in range(len(x)):
            out[row, column] = x[row, column]


@called
def states_forward(form, starts, rows, read, kept, before, after, space):  # type: ignore[no-untyped-def]
    """(B, H, n, n) `after` from `before`, and (M, D) rows of what is read at each token, zero where none is.

    `starts` (B, T). `rows`: (M, D) r, w, k, v, c, b. `kept`: (M, D) u, and (B, S, H, n, n) every SEGMENT-th state,
    transposed, as its token finds it. `space`: (n + 1, n) numbers.
    """
    r, w, k, v, c, b = rows
    u, states = kept
    n, d = form.d_head, form.d_model
    matrix, last = space[:n], space[n]
    state = matrix.ctypes.data
    for lane in range(form.n_lanes):
        for t in range(form.n_tokens, form.n_padded):
            read[lane * form.n_padded + t] = 0
        for head in range(form.n_heads):
            turned_vectors(before[lane, head], matrix)
            at_head = 4 * (lane * form.n_padded * d + head * n)
            from_u = u.ctypes.data + at_head
            for i in range(n):
                u[lane * form.n_padded, head * n + i] = 0
            add_product((1, n, n), c.ctypes.data + at_head, n, 1, state, n, from_u, n)
            for i in range(n):
                u[lane * form.n_padded, head * n + i] *= np.float32(-1.0)
            for t in range(form.n_tokens):
                here = at_head + 4 * d * t
                if starts[lane, t]:
                    matrix[:] = 0
                    for i in range(n):
                        u[lane * form.n_padded + t, head * n + i] = 0
                if t % SEGMENT == 0:
                    _copy(matrix, states[lane, t // SEGMENT, head])
                more = t + 1 < form.n_tokens
                there = here + 4 * d if more else here
                to_u = u.ctypes.data + there if more else last.ctypes.data
                of = (
                    r.ctypes.data + here,
                    w.ctypes.data + here,
                    k.ctypes.data + here,
                    c.ctypes.data + there,
                    b.ctypes.data + here,
                )
                _step(n, state, of, v.ctypes.data + here, u.ctypes.data + here, read.ctypes.data + here, to_u)
            turned_vectors(matrix, after[lane, head])


@called
def _step(n, state, rows, v, u, y, u_next):  # type: ignore[no-untyped-def]
    i = 0
    while i + 2 * LANES <= n:
        _forward_wide(n, state + 4 * i, rows, v + 4 * i, u + 4 * i, y + 4 * i, u_next + 4 * i)
        i += 2 * LANES
    if i < n:
        _forward_narrow(n, state + 4 * i, rows, v + 4 * i, u + 4 * i, y + 4 * i, u_next + 4 * i)


@called
def _step_again(n, state, after, w, k, b, v, u):  # type: ignore[no-untyped-def]
    j = 0
    while j + 2 * LANES <= n:
        _again_wide(n, state + 4 * j, after + 4 * j, w + 4 * j, k + 4 * j, b + 4 * j, v, u)
        j += 2 * LANES
    if j < n:
        _again_narrow(n, state + 4 * j, after + 4 * j, w + 4 * j, k + 4 * j, b + 4 * j, v, u)


@called
def _step_back(n, g, before, after, rows, columns, d_rows, dv):  # type: ignore[no-untyped-def]
    if n == LANES:
        _backward_1(g, before, after, rows, columns, d_rows, dv)
    elif n == 2 * LANES:
        _backward_2(g, before, after, rows, columns, d_rows, dv)
    elif n == 4 * LANES:
        _backward_4(g, before, after, rows, columns, d_rows, dv)
    else:
        _backward_8(g, before, after, rows, columns, d_rows, dv)


@called
def states_backward(form, starts, rows, kept, d_read, d_rows, space):  # type: ignore[no-untyped-def]
    """Gradients (M, D) of the six `rows` of `states_forward` from that of what it read, zero where no token is.

    What comes after the last token gives none, and what was carried gets none. `space`: (SEGMENT + 3, n, n) numbers.
    """
    r, w, k, v, c, b = rows
    d_r, d_w, d_k, d_v, d_c, d_b = d_rows
    u, states = kept
    n, d = form.d_head, form.d_model
    g, nothing, passed = space[0], space[1], space[2:]
    nothing[:] = 0
    for lane in range(form.n_lanes):
        for t in range(lane * form.n_padded + form.n_tokens, (lane + 1) * form.n_padded):
            for part in d_rows:
                part[t] = 0
        for head in range(form.n_heads):
            g[:] = 0
            at_head = 4 * (lane * form.n_padded * d + head * n)
            for back in range(states.shape[1]):
                first = (states.shape[1] - 1 - back) * SEGMENT
                end = min(first + SEGMENT, form.n_tokens)
                turned_vectors(states[lane, first // SEGMENT, head], passed[0])
                for t in range(first, end):
                    here = at_head + 4 * d * t
                    before = nothing if starts[lane, t] else passed[t - first]
                    of = w.ctypes.data + here, k.ctypes.data + here, b.ctypes.data + here
                    to = passed[t - first + 1].ctypes.data
                    _step_again(n, before.ctypes.data, to, *of, v.ctypes.data + here, u.ctypes.data + here)
                for t in range(end - 1, first - 1, -1):
                    here = at_head + 4 * d * t
                    before = nothing if starts[lane, t] else passed[t - first]
                    of_token = (
                        r.ctypes.data + here,
                        w.ctypes.data + here,
                        k.ctypes.data + here,
                        c.ctypes.data + here,
                        b.ctypes.data + here,
                    )
                    given = v.ctypes.data + here, u.ctypes.data + here, d_read.ctypes.data + here
                    taken = (
                        d_r.ctypes.data + here,
                        d_w.ctypes.data + here,
                        d_k.ctypes.data + here,
                        d_c.ctypes.data + here,
                        d_b.ctypes.data + here,
                    )
                    after = passed[t - first + 1].ctypes.data
                    to_v = d_v.ctypes.data + here
                    _step_back(n, g.ctypes.data, before.ctypes.data, after, of_token, given, taken, to_v)
                    if starts[lane, t]:
                        g[:] = 0
