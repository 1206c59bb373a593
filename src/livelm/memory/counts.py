"""The count memory: learns bytes from one look, and says how probable the next one is, alone or beside a network."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from livelm.config import Settings
from livelm.errors import CheckpointError, ConfigError, ContractError
from livelm.memory.contexts import INDEX, start_document
from livelm.memory.join import (
    LEARNED,
    Expected,
    Join,
    build_heard,
    build_join,
    expect_nothing,
    hear,
    join,
    join_tree,
    nodes_of_bytes,
)
from livelm.memory.kernel import GRADE, LEARN, MARK, distribute, score
from livelm.memory.pages import check, pack, unpack
from livelm.memory.presets import PRESETS
from livelm.memory.tables import (
    CONSTANTS,
    LANE,
    Said,
    Tables,
    build_moment,
    build_said,
    build_tables,
    count_inputs,
    fresh_rows,
    lane_bytes,
)

SCHEMA = 2
SHORTEST_HISTORY = 4096
"""Bytes of the past that each lane keeps at least."""
OWN = {*CONSTANTS, *LANE}
"""Tables that are not everybody's learning."""

Modes = NDArray[np.int64]
"""(n,) for each token a sum of GRADE (grade it), LEARN (then learn it), MARKS (a document might open here) and AHEAD
(only ask about it). Without AHEAD a token becomes part of the past, whatever else is done with it."""


class CountMemorySettings(Settings):
    """How much is remembered, and of what."""

    contexts: Literal["fast", "rich"] = "fast"
    """Which table of contexts is asked: `rich` predicts better at about half the speed."""
    budget_mib: int = Field(default=256, ge=64, le=65536)
    """Memory of all tables together; it is taken at once and never grows. `rich` needs at least 75."""
    history_mib: int = Field(default=4, ge=1, le=1024)
    """How far back repetitions are found (a power of two); part of the budget, with six times as much for its index.
    Lanes share it."""
    salt: int = Field(default=0, ge=0, lt=1 << 63)
    """Decides which contexts share a place in the tables. A secret one takes the aim from a stream made to collide."""


class Costs(NamedTuple):
    """What each token cost, in bits; every array is (n,), 0 where not graded."""

    mixture: NDArray[np.float64]
    counts: NDArray[np.float64]
    """What the counts alone would have said: a network beside them changes nothing in them."""
    network: NDArray[np.float64]


