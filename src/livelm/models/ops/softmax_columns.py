"""Softmax down the columns of a matrix, a vector of columns at a time: read twice, they are in the cache by then."""

from typing import Any

from numba import types

from livelm.compiled.vectors import INT, Builder, Value, constant, exponential, llvm, load, loop, store


class _Strip:
    """LANES columns of n >= 1 rows, `row` numbers apart, at an address."""

    def __init__(self, builder: Builder, x: Value, row: Value, n: Value) -> None:
        self.builder, self.x, self.row, self.n = builder, x, row, n

    def read(self, i: Value) -> tuple[Value, Value]:
        """Where row i is, and what is there."""
        place = self.builder.mul(i, self.row)
        return place, load(self.builder, self.x, place)

    def top(self) -> Value:
        """The greatest number of each column, of those that are numbers."""

        def look(i: Value, values: list[Any]) -> list[Value]:
            value = self.read(i)[1]
            return [self.builder.select(self.builder.fcmp_ordered(">", value, values[0]), value, values[0])]

        return loop(self.builder, self.n, [load(self.builder, self.x, INT(0))], look)[0]

    def exponentials(self, top: Value, *, keep: bool) -> Value:
        """Sums of e^(x - top), which takes the place of x to `keep`; 0 where x is 87 or more below, as if masked."""

        def add(i: Value, values: list[Any]) -> list[Value]:
            place, value = self.read(i)
            value = self.builder.fsub(value, top)
            tiny = self.builder.fcmp_ordered("<", value, constant(-87.0))
            value = self.builder.select(tiny, constant(0.0), exponential(self.builder, value))
            if keep:
                store(self.builder, value, self.x, place)
            return [self.builder.fadd(values[0], value)]

        return loop(self.builder, self.n, [constant(0.0)], add)[0]

    def multiply(self, share: Value) -> None:
        """Every row by a vector, in place."""

        def times(i: Value, values: list[Any]) -> list[Value]:
            place, value = self.read(i)
            store(self.builder, self.builder.fmul(value, share), self.x, place)
            return []

        loop(self.builder, self.n, [], times)


@llvm
def softmax_strip(typing: Any, x: Any, row: Any, n: Any) -> Any:
    """In place: the softmax of LANES columns, of which each has a number above -inf. A NaN makes its column NaN."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        strip = _Strip(builder, *arguments)
        total = strip.exponentials(strip.top(), keep=True)
        strip.multiply(builder.fdiv(constant(1.0), total))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@llvm
def sum_strip(typing: Any, x: Any, row: Any, n: Any, top: Any, total: Any) -> Any:
    """Of LANES columns the greatest number, and the sum of e^(x - that), to two addresses."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        strip = _Strip(builder, *arguments[:3])
        greatest = strip.top()
        store(builder, greatest, arguments[3], INT(0))
        store(builder, strip.exponentials(greatest, keep=False), arguments[4], INT(0))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@llvm
def exponential_strip(typing: Any, x: Any, row: Any, n: Any) -> Any:
    """e^x of LANES columns of numbers that are 0 at most, in place."""

    def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
        _Strip(builder, *arguments).exponentials(constant(0.0), keep=True)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate
