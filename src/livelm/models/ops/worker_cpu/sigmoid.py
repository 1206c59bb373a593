"""Sigmoids of many numbers, a vector of them at a time."""

from typing import Any

from numba import types

from livelm.compiled.vectors import INT, LANES, Builder, Value, constant, exponential, llvm, load, loop, store


@llvm
def sigmoids(typing: Any, x: Any, out: Any, n: Any) -> Any:
    """1 / (1 + e^-x) of n >= 1 vectors at an address, to another or the same; NaN stays NaN."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        x, out, n = arguments

        def step(i: Value, _: list[Any]) -> list[Value]:
            place = builder.mul(i, INT(LANES))
            power = exponential(builder, builder.fsub(constant(0.0), load(builder, x, place)))
            store(builder, builder.fdiv(constant(1.0), builder.fadd(constant(1.0), power)), out, place)
            return []

        loop(builder, n, [], step)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate
