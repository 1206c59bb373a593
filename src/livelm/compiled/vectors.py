"""Vectors of float32 in registers, for functions that numba compiles: told to LLVM where its own guess is worse."""

from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

Builder: TypeAlias = Any  # llvmlite's have no types
Value: TypeAlias = Any
llvm: Any = intrinsic  # and its stubs do not know that the typing context is passed by itself

_FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f", False) else 8
"""float32 numbers in a vector; where a register holds fewer (NEON, SSE), the compiler splits it."""
PAIRS = LANES == 16 and bool(_FEATURES.get("avx512bf16", False))
"""Whether the processor multiplies pairs of bfloat16 into float32 sums (vdpbf16ps)."""
FLOAT, INT, WORD = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)


def at(builder: Builder, address: Value, offset: Value, kind: ir.Type) -> Value:
    """A pointer to `kind` that is `offset` float32 numbers after the address."""
    base = builder.inttoptr(address, FLOAT.as_pointer())
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def load(builder: Builder, address: Value, offset: Value, kind: ir.VectorType = VECTOR) -> Value:
    """A vector that is `offset` float32 numbers after the address."""
    return builder.load(at(builder, address, offset, kind), align=4)


def store(builder: Builder, value: Value, address: Value, offset: Value) -> None:
    """Write a vector there."""
    builder.store(value, at(builder, address, offset, VECTOR), align=4)


def splat(builder: Builder, value: Value, kind: ir.VectorType = VECTOR) -> Value:
    """A vector of one number."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(WORD, LANES), None))


def constant(value: float) -> ir.Constant:
    """A vector of one constant."""
    return ir.Constant(VECTOR, [FLOAT(float(np.float32(value)))] * LANES)


def multiply_add(builder: Builder) -> Callable[..., Value]:
    """a b + c."""
    function = builtin(builder, "fmuladd", 3)  # two roundings where the processor has no fused one
    return lambda a, b, c: builder.call(function, [a, b, c])


def multiply_add_pairs(builder: Builder) -> Callable[..., Value]:
    """c + a[2i] b[2i] + a[2i+1] b[2i+1] for bfloat16 numbers, two to a word."""
    kind = ir.FunctionType(VECTOR, [VECTOR, WORDS, WORDS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return lambda a, b, c: builder.call(function, [c, a, b])


def prefetch(builder: Builder, address: Value) -> None:
    """Call what lies at the address into the second-level cache."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, WORD, WORD, WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, pointer), WORD(0), WORD(2), WORD(1)])


def builtin(builder: Builder, name: str, n_arguments: int) -> ir.Function:
    """LLVM's own function of so many vectors."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * n_arguments)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")


def loop(
    builder: Builder, n: Value, start: list[Value], step: Callable[[Value, list[Any]], list[Value]]
) -> list[Value]:
    """for i in range(n): values = step(i, values), with the values in registers. `n` is at least 1."""
    before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    i = builder.phi(INT)
    values = [builder.phi(value.type) for value in start]
    new = step(i, values)
    following = builder.add(i, INT(1))
    i.add_incoming(INT(0), before)
    i.add_incoming(following, body)
    for phi, first, later in zip(values, start, new, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, body)
    builder.cbranch(builder.icmp_signed("<", following, n), body, after)
    builder.position_at_end(after)
    return new


def exponential(builder: Builder, x: Value) -> Value:
    """e^x for x of -87 to 88, beyond which x is taken as that (Cephes, expf.c); NaN stays NaN."""
    fma = multiply_add(builder)
    x = builder.select(builder.fcmp_ordered(">", x, constant(88.0)), constant(88.0), x)
    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    n = builder.call(builtin(builder, "floor", 1), [fma(x, constant(1.44269504088896341), constant(0.5))])
    r = fma(n, constant(-0.693359375), x)
    r = fma(n, constant(2.12194440e-4), r)
    p = constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        p = fma(p, r, constant(factor))
    exponent = builder.add(builder.fptosi(n, WORDS), ir.Constant(WORDS, [WORD(127)] * LANES))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(WORDS, [WORD(23)] * LANES)), VECTOR)
    return builder.fmul(p, power)


def round_to_bfloat16(builder: Builder, x: Value) -> Value:
    """The nearest number, ties to even, that bfloat16 has: for numbers, not for NaN."""
    words = [ir.Constant(WORDS, [WORD(word)] * LANES) for word in (16, 1, 0x7FFF, 0xFFFF0000)]
    bits = builder.bitcast(x, WORDS)
    even = builder.and_(builder.lshr(bits, words[0]), words[1])
    return builder.bitcast(builder.and_(builder.add(builder.add(bits, even), words[2]), words[3]), VECTOR)
