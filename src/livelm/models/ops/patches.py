"""Symbols in patches: which tokens complete one, and by which number a patch, whole or begun, is looked up.

A document is its first token (the mark), which is a patch by itself, then patches of `n_symbols` tokens each. Symbols
are the digits of a patch's number in base `n_digits`; the last id of the vocabulary is no digit, and a patch with it
in it has the number after the last, as the mark has. With parity the last symbol of a patch is no digit either: it
is the sum of those before it modulo 2, and nothing is looked up by it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from livelm.compiled import compiles
from livelm.models.ops import patches_cpu
from livelm.models.ops.grid import ages
from livelm.models.ops.patches_cpu import IDLE
from livelm.types import State


@dataclass(frozen=True, slots=True)
class Layout:
    """How many symbols make a patch, and what they can be."""

    n_digits: int
    """Symbols 0 .. n_digits - 1 are digits; id n_digits is none."""
    n_data: int
    """Digits of a patch."""
    parity: bool

    @property
    def n_symbols(self) -> int:
        """Tokens of a patch."""
        return self.n_data + self.parity

    @property
    def n_leaves(self) -> int:
        """Numbers of whole patches; one more row stands for the mark."""
        return self.n_digits**self.n_data

    @property
    def n_inner(self) -> int:
        """Numbers of begun patches, the empty one included; one more row stands for all with the mark in them."""
        return sum(self.n_digits**depth for depth in range(self.n_data))

    def taps(self) -> Int[Tensor, "R N"]:
        """What the digit i tokens back counts, by how many tokens of a patch were read: 0 (the patch is whole), 1, ...

        The last row is for a token that is a patch by itself.
        """
        rows = [[0] * self.n_symbols for _ in range(self.n_symbols + 1)]
        for i in range(self.n_data):
            rows[0][i + self.parity] = self.n_digits**i
            for read in range(i + 1, self.n_symbols):
                rows[read][i] = self.n_digits**i
        rows[-1][0] = 1
        return torch.tensor(rows)

    def offsets(self) -> Int[Tensor, " N"]:
        """The first number of begun patches, by how many of their tokens were read."""
        before = [sum(self.n_digits**depth for depth in range(read)) for read in range(self.n_symbols)]
        return torch.tensor(before)


@dataclass(frozen=True, slots=True)
class Patches:
    """The T new tokens of B lanes. At most W patches are completed in a lane; lanes with fewer have idle rows."""

    document: Int[Tensor, "B W"]
    """The number of each patch's document; IDLE for an idle row, whose other numbers mean nothing."""
    position: Int[Tensor, "B W"]
    """Patches before it in its document."""
    leaf: Int[Tensor, "B W"]
    """The number of each of these patches."""
    n_whole: Int[Tensor, " B"]
    """Patches completed in each lane."""
    heard: Int[Tensor, "B T"]
    """The newest whole patch at each token, among the W + 1 of all lanes laid end to end: first the carried one."""
    node: Int[Tensor, "B T"]
    """The number of what was read after that patch; 0 where parity comes next."""
    parity: Int[Tensor, "B T"] | None
    """The parity symbol where it comes next, -1 elsewhere; None where patches have none."""
    after: State
    """What `number_patches` wants to know before the next tokens."""


def begin_patches(n_lanes: int, layout: Layout, device: torch.device | None = None) -> State:
    """What there is before the first token: its age, the tokens before it, and the number of the last document."""
    return {
        "age": torch.zeros(n_lanes, dtype=torch.int64, device=device),
        "recent": torch.zeros(n_lanes, layout.n_symbols - 1, dtype=torch.int64, device=device),
        "document": torch.full((n_lanes,), -1, dtype=torch.int64, device=device),
    }


def number_patches(tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], before: State, layout: Layout) -> Patches:
    """Find and number the patches. `before`: see `begin_patches`."""
    if compiles() and patches_cpu.fit(tokens, starts, before):
        return Patches(*patches_cpu.number(tokens, starts, before, layout))
    n = layout.n_symbols
    age = ages(starts, before["age"])
    document = before["document"][:, None] + (age == 0).cumsum(dim=1)
    read = torch.where(age == 0, n, age % n)
    taps = layout.taps().to(tokens.device)[read]
    all_tokens = torch.cat([before["recent"], tokens], dim=1)
    window = all_tokens.unfold(1, n, 1).flip(-1)
    number = (window * taps).sum(dim=-1)
    strange = ((window == layout.n_digits) & (taps > 0)).any(dim=-1)
    whole = (read == 0) | (age == 0)
    rank = whole.cumsum(dim=1)
    n_whole = rank[:, -1]
    n_rows = int(n_whole.max())  # known only when the tokens are: most batches of few tokens need no trunk at all
    at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # what completes no patch is written into a last column, which is dropped
    place = torch.zeros(len(tokens), n_rows + 1, dtype=torch.int64, device=tokens.device)
    place = place.scatter_(1, torch.where(whole, rank - 1, n_rows), at)[:, :n_rows]
    leaf = torch.where(strange, layout.n_leaves, number).gather(1, place)
    begun = torch.where(whole, 0, read)
    node = layout.offsets().to(tokens.device)[begun] + torch.where(whole, 0, number)
    node = torch.where(strange & ~whole, layout.n_inner, node)
    parity = None
    if layout.parity:
        comes_next = begun == layout.n_data
        node = node.masked_fill(comes_next, 0)
        parity = torch.where(comes_next, (window * (taps > 0)).sum(dim=-1) % 2, -1)
    lane = torch.arange(len(tokens), device=tokens.device)[:, None]
    idle = torch.arange(n_rows, device=tokens.device) >= n_whole[:, None]
    own, position = document.gather(1, place).masked_fill(idle, IDLE), age.gather(1, place) // n
    after: State = {"age": age[:, -1] + 1, "document": document[:, -1].clone()}
    after["recent"] = all_tokens[:, tokens.shape[1] :].clone()
    return Patches(own, position, leaf, n_whole, rank + lane * (n_rows + 1), node, parity, after)


def number_patches_reference(
    tokens: list[int], starts: list[bool], layout: Layout
) -> tuple[list[tuple[int, int]], list[int]]:
    """One lane from its beginning, token by token: (place, number) of each whole patch, and the node at each token.

    Where parity comes next the node is -1 - parity.
    """
    whole, nodes, read = [], [], None
    for place, (token, begins) in enumerate(zip(tokens, starts, strict=True)):
        first = begins or read is None
        read = [token] if first or read is None else [*read, token]
        if first or len(read) == layout.n_symbols:
            digits = read[: layout.n_data]
            whole.append((place, layout.n_leaves if layout.n_digits in digits else _value(digits, layout)))
            read = []
        if len(read) == layout.n_data:
            nodes.append(-1 - sum(read) % 2)
        elif layout.n_digits in read:
            nodes.append(layout.n_inner)
        else:
            nodes.append(sum(layout.n_digits**depth for depth in range(len(read))) + _value(read, layout))
    return whole, nodes


def _value(digits: list[int], layout: Layout) -> int:
    value = 0
    for digit in digits:
        value = value * layout.n_digits + digit
    return value
