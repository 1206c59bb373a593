"""Shorten a gradient that is too long."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from livelm.compiled import compiles, reordered, unchecked
from livelm.compiled.addresses import MOST, flat, floats_at, integers_at


def clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Length of the dense gradients of some parameters together, which is `most` at most afterwards; 0 of none.

    Where the length is not finite the gradients are of no use, whatever is in them. Sparse gradients are left alone:
    rows touched by chance (n-gram tables) have a learning rule that needs no clipping.
    """
    if not compiles():
        return clip_reference(parameters, most)
    at, sizes = [], []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if flat(gradient):
            at.append(gradient.data_ptr())
            sizes.append(gradient.numel())
        elif not gradient.is_sparse:
            return clip_reference(parameters, most)
    if sum(sizes) > MOST:
        return clip_reference(parameters, most)
    lists = array("q", at + sizes)
    where = len(at), lists.buffer_info()[0]
    length = math.sqrt(_square_sum(*where))
    factor = most / (length + 1e-6)
    if factor < 1.0:
        _scale(*where, factor)
    return length


def clip_reference(parameters: Sequence[nn.Parameter], most: float) -> float:
    """The same by torch, for tensors of any kind."""
    dense = [parameter for parameter in parameters if parameter.grad is not None and not parameter.grad.is_sparse]
    return float(nn.utils.clip_grad_norm_(dense, most))


@reordered
def _squares(x: Any, n: int) -> float:
    total = 0.0
    for i in range(n):
        number = np.float64(x[i])
        total += number * number
    return total


@unchecked
def _square_sum(n: int, lists_at: int) -> float:
    """Of `n` tensors; there are their addresses, then their sizes."""
    lists, total = integers_at(lists_at), 0.0
    for k in range(n):
        total += _squares(floats_at(lists[k]), lists[n + k])
    return total


@unchecked
def _scale(n: int, lists_at: int, factor: float) -> None:
    lists, short = integers_at(lists_at), np.float32(factor)
    for k in range(n):
        x = floats_at(lists[k])
        for i in range(lists[n + k]):
            x[i] *= short
