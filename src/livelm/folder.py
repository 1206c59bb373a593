"""A run directory: recipe, journal, checkpoints, and a lock so that one process at a time learns in it.

RUN/
├── recipe.toml       every setting, resolved
├── journal.jsonl     every number
├── checkpoints/      complete states, newest last
├── graded/           the first graded bytes, for the baselines
├── source/           what a source keeps for itself, such as the frontier of a crawl
├── spool/            the durable copy of a stream that cannot be read twice
└── lock
"""

import json
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from livelm.config import Recipe, dump_recipe, load_toml, validate
from livelm.errors import CheckpointError, RunError, StorageError
from livelm.learn import list_checkpoints, load_checkpoint
from livelm.telemetry.journal import SCHEMA


class RunFolder:
    """Paths and the lock of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.toml"
        self.journal_path = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.graded = path / "graded.bytes"
        self.source = path / "source"
        self.spool = path / "spool"
        self._lock = FileLock(path / "lock")
        self._made: list[Path] = []

    @staticmethod
    def create(path: Path | None, recipe: Recipe) -> "RunFolder":
        """Make and lock a new run directory (by default runs/<time>-<name>) and write the recipe into it.

        Raises RunError when it holds a run already, StorageError when it cannot be written.
        """
        folder = RunFolder(path or unused_folder(recipe.name))
        if folder.recipe_path.exists() or folder.journal_path.exists():
            raise RunError(
                f"{str(folder.path)!r} holds a run already. Go on with `livelm resume {folder.path}`, "
                "or give another --out."
            )
        folder._made = [p for p in (folder.path, *folder.path.parents) if not p.exists()]
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.lock()
        except OSError as error:
            raise _unwritable(folder.path, error) from None
        try:
            folder.recipe_path.write_text(dump_recipe(recipe), "utf-8")
        except OSError as error:
            folder.discard()
            raise _unwritable(folder.path, error) from None
        return folder

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """An existing run directory, not locked. Raises RunError when it is none."""
        folder = RunFolder(path)
        if not folder.recipe_path.exists() or not folder.journal_path.exists():
            raise RunError(f"{str(path)!r} is not a run directory: it has no recipe.toml and journal.jsonl.")
        return folder

    def lock(self) -> None:
        """Take the directory for this process; the lock ends with the process, however it ends."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{str(self.path)!r} is in use: another livelm is learning in it.") from None
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def unlock(self) -> None:
        """Give the directory free."""
        self._lock.release()

    def discard(self) -> None:
        """Remove what this livelm put here, and the directories it made: the run came to nothing."""
        for folder in (self.checkpoints, self.source, self.spool):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.recipe_path, self.journal_path, self.graded, self.path / "lock"):
            file.unlink(missing_ok=True)
        self.unlock()
        with suppress(OSError):  # something else is in it by now
            for folder in self._made:
                folder.rmdir()

    def recipe(self) -> Recipe:
        """The resolved recipe of the run. Raises ConfigError when it was damaged."""
        return validate(Recipe, load_toml(self.recipe_path), "")

    def newest_checkpoint(self) -> dict[str, Any]:
        """The newest complete checkpoint. Raises CheckpointError for none, a damaged or a foreign one."""
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise CheckpointError(
                f"{str(self.path)!r} has no complete checkpoint: it was ended before its first save. Nothing was "
                "learned in it; delete it and start the run again."
            )
        tree = load_checkpoint(found[-1])
        first = self.first_record()
        if tree.get("run") != first.get("run"):
            raise CheckpointError(f"{str(found[-1])!r} belongs to another run than the journal beside it.")
        return tree

    def first_record(self) -> dict[str, Any]:
        """Record 0 of the journal. Raises RunError for a foreign or newer journal."""
        try:
            with self.journal_path.open("rb") as file:
                line = file.readline(16 << 20)
        except OSError as error:
            raise RunError(f"{str(self.journal_path)!r} cannot be read: {error.strerror or error}.") from None
        try:
            record = json.loads(line)
            kind, schema = record["kind"], int(record["schema"])
        except (ValueError, KeyError, TypeError):
            kind, schema, record = None, 0, {}
        if kind != "run":
            raise RunError(f"{str(self.journal_path)!r} does not begin with the record of a run: it is not a journal.")
        if schema > SCHEMA:
            raise RunError(
                f"{str(self.journal_path)!r} has schema {schema}, this livelm reads up to {SCHEMA}. Upgrade livelm."
            )
        return record


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"the run directory {str(path)!r} cannot be written: {error.strerror or error}.")


def unused_folder(name: str) -> Path:
    """runs/<time>-<name>, with a number appended when something is there (two runs in one second)."""
    path = Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate
