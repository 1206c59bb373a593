"""The count memory: learns bytes from one look, and says how probable the next one is."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from livelm.config import Settings
from livelm.errors import CheckpointError, ConfigError, ContractError
from livelm.memory.contexts import INDEX, start_document
from livelm.memory.kernel import distribute, score
from livelm.memory.presets import PRESETS
from livelm.memory.tables import CONSTANTS, Tables, build_moment, build_tables

SCHEMA = 1
_NO_NETWORK = np.zeros((0, 256), np.float32)
_LN_2 = float(np.log(2.0))


class CountMemorySettings(Settings):
    """How much is remembered, and of what."""

    contexts: Literal["fast", "rich"] = "fast"
    """Which table of contexts is asked: `rich` predicts better at about half the speed."""
    budget_mib: int = Field(default=256, ge=96, le=65536)
    """Memory of all tables together; it is taken at once and never grows."""
    history_mib: int = Field(default=4, ge=1, le=1024)
    """How far back repetitions are found (a power of two); part of the budget, with twice as much for its index."""
    salt: int = Field(default=0, ge=0, lt=1 << 63)
    """Decides which contexts share a place in the tables. A secret one takes the aim from a stream made to collide."""


class Costs(NamedTuple):
    """What each byte of a text cost, in bits; every array is (n,)."""

    mixture: NDArray[np.float64]
    counts: NDArray[np.float64]
    """Exactly what `CountMemory.score` would have said."""
    network: NDArray[np.float64]


class CountMemory:
    """Context mixing over the bits of bytes: causal, normalised, of constant size and constant time per byte.

    Not for several threads at once.
    """

    Config: ClassVar[type[Settings]] = CountMemorySettings

    def __init__(self, settings: CountMemorySettings | None = None) -> None:
        """Take all memory at once. Raises ConfigError for a history that is not a power of two or does not fit."""
        self.settings = settings = settings or CountMemorySettings()
        if settings.history_mib & (settings.history_mib - 1):
            raise ConfigError(f"memory.history_mib is {settings.history_mib}; it must be a power of two. Try 4.")
        if settings.history_mib * 16 > settings.budget_mib:
            raise ConfigError(
                f"memory.history_mib is {settings.history_mib}, which does not fit into memory.budget_mib "
                f"{settings.budget_mib}: give at most a sixteenth of it."
            )
        self._active = [INDEX[name] for name in PRESETS[settings.contexts]]
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        settings = self.settings
        self._tables: Tables = build_tables(
            self._active, settings.budget_mib << 20, settings.history_mib << 20, settings.salt
        )
        self._moment = build_moment(len(self._active))

    def begin_document(self) -> None:
        """Say that what follows does not continue what came before: the context is empty, what was learned stays."""
        start_document(self._tables.summary)
        self._tables.matches[:] = 0

    @property
    def bytes_of_state(self) -> int:
        """Bytes that the tables take, now and always."""
        return sum(table.nbytes for table in self._tables)

    def score(self, text: bytes) -> NDArray[np.float64]:
        """(n,) bits that each byte cost, predicted before it was learned; learns `text`."""
        bits = np.empty(len(text))
        score(self._tables, self._moment, np.frombuffer(text, np.uint8), _NO_NETWORK, bits, bits)
        return bits

    def mix(self, text: bytes, network_log_probs: NDArray[np.float32]) -> Costs:
        """Costs of each byte when a network's distributions enter the mixing bit by bit; learns `text`.

        `network_log_probs`: (n, 256) natural logarithms, row i made before byte i was seen. A probability below 1e-7,
        or one that is not a number, counts as 1e-7. Raises ContractError for another shape.
        """
        data = np.frombuffer(text, np.uint8)
        log_probs = _checked(network_log_probs, len(text))
        mixture, counts = np.empty(len(text)), np.empty(len(text))
        score(self._tables, self._moment, data, log_probs, counts, mixture)
        network = -log_probs[np.arange(len(text)), data].astype(np.float64) / _LN_2
        return Costs(mixture, counts, network)

    def distribution(self, network_log_probs: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """(256,) natural logarithms of the next byte's probabilities, by which it would be graded; learns nothing.

        With a network's (256,) log probabilities it is the mixture's. Raises ContractError for another shape.
        """
        log_probs = _NO_NETWORK if network_log_probs is None else _checked(network_log_probs[None], 1)
        tree = np.zeros(512)
        distribute(self._tables, self._moment, log_probs, tree)
        return tree[256:]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything learned, exactly, as tensors (views: copy or write them before the next byte is learned)."""
        return {name: _as_tensor(getattr(self._tables, name)) for name in _learned()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a `state_dict` of the same settings. Raises CheckpointError where it does not fit."""
        for name in _learned():
            own = _as_tensor(getattr(self._tables, name))
            given = state.get(name)
            if given is None or given.shape != own.shape or given.dtype != own.dtype:
                shape = None if given is None else tuple(given.shape)
                raise CheckpointError(
                    f"the count memory's {name!r} is {shape} in the checkpoint and {tuple(own.shape)} here: it was "
                    "made with other settings. Resume with the recipe that the run was started with."
                )
        for name in _learned():
            _as_tensor(getattr(self._tables, name)).copy_(state[name])


def _learned() -> list[str]:
    return [name for name in Tables._fields if name not in CONSTANTS]


def _as_tensor(table: NDArray[np.generic]) -> torch.Tensor:
    signed = table.view(np.int32) if table.dtype == np.uint32 else table  # the same bits: few tools know uint32 tensors
    return torch.from_numpy(signed)


def _checked(log_probs: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    if log_probs.shape != (n, 256):
        raise ContractError(f"the network's log probabilities are {log_probs.shape}, the memory needs ({n}, 256).")
    return np.ascontiguousarray(log_probs, np.float32)
