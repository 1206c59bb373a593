"""Only what changed: a table as the rows that differ from a fresh one; so a young memory makes small checkpoints."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from livelm.errors import CheckpointError

ROWS_AT_ONCE = 1 << 17
"""Rows compared at a time, so that looking for changes needs little memory."""

MOST_NAMED = 0.75
"""Share of changed rows up to which they are named one by one (4 bytes beside the 16 of the shortest row)."""


def pack(table: NDArray[Any], fresh: NDArray[Any] | None) -> dict[str, Any]:
    """The table as plain tensors (copies): its shape, and the rows that differ in any bit from the row `fresh`.

    Without `fresh` every row is kept: then the rows of the fresh table are not all alike. So they are where most have
    changed, and then naming them would cost more than it saves: nothing packed is larger than its table.
    """
    rows = table.reshape(-1, table.shape[-1] if fresh is None else len(fresh))
    changed = None if fresh is None else _changed(rows, fresh)
    if changed is None or len(changed) > MOST_NAMED * len(rows):
        return {"shape": list(table.shape), "values": _tensor(rows.copy())}
    return {"shape": list(table.shape), "rows": torch.from_numpy(changed), "values": _tensor(rows[changed])}


def check(name: str, packed: Any, table: NDArray[Any]) -> None:
    """Raise CheckpointError where `unpack` would not fit."""
    shape = packed["shape"] if packed is not None else None
    if shape != list(table.shape):
        raise CheckpointError(
            f"the count memory's {name!r} is {shape} in the checkpoint and {list(table.shape)} here: it was made with "
            "other settings. Resume with the recipe that the run was started with."
        )


def unpack(packed: dict[str, Any], table: NDArray[Any]) -> None:
    """Put the rows back into a fresh table."""
    values = packed["values"].numpy().view(table.dtype)
    rows = table.reshape(-1, values.shape[-1])
    if "rows" in packed:
        rows[packed["rows"].numpy()] = values
    else:
        rows[:] = values


def _changed(rows: NDArray[Any], fresh: NDArray[Any]) -> NDArray[np.int32]:
    """Numbers of the rows that differ from `fresh`."""
    bits = fresh.view(np.uint8)
    pieces = (slice(first, first + ROWS_AT_ONCE) for first in range(0, len(rows), ROWS_AT_ONCE))
    found = [piece.start + np.flatnonzero((rows[piece].view(np.uint8) != bits).any(axis=1)) for piece in pieces]
    return np.concatenate(found).astype(np.int32)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """The same bits: few tools know uint32 tensors."""
    return torch.from_numpy(values.view(np.int32) if values.dtype == np.uint32 else values)
