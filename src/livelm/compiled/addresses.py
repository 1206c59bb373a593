"""Tensors by their addresses, as compiled functions take them: to unpack an array costs a call more than a small sum.

A small update changes some twenty tensors of a few thousand numbers. What torch does to a list of them costs 1 to 10
microseconds for each, and the Python of its optimizers as much again; the arithmetic of all takes less.
"""

from typing import Any

import torch
from numba import types
from torch import Tensor

from livelm.compiled import vectors
from livelm.compiled.vectors import llvm

MOST = 1 << 21
"""Numbers in all up to which lists of tensors are taken. With a million of them whole updates of a `worker` take 17 %
less time than with torch's rules on one core; with two to four million 3 to 7 % on one, and nothing on two."""


def flat(tensor: Tensor) -> bool:
    """Whether it is float32 on the CPU without gaps in memory."""
    return tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous()


def _pointer(kind: Any) -> Any:
    """Inside of compiled functions: from an address to numbers of a type, which are indexed like an array."""

    @llvm
    def at(_typing: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return at


floats_at = _pointer(types.float32)
doubles_at = _pointer(types.float64)
integers_at = _pointer(types.int64)


@llvm
def prefetch(_typing: Any, _address: Any) -> Any:
    """Inside of compiled functions: have the 64 bytes at an address brought into the second-level cache."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vectors.prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate
