"""`patches.number_patches` on a CPU, token by token in one compiled function: torch starts some sixty operations."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from livelm.compiled import compiled
from livelm.types import State

IDLE = -2
"""Document that rows without a patch belong to."""


def fit(tokens: Tensor, starts: Tensor, before: State) -> bool:
    """Whether these are tokens on the CPU as they should be: compiled functions look at no bounds."""
    alike = starts.shape == tokens.shape and all(len(tensor) == len(tokens) for tensor in before.values())
    return alike and tokens.is_cpu and tokens.dtype == torch.int64 and tokens.numel() > 0


def number(tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], before: State, layout: Any) -> tuple[Any, ...]:
    """The fields of `patches.Patches`, for tokens that `fit`."""
    (n_lanes, n_tokens), n_recent = tokens.shape, layout.n_symbols - 1
    document, position, leaf, heard, node, parity = torch.empty(6, n_lanes, n_tokens, dtype=torch.int64).unbind()
    n_whole, age, newest = torch.empty(3, n_lanes, dtype=torch.int64).unbind()
    recent = torch.empty(n_lanes, n_recent, dtype=torch.int64)
    sizes = layout.n_digits, layout.n_data, layout.n_symbols, layout.n_leaves, layout.n_inner
    told = (tokens.contiguous(), starts.contiguous(), before["age"], before["document"], before["recent"])
    found = document, position, leaf, heard, node, parity, n_whole, age, newest, recent
    n_rows = _number(sizes, *(tuple(tensor.numpy() for tensor in tensors) for tensors in (told, found)))
    after: State = {"age": age, "document": newest, "recent": recent}
    rows = (tensor[:, :n_rows] for tensor in (document, position, leaf))
    return *rows, n_whole, heard, node, parity if layout.parity else None, after


@compiled
def _number(sizes, told, found):  # type: ignore[no-untyped-def]
    """Fill what is found, all of it for T patches in a lane; returns how many there are at most.

    `sizes`: what a digit can be, digits of a patch, symbols of it, numbers of whole patches and of begun ones.
    """
    n_digits, n_data, n_symbols, n_leaves, n_inner = sizes
    tokens, starts, ages, last_documents, recent = told
    documents, positions, leaves, heard, nodes, parities, n_whole, after_age, after_document, after_recent = found
    n_lanes, n_tokens = tokens.shape
    n_recent, most = n_symbols - 1, 0
    for lane in range(n_lanes):
        age, document, rank = ages[lane], last_documents[lane], 0
        n_read = (age - 1) % n_symbols if age > 0 else 0  # of the patch that is begun
        number, total, strange, offset = 0, 0, False, 0
        for back in range(n_read, 0, -1):  # read again what there is of it
            digit = recent[lane, n_recent - back]
            offset, number = n_digits * offset + 1, n_digits * number + digit
            total, strange = total + digit, strange or digit == n_digits
        for t in range(n_tokens):
            token = tokens[lane, t]
            age = 0 if starts[lane, t] else age
            if age == 0:  # a patch by itself
                document, n_read = document + 1, n_symbols
                number, total, strange, offset = token, token, token == n_digits, 0
            else:
                n_read += 1
                if n_read <= n_data:
                    offset, number = n_digits * offset + 1, n_digits * number + token
                    total, strange = total + token, strange or token == n_digits
            nodes[lane, t], parities[lane, t] = n_inner if strange else offset + number, -1
            if n_read == n_symbols:
                documents[lane, rank], positions[lane, rank] = document, age // n_symbols
                leaves[lane, rank] = n_leaves if strange else number
                nodes[lane, t], rank = 0, rank + 1
                n_read, number, total, strange, offset = 0, 0, 0, False, 0
            elif n_read == n_data:  # parity comes next
                nodes[lane, t], parities[lane, t] = 0, total % 2
            heard[lane, t] = rank
            age += 1
        n_whole[lane], after_age[lane], after_document[lane] = rank, age, document
        most = max(most, rank)
        for i in range(n_recent):
            t = n_tokens - n_recent + i
            after_recent[lane, i] = tokens[lane, t] if t >= 0 else recent[lane, n_recent + t]
    for lane in range(n_lanes):
        for t in range(n_tokens):
            heard[lane, t] += lane * (most + 1)
        for row in range(n_whole[lane], most):
            documents[lane, row], positions[lane, row], leaves[lane, row] = IDLE, 0, 0
    return most
