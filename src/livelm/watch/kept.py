"""What a watch keeps in a directory, so that the same command goes on where it was stopped.

RUN/
├── watch.json        what is watched, and how
├── surprises.jsonl   every record that was made, each once
├── checkpoints/      everything learned, and the place in the stream
├── spool/            the durable copy of a stream that cannot be read twice
├── source/           what a source keeps for itself
└── lock
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from livelm.errors import RunError, StorageError
from livelm.learn import list_checkpoints, load_checkpoint, save_checkpoint
from livelm.telemetry.appended import AppendedFile
from livelm.types import Record
from livelm.watch.settings import WatchSettings

SCHEMA = 1
KEPT = 2
"""Checkpoints that are kept."""


class Kept:
    """The directory of a watch, locked; `tree` is its newest checkpoint, None before the first."""

    def __init__(self, path: Path, uris: Sequence[str], settings: WatchSettings) -> None:
        """Make it, or open it again for the same command.

        Raises RunError where it holds something else, belongs to another command or is in use; StorageError.
        """
        self.path = path
        self.spool, self.source = path / "spool", path / "source"
        self._checkpoints = path / "checkpoints"
        self._lock = FileLock(path / "lock")
        asked = {"schema": SCHEMA, "sources": list(uris), "settings": settings.model_dump(mode="json")}
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{str(path)!r} is in use: another livelm is watching with it.") from None
        except OSError as error:
            raise self._refused(error) from None
        try:
            self._agree(asked)
            found = list_checkpoints(self._checkpoints)
            self.tree: dict[str, Any] | None = load_checkpoint(found[-1]) if found else None
            self._index = int(found[-1].name) if found else 0
            self._records = AppendedFile(path / "surprises.jsonl", self.tree["records"] if self.tree else 0)
        except BaseException:
            self._lock.release()
            raise

    def write(self, record: Record) -> None:
        """Append a record. Raises StorageError."""
        self._records.write(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Let others read what was written."""
        self._records.flush()

    def save(self, tree: dict[str, Any]) -> None:
        """Make everything durable: the records, then a checkpoint that knows how many they are. Raises StorageError."""
        self._records.sync()
        self._index += 1
        save_checkpoint(self._checkpoints, self._index, {**tree, "records": self._records.size}, KEPT)

    def close(self) -> None:
        """Let go of it."""
        self._records.close()
        self._lock.release()

    def _agree(self, asked: dict[str, Any]) -> None:
        """Write what was asked, or compare it with what was asked before."""
        file = self.path / "watch.json"
        try:
            if file.exists():
                before = json.loads(file.read_bytes())
            elif [p for p in self.path.iterdir() if p.name != "lock"]:
                raise RunError(f"{str(self.path)!r} holds something else than a watch. Give another --out.")
            else:
                file.write_text(json.dumps(asked, indent=1) + "\n", "utf-8")
                return
        except ValueError as error:
            raise RunError(f"{str(file)!r} is damaged: {error}. Give another --out.") from None
        except OSError as error:
            raise self._refused(error) from None
        if not isinstance(before, dict) or before.get("schema") != SCHEMA:
            raise RunError(f"{str(file)!r} was written by another livelm. Give another --out.")
        if before != asked:
            old, new = _flat(before), _flat(asked)
            other = [f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in old | new if old.get(k) != new.get(k)]
            raise RunError(
                f"{str(self.path)!r} was begun otherwise: {'; '.join(other)}. Ask the same, or give another --out."
            )

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"the directory {str(self.path)!r} cannot be written: {error.strerror or error}.")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
