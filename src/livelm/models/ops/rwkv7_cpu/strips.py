"""Formulas over vectors of numbers, written as sums and products of them, that numba compiles.

What a loop in Python's words makes of a formula with eight arrays is not a loop of vectors: the compiler would have to
see that none of them overlap. Here it is told so, and a formula of any size reads and writes each number once.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from livelm.compiled.vectors import (
    FLOAT,
    INT,
    LANES,
    VECTOR,
    Builder,
    Value,
    at,
    builtin,
    constant,
    exponential,
    llvm,
    load,
    loop,
    splat,
    store,
)

_FUSED = ("contract",)


class Vector:
    """LANES numbers, in formulas."""

    def __init__(self, builder: Builder, value: Value) -> None:
        self.builder, self.value = builder, value

    def _of(self, other: "Vector | float") -> Value:
        return other.value if isinstance(other, Vector) else constant(other)

    def __add__(self, other: "Vector | float") -> "Vector":
        return Vector(self.builder, self.builder.fadd(self.value, self._of(other), flags=_FUSED))

    def __radd__(self, other: float) -> "Vector":
        return self + other

    def __sub__(self, other: "Vector | float") -> "Vector":
        return Vector(self.builder, self.builder.fsub(self.value, self._of(other), flags=_FUSED))

    def __rsub__(self, other: float) -> "Vector":
        return Vector(self.builder, self.builder.fsub(constant(other), self.value, flags=_FUSED))

    def __mul__(self, other: "Vector | float") -> "Vector":
        return Vector(self.builder, self.builder.fmul(self.value, self._of(other), flags=_FUSED))

    def __rtruediv__(self, other: float) -> "Vector":
        return Vector(self.builder, self.builder.fdiv(constant(other), self.value))

    def root(self) -> "Vector":
        """The square root."""
        return Vector(self.builder, self.builder.call(builtin(self.builder, "sqrt", 1), [self.value]))

    def size(self) -> "Vector":
        """The absolute value."""
        return Vector(self.builder, self.builder.call(builtin(self.builder, "fabs", 1), [self.value]))

    def exp(self) -> "Vector":
        """e^x, see `vectors.exponential`."""
        return Vector(self.builder, exponential(self.builder, self.value))

    def sigmoid(self) -> "Vector":
        """1 / (1 + e^-x)."""
        return 1.0 / ((0.0 - self).exp() + 1.0)

    def below(self, bound: float, then: "Vector", other: "Vector") -> "Vector":
        """`then` where it is less than a bound, `other` elsewhere, and where it is NaN."""
        less = self.builder.fcmp_ordered("<", self.value, constant(bound))
        return Vector(self.builder, self.builder.select(less, then.value, other.value))

    def tanh(self) -> "Vector":
        """By a polynomial below 0.625, by the exponential above (Cephes, tanhf.c)."""
        z = self * self
        p = z * -5.70498872745e-3 + 2.06390887954e-2
        for factor in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
            p = p * z + factor
        far = 1.0 - Vector(self.builder, constant(2.0)).over((self.size() * 2.0).exp() + 1.0)
        return self.size().below(0.625, p * z * self + self, self.below(0.0, 0.0 - far, far))

    def over(self, other: "Vector") -> "Vector":
        """One by the other."""
        return Vector(self.builder, self.builder.fdiv(self.value, other.value))

    def total(self) -> Value:
        """The sum of all."""
        kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, [ir.Constant(FLOAT, 0.0), self.value], fastmath=("reassoc",))


Formula = Callable[[list[Vector], list[Vector]], list[Vector]]


def strip(formula: Formula, n_sums: int = 0) -> Any:
    """What applies a formula to n > 0 numbers at each of some addresses, n a multiple of LANES.

    The compiled function takes n, a tuple of addresses to read, a tuple of numbers (float32), a tuple of addresses to
    write, and one of single numbers that take sums: `formula` gets vectors of what is read and of each number, and
    returns what is written, then `n_sums` of which the sums over all n are. Tuples have one item at least; a missing
    one is (0,), of which nothing is read, written or summed if the formula has no use for it.
    """

    @llvm
    def run(typing: Any, n: Any, reads: Any, numbers: Any, writes: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
            n, *groups = arguments
            parts = [
                [builder.extract_value(group, i) for i in range(kind.count)]
                for group, kind in zip(groups, signature.args[1:], strict=True)
            ]
            given, singles, taken, totals = parts
            spread = [Vector(builder, splat(builder, number)) for number in singles]

            def step(i: Value, values: list[Any]) -> list[Value]:
                place = builder.mul(i, INT(LANES))
                made = formula([Vector(builder, load(builder, address, place)) for address in given], spread)
                for vector, address in zip(made[: len(made) - n_sums], taken, strict=True):
                    store(builder, vector.value, address, place)
                sums = made[len(made) - n_sums :]
                return [(Vector(builder, value) + own).value for value, own in zip(values, sums, strict=True)]

            pieces = builder.sdiv(n, INT(LANES))
            for value, address in zip(loop(builder, pieces, [constant(0.0)] * n_sums, step), totals, strict=False):
                builder.store(Vector(builder, value).total(), at(builder, address, INT(0), FLOAT), align=4)
            return context.get_dummy_value()

        numbers32 = types.UniTuple(types.float32, numbers.count)
        return types.void(types.intp, reads, numbers32, writes, sums), generate

    return run
