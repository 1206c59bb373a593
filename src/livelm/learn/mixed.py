"""Learners with a count memory: alone, mixed with a network over bytes or bits, or beside one over other tokens.

The counts learn inside `score`, each byte as soon as it was graded; the weights in `update`, by their own cost. What a
network says is mixed with the counts bit by bit, and the graded number is the mixture's. To tell the network what the
counts say (their log probabilities added to its logits) gained less, 0.10 % in place of 0.41 over 256 KB of
tinyshakespeare with the mixers of then: it becomes another voice for what the counts say. By the mixture's cost it
learned nothing in 64 KB.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from livelm.errors import ContractError
from livelm.learn.bytes_of_bits import BitLane
from livelm.learn.learner import Learner, check_batch, mean_of
from livelm.learn.score_first import ScoreFirst
from livelm.memory import GRADE, LEARN, MARK, MARKS, Costs, CountMemory
from livelm.models.ops.head import says_of
from livelm.types import LN_2, Batch, Scored, State, Tokenizer, Update


def modes_of(graded: Tensor, *, learns: bool) -> NDArray[np.int64]:
    """(T,) what the memory does with each token: graded ones are learned if it learns; others are only read.

    What is only read becomes part of the past, as it does for a network: repetitions of it are found, contexts are
    made of it. No count and no weight of a mixer changes by it.
    """
    return graded.numpy() * np.int64(GRADE | MARKS | (LEARN if learns else 0))


class MemoryLearner(ScoreFirst):
    """The count memory alone, over bytes: no network, no tensors but those a batch comes in."""

    def __init__(self, memory: CountMemory, n_lanes: int) -> None:
        super().__init__()
        self.memory = memory
        self.n_updates = 0
        self.reset_lanes(n_lanes)

    def reset_lanes(self, n_lanes: int) -> None:
        """Begin every lane anew, as if nothing had been read; the counts stay.

        Raises ContractError for more lanes than the memory has.
        """
        _reset(self.memory, n_lanes)
        self.n_lanes = n_lanes

    def state_dict(self) -> dict[str, Any]:
        """Everything that later scores depend on, as a tree of tensors and plain values."""
        return {"memory": self.memory.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.load_weights(state)
        self.n_updates = state["n_updates"]

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take what was learned. Raises CheckpointError where it does not fit."""
        self.memory.load_state_dict(state.get("memory", {}))

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        check_batch(batch, self.n_lanes, MARK + 1)
        nats = torch.zeros(batch.tokens.shape, dtype=torch.float64)
        for lane, tokens in enumerate(batch.tokens.numpy()):
            bits = self.memory.cost(tokens, modes_of(batch.graded[lane], learns=learns), lane)
            nats[lane] = torch.from_numpy(bits * LN_2)
        total = float(nats.sum())
        return Scored(seal=self._seal, batch=batch, nats=nats, sum_nats=total, loss=None, taught=learns)

    def _learn(self, scored: Scored) -> Update:
        self.n_updates += 1
        return Update(scored.batch.index, 0.0, 0.0, None)

    def _refuse(self, scored: Scored, reason: str) -> Update:
        self.n_updates += 1
        return Update(scored.batch.index, math.nan, 0.0, reason)


class _WithMemory(Learner):
    """A network learner whose state has a count memory in it."""

    def __init__(self, memory: CountMemory, *arguments: Any) -> None:
        self.memory = memory
        super().__init__(*arguments)

    def reset_lanes(self, n_lanes: int) -> None:
        """Begin every lane anew, as if nothing had been read; weights and counts stay.

        Raises ContractError for more lanes than the memory has.
        """
        super().reset_lanes(n_lanes)
        _reset(self.memory, n_lanes)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later scores depend on, as a tree of tensors and plain values."""
        return {**super().state_dict(), "memory": self.memory.state_dict()}

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take only what was learned. Raises CheckpointError naming missing, extra and misshapen tensors."""
        super().load_weights(state)
        self.memory.load_state_dict(state.get("memory", {}))