class CountMemory:
    """Context mixing over the bits of bytes: causal, normalised, of constant size and constant time per byte.

    Tokens are bytes, and MARK where a document opens: there the immediate past is forgotten, what was learned stays.
    Each token is graded before it is learned, and learned before the next is graded. Not for several threads at once.
    """

    Config: ClassVar[type[Settings]] = CountMemorySettings

    def __init__(self, settings: CountMemorySettings | None = None, n_lanes: int = 1) -> None:
        """Take all memory at once. Raises ConfigError for a history that is not a power of two or does not fit."""
        self.settings = settings = settings or CountMemorySettings()
        if settings.history_mib & (settings.history_mib - 1):
            raise ConfigError(f"memory.history_mib is {settings.history_mib}; it must be a power of two. Try 4.")
        if settings.history_mib * 16 > settings.budget_mib:
            raise ConfigError(
                f"memory.history_mib is {settings.history_mib}, which does not fit into memory.budget_mib "
                f"{settings.budget_mib}: give at most a sixteenth of it."
            )
        self.n_lanes = n_lanes
        self._active = [INDEX[name] for name in PRESETS[settings.contexts]]
        self._n_inputs = count_inputs(len(self._active))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        history = max(SHORTEST_HISTORY, (self.settings.history_mib << 20) >> (self.n_lanes - 1).bit_length())
        budget = self.settings.budget_mib << 20
        self._join: Join = build_join(self._n_inputs)
        left = budget - sum(table.nbytes for table in self._join) - (self.n_lanes - 1) * lane_bytes(history)
        self._tables: Tables = build_tables(self._active, left, history, self.settings.salt)
        own = {name: getattr(self._tables, name) for name in LANE}
        others = [{name: np.zeros_like(table) for name, table in own.items()} for _ in range(self.n_lanes - 1)]
        self._lanes = [self._tables._replace(**lane) for lane in (own, *others)]
        self._fresh = fresh_rows(self._tables) | {"join.weights": self._join.weights[0].copy()}
        self._moment = build_moment(len(self._active))
        if self.bytes_of_state > budget:
            raise ConfigError(
                f"memory.budget_mib is {self.settings.budget_mib}, too little for {self.n_lanes} lanes with a history "
                f"of {self.settings.history_mib} MiB. Give at least {(self.bytes_of_state >> 20) + 1}."
            )

    def begin_document(self, lane: int = 0) -> None:
        """Say that what follows does not continue what came before: the context is empty, what was learned stays."""
        start_document(self._lanes[lane].summary)
        self._lanes[lane].matches[:] = 0

    @property
    def bytes_of_state(self) -> int:
        """Bytes that the tables take, now and always."""
        lanes = sum(getattr(lane, name).nbytes for lane in self._lanes[1:] for name in LANE)
        return sum(table.nbytes for table in self._tables) + lanes + sum(table.nbytes for table in self._join)

    def score(self, text: bytes) -> NDArray[np.float64]:
        """(n,) bits that each byte cost, predicted before it was learned; learns `text`."""
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
        return self.cost(tokens, np.full(len(tokens), GRADE | LEARN, np.int64))

    def cost(self, tokens: NDArray[np.int64], modes: Modes, lane: int = 0) -> NDArray[np.float64]:
        """(n,) bits that each token of a lane cost, 0 where not graded; with each is done what its mode says."""
        said = build_said(len(tokens))
        score(self._lanes[lane], self._moment, tokens, modes, said)
        return said.bits

    def read(self, tokens: NDArray[np.int64], modes: Modes, lane: int = 0) -> Said:
        """As `cost`, but returns all that a network needs to join."""
        said = build_said(len(tokens), len(tokens), n_inputs=self._n_inputs)
        score(self._lanes[lane], self._moment, tokens, modes, said)
        return said

    def only_read(self, tokens: Sequence[int], lane: int = 0) -> None:
        """Move the past on without grading or learning."""
        self.cost(np.array(tokens, np.int64), np.zeros(len(tokens), np.int64), lane)

    def prepare(self) -> None:
        """Compile everything that learning needs, or load what was compiled: half a minute the first time."""
        nothing = np.zeros(0, np.int64)
        self.mix_bytes(self.read(nothing, nothing), nothing, nothing, np.zeros((0, MARK + 1), np.float32))

    def mix(
        self,
        said: Said,
        tokens: NDArray[np.int64],
        modes: Modes,
        bit_logits: NDArray[np.float64],
        flag_logits: NDArray[np.float64],
        network_bits: NDArray[np.float64],
        expected: Expected | None = None,
    ) -> NDArray[np.float64]:
        """(n, 9) cost in bits of the eight bits of each token, and of the news whether a document opens, when a network
        joins what `read` said of them; learns whom to trust.

        `bit_logits` (n, 8): the network's logit of each bit of the byte after the bits before it; `flag_logits` (n,):
        that a document opens; `network_bits` (n,): what it paid alone; `expected`: of a network over bytes. Raises
        ContractError for another shape.
        """
        n = len(tokens)
        if bit_logits.shape != (n, 8) or flag_logits.shape != (n,) or network_bits.shape != (n,):
            raise ContractError(
                f"a network's bits are {bit_logits.shape}, the memory needs ({n}, 8), and ({n},) twice."
            )
        costs = np.empty((n, 9))
        of_network = bit_logits, flag_logits, network_bits, expected or expect_nothing(n)
        join(self._join, tokens, modes, *of_network, said, costs)
        return costs

    def mix_bytes(self, said: Said, tokens: NDArray[np.int64], modes: Modes, log_probs: NDArray[np.float32]) -> Costs:
        """Costs of each token when a network over bytes joins what `read` said of them; learns whom to trust.

        `log_probs`: (n, 257) natural logarithms, row i made before token i was seen. A probability below 1e-7, or one
        that is not a number, counts as 1e-7. Raises ContractError for another shape.
        """
        n = len(tokens)
        log_probs = _checked(log_probs, n)
        heard = build_heard(n)
        hear(log_probs, tokens, modes, np.empty(512), heard)
        counts = np.where(modes & GRADE, said.bits, 0.0)
        return Costs(self.mix(said, tokens, modes, *heard).sum(axis=1), counts, heard.bits)

    def distribution(self, lane: int = 0, log_probs: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """(257,) natural logarithms of the next token's probabilities, by which it would be graded; learns nothing.

        With a network's (257,) log probabilities it is the mixture's. Raises ContractError for another shape.
        """
        said = build_said(1, n_nodes=256, n_inputs=self._n_inputs)
        distribute(self._lanes[lane], self._moment, said)
        tree, flag = said.tree, _squash(said.flags[0])
        if log_probs is None:
            return np.log(np.append(tree[256:] * (1 - flag), flag))
        checked, logits, heard = _checked(log_probs[None], 1), np.zeros(256), build_heard(1)
        hear(checked, np.array([MARK]), np.array([GRADE]), tree, heard)
        nodes_of_bytes(checked, tree, logits)
        join_tree(self._join, logits, heard.flag_logits[0], heard.expected, said)
        return np.log(np.append(tree[256:], tree[0]))

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, exactly, as copies; of the large tables the rows that changed."""
        return {"schema": SCHEMA, **{name: pack(table, fresh) for name, table, fresh in self._learned()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same settings. Raises CheckpointError where it does not fit."""
        if state.get("schema", SCHEMA) != SCHEMA:
            raise CheckpointError(
                f"the checkpoint's count memory has schema {state['schema']}, this livelm reads {SCHEMA}. Go on with "
                "the livelm that wrote it, or begin a new run."
            )
        for name, table, _ in self._learned():
            check(name, state.get(name), table)
        self.reset()
        for name, table, _ in self._learned():
            unpack(state[name], table)

    def _learned(self) -> list[tuple[str, NDArray[Any], NDArray[Any] | None]]:
        """Every array that a checkpoint holds: its name, itself, and the row of which all its fresh rows are copies."""
        shared = [(n, getattr(self._tables, n), self._fresh.get(n)) for n in Tables._fields if n not in OWN]
        lanes = [(f"{n}.{i}", getattr(lane, n), self._fresh.get(n)) for i, lane in enumerate(self._lanes) for n in LANE]
        joins = [(f"join.{n}", getattr(self._join, n), self._fresh.get(f"join.{n}")) for n in LEARNED]
        return [*shared, *lanes, *joins]


def _squash(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits))


def _checked(log_probs: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    if log_probs.shape != (n, MARK + 1):
        raise ContractError(f"the network's log probabilities are {log_probs.shape}, the memory needs ({n}, 257).")
    return np.ascontiguousarray(log_probs, np.float32)
