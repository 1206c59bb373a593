"""The graded bytes themselves, kept up to a limit, so that xz and PPMd can be measured on exactly the same ones."""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from livelm.errors import RunError, StorageError
from livelm.types import Batch, Tokenizer

MAX_BYTES = 16 << 20
"""Bytes kept; baselines are measured on at most this prefix of a stream."""
BLOCK_BYTES = 64 << 10
"""With several lanes, each adds this much of its text at a time: a compressor should see text, not shreds of it."""


class GradedBytes:
    """Appends the graded bytes of each batch to a file, lane after lane in blocks."""

    def __init__(self, path: Path, tokenizer: Tokenizer, n_lanes: int, state: dict[str, Any] | None = None) -> None:
        """Continue from `state` (None: from nothing); what was written after it was never saved and is cut off."""
        self.path, self._tokenizer = path, tokenizer
        self.n_bytes = 0 if state is None else int(state["n_bytes"])
        self._waiting = [bytearray() for _ in range(n_lanes)]
        for lane, held in enumerate(state["waiting"] if state else []):
            self._waiting[lane] += held.numpy().tobytes()
        self._block = 1 if n_lanes == 1 else BLOCK_BYTES
        self._file = _open_at(path, self.n_bytes)

    def append(self, batch: Batch) -> None:
        """Keep the bytes of the graded tokens until the limit is reached. Raises StorageError if the disk refuses."""
        if self.n_bytes >= MAX_BYTES:
            return
        for lane, waiting in enumerate(self._waiting):
            waiting += self._tokenizer.decode(batch.tokens[lane][batch.graded[lane]].tolist())
            if len(waiting) >= self._block:
                self._write(waiting)

    def finish(self) -> None:
        """Write what still waits for a full block: the stream has ended."""
        for waiting in self._waiting:
            self._write(waiting)
        self.flush()

    def flush(self) -> None:
        """Let other processes read everything written so far. Raises StorageError if the disk refuses."""
        try:
            self._file.flush()
        except OSError as error:
            raise _refused(self.path, error) from None

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from None

    def state_dict(self) -> dict[str, Any]:
        """Where the file stands, and what waits to be written; `sync` first."""
        held = [
            torch.frombuffer(w, dtype=torch.uint8).clone() if w else torch.empty(0, dtype=torch.uint8)
            for w in self._waiting
        ]
        return {"n_bytes": self.n_bytes, "waiting": held}

    def close(self) -> None:
        """Let go of the file; on a full disk only what no checkpoint refers to is lost."""
        with suppress(OSError):
            self._file.close()

    def _write(self, waiting: bytearray) -> None:
        try:
            self._file.write(waiting)
        except OSError as error:
            raise _refused(self.path, error) from None
        self.n_bytes += len(waiting)
        waiting.clear()


def _open_at(path: Path, size: int) -> IO[bytes]:
    try:
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise RunError(f"{str(path)!r} has {found} bytes, but the checkpoint was taken after {size}.")
        with path.open("ab") as file:
            file.truncate(size)
        return path.open("ab")
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{str(path)!r} cannot be written: {error.strerror or error}. The last checkpoint is intact; "
        "make room and go on with `livelm resume`."
    )