class MixedLearner(_WithMemory):
    """A network over bytes and the count memory, mixed."""

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        says, loss = self._say(batch, learns)
        costs = [self._join(lane, batch, says[lane], learns) for lane in range(len(says))]
        nats = np.array([c.mixture for c in costs]) * LN_2
        return Scored(
            seal=self._seal,
            batch=batch,
            nats=torch.from_numpy(nats),
            sum_nats=float(nats.sum()),
            loss=loss,
            alone={
                "counts_bits": float(sum(c.counts.sum() for c in costs)),
                "network_bits": float(sum(c.network.sum() for c in costs)),
            },
            taught=learns,
        )

    def _say(self, batch: Batch, learns: bool) -> tuple[NDArray[np.float32], Tensor | None]:
        """(B, T, V) log probabilities of the network, and its own loss with its graph. The lanes move on.

        The counts take what is not a number for next to nothing; the state must not reach the next batch.
        """
        inputs, starts, targets = (tensor.to(self.device) for tensor in (*self._inputs(batch), batch.tokens))
        nats, log_probs, lanes = told(self.model, inputs, starts, targets, self.lanes)
        if not math.isfinite(float(nats.detach().sum())):
            lanes = self.model.init_state(len(batch.tokens))  # type: ignore[operator]
        self._move(lanes, batch)
        return log_probs.detach().cpu().numpy(), mean_of(nats, batch)

    def _join(self, lane: int, batch: Batch, log_probs: NDArray[np.float32], learns: bool) -> Costs:
        """What every token of a lane cost; `log_probs` (T, V) of the network."""
        tokens, modes = batch.tokens.numpy()[lane], modes_of(batch.graded[lane], learns=learns)
        return self.memory.mix_bytes(self.memory.read(tokens, modes, lane), tokens, modes, log_probs)


def told(
    model: nn.Module, inputs: Tensor, starts: Tensor, targets: Tensor, lanes: State
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"], State]:
    """What the targets cost the network, what it said of all symbols (log probabilities), and the state after."""
    if hasattr(model, "told"):  # one that knows a shorter way than by its logits
        return model.told(inputs, starts, targets, lanes)  # type: ignore[operator]
    logits, after = model.forward(inputs, starts, lanes)
    return *says_of(logits, targets), after


class MixedBitLearner(MixedLearner):
    """A network over bits and the count memory, mixed: the counts read whole bytes, the network enters bit by bit.

    Where a batch ends inside a byte, its first bits are graded at once and the byte is counted when all of it is there.
    """

    def __init__(self, tokenizer: Tokenizer, memory: CountMemory, *arguments: Any) -> None:
        """`tokenizer` is a `tokenize.bits.Bits`."""
        self._n_symbols: int = tokenizer.n_symbols  # type: ignore[attr-defined]
        super().__init__(memory, *arguments)

    def reset_lanes(self, n_lanes: int) -> None:
        """Begin every lane anew, at the beginning of a byte; weights and counts stay."""
        super().reset_lanes(n_lanes)
        self._begun = [BitLane(self._n_symbols) for _ in range(n_lanes)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that later scores depend on, as a tree of tensors and plain values."""
        return {**super().state_dict(), "begun": [lane.state_dict() for lane in self._begun]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        super().load_state_dict(state)
        for lane, begun in zip(self._begun, state["begun"], strict=True):
            lane.load_state_dict(begun)

    def _join(self, lane: int, batch: Batch, log_probs: NDArray[np.float32], learns: bool) -> Costs:
        tokens, graded = batch.tokens[lane].numpy(), batch.graded[lane].numpy()
        return self._begun[lane].join(self.memory, lane, tokens, graded, log_probs, learns)


class BesideLearner(_WithMemory):
    """A network over tokens that are not bytes; the memory reads the bytes of the same tokens beside it.

    A token is several bytes, and which ones follow from all of them, so the two cannot be mixed bit by bit: the graded
    number is the network's, and what the counts would have cost on the same bytes stands beside it.
    """

    def __init__(self, tokenizer: Tokenizer, memory: CountMemory, *arguments: Any) -> None:
        self._tokenizer = tokenizer
        super().__init__(memory, *arguments)

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        scored = super()._grade(batch, learns)
        counts = 0.0
        for lane, ids in enumerate(batch.tokens.tolist()):
            pieces = [self._bytes_of(token) for token in ids]
            modes = np.repeat(modes_of(batch.graded[lane], learns=learns), [len(p) for p in pieces])
            counts += float(self.memory.cost(np.concatenate(pieces), modes, lane).sum())
        scored.alone, scored.taught = {"counts_bits": counts}, learns
        return scored

    def _bytes_of(self, token: int) -> NDArray[np.int64]:
        if token == self._tokenizer.mark:
            return np.array([MARK])
        return np.frombuffer(self._tokenizer.decode([token]), np.uint8).astype(np.int64)


def _reset(memory: CountMemory, n_lanes: int) -> None:
    if n_lanes > memory.n_lanes:
        raise ContractError(f"the memory has {memory.n_lanes} lanes, not {n_lanes}.")
    for lane in range(memory.n_lanes):
        memory.begin_document(lane)
