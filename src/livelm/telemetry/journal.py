"""The one journal: JSON lines, written in order, from which every number and picture is folded.

Facts (`run document scored update rehearsed held_out signals alarm gate grown`) carry `seq` and are reproducible bit
for bit. Observations (`spans memory source baseline saved resumed warning stopped`) carry `at_s`, the seconds of active
run time, and depend on the machine.
"""

import json
from contextlib import suppress
from pathlib import Path

from livelm.errors import StorageError
from livelm.telemetry.appended import AppendedFile
from livelm.types import Record

SCHEMA = 1
BURST = 128
"""Records that wait at most to be encoded."""
ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
"""Made once: `json.dumps` makes one for every record."""
FACTS = frozenset({"run", "document", "scored", "update", "rehearsed", "held_out", "signals", "alarm", "gate", "grown"})


class Journal:
    """Appends records to a file; `position` and `seq` say where it stands, and belong into a checkpoint."""

    def __init__(self, path: Path, position: int = 0, seq: int = 0) -> None:
        """Open after cutting the file to `position` bytes. Raises JournalError when it is shorter than that."""
        self.seq = seq
        self._file = AppendedFile(path, position)
        self._waiting: list[Record] = []

    @property
    def position(self) -> int:
        """Bytes written in all. Raises StorageError."""
        self._encode()
        return self._file.size

    def write(self, record: Record) -> Record:
        """Append one record, into a buffer at first (facts are numbered here), and return it. Raises StorageError.

        Records become JSON many at a time: between two updates the caches are full of weights, and the same
        work costs several times as much.
        """
        if (kind := record["kind"]) in FACTS:
            record = {"kind": kind, "seq": self.seq, **record}
            self.seq += 1
        self._waiting.append(record)
        if len(self._waiting) >= BURST:
            self._encode()
        return record

    def flush(self) -> None:
        """Let readers of the file see everything written so far. Raises StorageError."""
        self._encode()
        self._file.flush()

    def sync(self) -> None:
        """Make everything written so far durable. Raises StorageError."""
        self._encode()
        self._file.sync()

    def close(self) -> None:
        """Write out and let go; never raises."""
        with suppress(StorageError):
            self._encode()
        self._file.close()

    def _encode(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._file.write(b"".join(map(_line, waiting)))


def _line(record: Record) -> bytes:
    try:
        return ENCODER.encode(record).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, so that the line is JSON for everybody
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"
