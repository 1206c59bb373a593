"""The graded bytes themselves, kept up to a limit, so that xz and PPMd can be measured on exactly the same ones."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from livelm.errors import StorageError
from livelm.telemetry.appended import AppendedFile
from livelm.tokenize.decoder import Decoder
from livelm.types import Batch, Tokenizer

MAX_BYTES = 16 << 20
"""Bytes kept; baselines are measured on at most this prefix of a stream."""
BURST = 64
"""Batches that wait at most to be decoded."""
BLOCK_BYTES = 64 << 10
"""With several lanes, each adds this much of its text at a time: a compressor should see text, not shreds of it."""


class GradedBytes:
    """Appends the graded bytes of each batch to a file, lane after lane in blocks."""

    def __init__(self, path: Path, tokenizer: Tokenizer, n_lanes: int, state: dict[str, Any] | None = None) -> None:
        """Continue from `state` (None: from nothing); what was written after it was never saved and is cut off."""
        held = state.get("held") if state else None
        self._decoders = [Decoder(tokenizer, held[lane] if held else ()) for lane in range(n_lanes)]
        self._waiting = [bytearray() for _ in range(n_lanes)]
        for lane, held in enumerate(state["waiting"] if state else []):
            self._waiting[lane] += held.numpy().tobytes()
        self._block = 1 if n_lanes == 1 else BLOCK_BYTES
        self._file = AppendedFile(path, 0 if state is None else int(state["n_bytes"]))
        self._batches: list[Batch] = []

    @property
    def n_bytes(self) -> int:
        """Bytes written in all. Raises StorageError."""
        self._decode()
        return self._file.size

    def append(self, batch: Batch) -> None:
        """Keep the bytes of the graded tokens until the limit is reached. Raises StorageError if the disk refuses."""
        self._batches.append(batch)
        if len(self._batches) >= BURST:  # many at a time, for the same reason as in the journal
            self._decode()

    def flush(self) -> None:
        """Let readers of the file see what was written. Raises StorageError."""
        self._decode()
        self._file.flush()

    def sync(self) -> None:
        """Make what was written durable. Raises StorageError."""
        self._decode()
        self._file.sync()

    def close(self) -> None:
        """Write out and let go; never raises."""
        with suppress(StorageError):
            self._decode()
        self._file.close()

    def _decode(self) -> None:
        batches, self._batches = self._batches, []
        for batch in batches:
            if self._file.size >= MAX_BYTES:
                return
            tokens, graded = batch.tokens.numpy(), batch.graded.numpy()  # which numpy masks in a third of the time
            for lane, waiting in enumerate(self._waiting):
                waiting += self._decoders[lane].feed(tokens[lane][graded[lane]].tolist())
                if len(waiting) >= self._block:
                    self._file.write(waiting)
                    waiting.clear()

    def finish(self) -> None:
        """Write what still waits for a full block: the stream has ended."""
        self._decode()
        for waiting in self._waiting:
            self._file.write(waiting)
            waiting.clear()
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """Where the file stands, and what waits to be written; `sync` first."""
        self._decode()
        held = [
            torch.frombuffer(w, dtype=torch.uint8).clone() if w else torch.empty(0, dtype=torch.uint8)
            for w in self._waiting
        ]
        parts = [decoder.held for decoder in self._decoders]
        return {"n_bytes": self.n_bytes, "waiting": held, "held": parts}
