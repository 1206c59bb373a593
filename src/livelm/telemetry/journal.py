"""The one journal: JSON lines, written in order, from which every number and picture is folded.

Facts (`run document scored update`) carry `seq` and are reproducible bit for bit. Observations (`spans memory
baseline saved resumed warning stopped`) carry `at_s`, the seconds of active run time; they depend on the machine.
"""

import json
from pathlib import Path

from livelm.telemetry.appended import AppendedFile
from livelm.types import Record

SCHEMA = 1
FACTS = frozenset({"run", "document", "scored", "update"})


class Journal:
    """Appends records to a file; `position` and `seq` say where it stands, and belong into a checkpoint."""

    def __init__(self, path: Path, position: int = 0, seq: int = 0) -> None:
        """Open after cutting the file to `position` bytes. Raises JournalError when it is shorter than that."""
        self.seq = seq
        self._file = AppendedFile(path, position)
        self.flush, self.sync, self.close = self._file.flush, self._file.sync, self._file.close

    @property
    def position(self) -> int:
        """Bytes written in all."""
        return self._file.size

    def write(self, record: Record) -> Record:
        """Append one record (facts are numbered here) and return it. Raises StorageError when the disk refuses."""
        if record["kind"] in FACTS:
            record = {"kind": record["kind"], "seq": self.seq, **record}
            self.seq += 1
        self._file.write(_line(record))
        return record


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, so that the line is JSON for everybody
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"
