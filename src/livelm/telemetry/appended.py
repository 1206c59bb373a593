"""A file that only grows, and continues from where a checkpoint left it."""

import os
from contextlib import suppress
from pathlib import Path

from livelm.errors import JournalError, StorageError


class AppendedFile:
    """Bytes written one after another; `size` counts them and belongs into a checkpoint, after `sync`.

    Every method raises StorageError when the disk refuses, but for `close`: what no checkpoint refers to may be lost.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open after cutting the file to `size` bytes: what came later was never saved.

        Raises JournalError when the file is shorter than that.
        """
        self.path, self.size = path, size
        try:
            found = path.stat().st_size if path.exists() else 0
            if found < size:
                raise JournalError(f"{str(path)!r} has {found} bytes, but the checkpoint was taken after {size}.")
            with path.open("ab") as file:
                file.truncate(size)
            self._file = path.open("ab")
        except OSError as error:
            raise self._refused(error) from None

    def write(self, data: bytes | bytearray) -> None:
        """Append, into a buffer at first."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused(error) from None
        self.size += len(data)

    def flush(self) -> None:
        """Let readers of the file see everything written so far."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from None

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from None

    def close(self) -> None:
        """Write out and let go."""
        with suppress(OSError):
            self._file.close()

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"{str(self.path)!r} cannot be written: {error.strerror or error}. The last checkpoint is intact; "
            "make room and go on with `livelm resume`."
        )
