"""What comes next, token by token, as it would be graded: by a network, by the counts, or by both; nothing is learned.

A listener carries its own state of the network; the memory reads on in its first lane. `listen` picks what fits.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from livelm.errors import ConfigError
from livelm.learn.bytes_of_bits import BIT_MARK, FLAG
from livelm.memory import AHEAD, GRADE, MARK, MARKS, CountMemory, logits_of_marks
from livelm.tokenize import Bits, Bytes
from livelm.types import Tokenizer


class Listener(Protocol):
    """Something that hears tokens and expects others."""

    def hear(self, ids: Sequence[int]) -> Tensor:
        """(V,) logits of the token after `ids` (one or more), which continue what was heard before."""
        ...


def listen(model: Any, memory: CountMemory | None, tokenizer: Tokenizer) -> Listener:
    """A listener before the first document, whose mark is the first thing it should hear.

    `model` is a `types.Model` or None. A memory beside tokens that are neither bytes nor bits has no part in it. Raises
    ConfigError where there is neither model nor memory.
    """
    if memory is not None and isinstance(tokenizer, Bytes):
        return MemoryListener(memory) if model is None else MixedListener(model, memory)
    if model is None:
        raise ConfigError("there is neither a model nor a memory that reads these tokens.")
    if memory is not None and isinstance(tokenizer, Bits):
        return BitListener(model, memory, tokenizer)
    return NetworkListener(model, tokenizer.mark)


class NetworkListener:
    """A network alone."""

    def __init__(self, model: Any, mark: int) -> None:
        self._model, self._state, self._mark = model, model.init_state(1), mark

    def hear(self, ids: Sequence[int]) -> Tensor:
        """(V,) logits of the token after `ids`."""
        tokens = torch.tensor([ids], device=next(self._model.parameters()).device)
        logits, self._state = self._model.forward(tokens, tokens == self._mark, self._state)
        return logits[0, -1].cpu()


class MemoryListener:
    """The counts alone, over bytes."""

    def __init__(self, memory: CountMemory) -> None:
        self._memory = memory

    def hear(self, ids: Sequence[int]) -> Tensor:
        """(257,) log probabilities of the token after `ids`."""
        self._memory.only_read(ids)
        return torch.from_numpy(self._memory.distribution())


class MixedListener:
    """A network over bytes and the counts."""

    def __init__(self, model: Any, memory: CountMemory) -> None:
        self._network, self._memory = NetworkListener(model, MARK), memory

    def hear(self, ids: Sequence[int]) -> Tensor:
        """(257,) log probabilities of the token after `ids`, as `MixedLearner` would grade it."""
        log_probs = torch.log_softmax(self._network.hear(ids).float(), -1)
        self._memory.only_read(ids)
        return torch.from_numpy(self._memory.distribution(log_probs=log_probs.numpy()))


class BitListener:
    """A network over bits and the counts, which hear whole bytes."""

    def __init__(self, model: Any, memory: CountMemory, tokenizer: Bits) -> None:
        self._network, self._memory, self._n_symbols = NetworkListener(model, BIT_MARK), memory, tokenizer.n_symbols
        self._begun: list[int] = []

    def hear(self, ids: Sequence[int]) -> Tensor:
        """(3,) log probabilities of the token after `ids`, as `MixedBitLearner` would grade it."""
        log_probs = torch.log_softmax(self._network.hear(ids).float(), -1).numpy()
        for token in ids:
            self._take(token)
        n = len(self._begun)
        if n == 8:  # the parity bit is the network's affair
            return torch.from_numpy(log_probs)
        tokens, modes = np.array([self._byte()]), np.array([GRADE | MARKS | AHEAD])
        bit_logits = np.zeros((1, 8))
        bit_logits[0, n] = np.nan_to_num(float(log_probs[1]) - float(log_probs[0]))
        said = self._memory.read(tokens, modes)
        flag = logits_of_marks(log_probs[BIT_MARK:])
        costs = self._memory.mix(said, tokens, modes, bit_logits, flag, np.zeros(1))[0]
        zero, goes_on = 0.5 ** costs[n], 0.5 ** costs[FLAG] if n == 0 else 1.0
        with np.errstate(divide="ignore"):  # inside a byte no document opens
            return torch.from_numpy(np.log([zero * goes_on, (1 - zero) * goes_on, 1 - goes_on]))

    def _take(self, token: int) -> None:
        if token == BIT_MARK:
            self._begun = []
            self._memory.only_read([MARK])
            return
        self._begun.append(token)
        if len(self._begun) == self._n_symbols:
            self._memory.only_read([self._byte()])
            self._begun = []

    def _byte(self) -> int:
        """The byte whose first bits have come; zeros for the others."""
        return sum(bit << (7 - b) for b, bit in enumerate(self._begun[:8]))
