"""One lane of bits as the bytes that a count memory reads; what begins a byte waits for the rest of it."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from livelm.errors import ContractError
from livelm.memory import AHEAD, GRADE, LEARN, MARK, MARKS, Costs, CountMemory, costs_of_counts, logits_of_marks
from livelm.types import LN_2

BIT_MARK = 2
"""The mark among tokens that are bits."""
FLAG = 8
"""Where `CountMemory.mix` says what the news whether a document opens cost, after the eight bits."""


class BitLane:
    """Joins a network over bits with the counts, byte by byte, for batches that end anywhere.

    A byte that is not all there is asked about without being taken; when it is whole it comes again, and then it is
    learned. Each bit is graded once, with what was known when it came.
    """

    def __init__(self, n_symbols: int) -> None:
        """`n_symbols`: tokens per byte, 8, or 9 with a parity bit, which tells nothing new and so costs nothing."""
        self._n_symbols = n_symbols
        self._ids, self._graded = np.empty(0, np.int64), np.empty(0, np.bool_)
        self._log_probs = np.empty((0, 3), np.float32)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The bits that wait, and what the network said of them."""
        values = {"ids": self._ids, "graded": self._graded, "log_probs": self._log_probs}
        return {name: torch.from_numpy(value.copy()) for name, value in values.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self._ids, self._graded = state["ids"].numpy().copy(), state["graded"].numpy().copy()
        self._log_probs = state["log_probs"].numpy().copy()

    def join(
        self,
        memory: CountMemory,
        lane: int,
        ids: NDArray[np.int64],
        graded: NDArray[np.bool_],
        log_probs: NDArray[np.float32],
        learns: bool,
    ) -> Costs:
        """(T,) costs in bits of the tokens `ids`, of which the network said `log_probs` (T, 3).

        Raises ContractError for a document that ends inside a byte.
        """
        n_before = len(self._ids)
        ids, graded = np.concatenate([self._ids, ids]), np.concatenate([self._graded, graded])
        log_probs = np.concatenate([self._log_probs, log_probs])
        first, n_there = self._divide(ids)
        tokens = np.where(ids[first] == BIT_MARK, MARK, 0)
        bit_logits, network_bits = np.zeros((len(first), 8)), np.zeros(len(first))
        own = np.where(graded, -log_probs[np.arange(len(ids)), ids].astype(np.float64) / LN_2, 0.0)
        own = np.nan_to_num(own, nan=8.0, posinf=8.0)
        for b in range(8):
            has = (n_there > b) & (tokens != MARK)
            at = first[has] + b
            tokens[has] |= ids[at] << (7 - b)
            bit_logits[has, b] = np.nan_to_num(log_probs[at, 1].astype(np.float64) - log_probs[at, 0])
        np.add.at(network_bits, np.repeat(np.arange(len(first)), n_there), own)
        whole = (tokens == MARK) | (n_there == self._n_symbols)
        modes = np.where(graded[first], np.int64(GRADE | MARKS), 0)
        modes = np.where(whole, modes | np.where(modes, LEARN if learns else 0, 0), modes | AHEAD)
        said = memory.read(tokens, modes, lane)
        flags = logits_of_marks(log_probs[first, BIT_MARK])
        mixed = memory.mix(said, tokens, modes, bit_logits, flags, network_bits)
        counts = costs_of_counts(said, tokens, modes)
        mixture, alone = self._spread(mixed, tokens, first, n_there), self._spread(counts, tokens, first, n_there)
        n_waiting = 0 if whole[-1] else int(n_there[-1])
        waiting = slice(len(ids) - n_waiting, None)
        self._ids, self._graded, self._log_probs = ids[waiting], graded[waiting], log_probs[waiting]
        return Costs(mixture[n_before:], alone[n_before:], own[n_before:])

    def _divide(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each mark and each byte begins, and how many tokens of it are there (only the last may lack some)."""
        n, edges = self._n_symbols, [-1, *np.flatnonzero(ids == BIT_MARK).tolist(), len(ids)]
        first: list[int] = []
        for mark, end in pairwise(edges):
            if (end - mark - 1) % n and end != len(ids):
                raise ContractError(f"a document ends after {(end - mark - 1) % n} of the {n} tokens of a byte.")
            first += [*([mark] if mark >= 0 else []), *range(mark + 1, end, n)]
        return np.array(first), np.diff([*first, len(ids)])

    def _spread(
        self,
        costs: NDArray[np.float64],
        tokens: NDArray[np.int64],
        first: NDArray[np.int64],
        n_there: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Costs (n, 9) of bytes as those of the tokens they are made of; of the mark's news at the first of them."""
        spread = np.zeros(int(n_there.sum()))
        spread[first] = costs[:, FLAG]
        for b in range(8):
            has = (n_there > b) & (tokens != MARK)
            spread[first[has] + b] += costs[has, b]
        return spread
