"""The one journal: JSON lines, written in order, from which every number and picture is folded.

Facts (`run document scored update`) carry `seq` and are reproducible bit for bit. Observations (`spans memory
baseline saved resumed warning stopped`) carry `at_s`, the seconds of active run time; they depend on the machine.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from livelm.errors import JournalError, StorageError
from livelm.types import Record

SCHEMA = 1
FACTS = frozenset({"run", "document", "scored", "update"})


class Journal:
    """Appends records to a file; `position` and `seq` say where it stands, and belong into a checkpoint."""

    def __init__(self, path: Path, position: int = 0, seq: int = 0) -> None:
        """Open for appending after cutting the file to `position` bytes: what came later was never saved.

        Raises JournalError when the file is shorter than that.
        """
        self.path, self.position, self.seq = path, position, seq
        self._file = _open_at(path, position)

    def write(self, record: Record) -> Record:
        """Append one record (facts are numbered here) and return it. Raises StorageError when the disk refuses."""
        if record["kind"] in FACTS:
            record = {"kind": record["kind"], "seq": self.seq, **record}
            self.seq += 1
        line = _line(record)
        try:
            self._file.write(line)
        except OSError as error:
            raise _refused(self.path, error) from None
        self.position += len(line)
        return record

    def flush(self) -> None:
        """Let readers of the file see everything written so far."""
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

    def close(self) -> None:
        """Write out and let go; a full disk loses only what no checkpoint refers to."""
        with suppress(OSError):
            self._file.close()


def _open_at(path: Path, position: int) -> IO[bytes]:
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            raise JournalError(f"{str(path)!r} has {size} bytes, but the checkpoint was taken after {position}.")
        with path.open("ab") as file:
            file.truncate(position)
        return path.open("ab")
    except OSError as error:
        raise _refused(path, error) from None


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, so that the line is JSON for everybody
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{str(path)!r} cannot be written: {error}. The last checkpoint is intact; "
        "make room and go on with `livelm resume`."
    )
