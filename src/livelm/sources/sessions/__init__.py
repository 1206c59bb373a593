"""Sessions of coding agents: their logs as conversations, followed while they are written, secrets taken out first.

Which file says what: `claude`, `codex`, `messages` know the formats; `conversation` the tree; `session` one file;
`render` the text and what of it is learned; `rules` and `redact` the secrets; `follow` and `reader` the folder;
`progress` the cursor.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from livelm.config import Settings
from livelm.errors import SourceError
from livelm.sources.sessions.follow import Folder, file_key, shown
from livelm.sources.sessions.progress import Progress, forget_snapshots
from livelm.sources.sessions.reader import Reader
from livelm.sources.sessions.settings import SessionsSettings
from livelm.types import Cursor, Document, Json

__all__ = ["Sessions", "SessionsSettings"]

DEFAULT = "~/.claude/projects"


class Sessions:
    """Reads the sessions in a file or a folder and below it.

    Known formats, told by content: Claude Code logs, Codex rollouts, OpenAI `messages` and ShareGPT rows, rows of
    ccsniff; one JSON object a line in `.jsonl` or `.ndjson` files. Every line is delivered once, whichever files
    repeat it. A document is one path through a conversation, in pieces of a message each; another branch, or the
    same conversation after another one spoke, is another document `NAME#1`, `NAME#2`, … that begins with the last
    words before it as context. Followed, a document ends when another begins.

    With `redact` (the default) no secret that the rules know leaves the source; each message is searched whole.
    """

    Config: ClassVar[type[Settings]] = SessionsSettings

    def __init__(self, target: str = "", settings: SessionsSettings | None = None) -> None:
        """Raises SourceError when there is nothing at `target` (empty: `~/.claude/projects`)."""
        settings = settings or SessionsSettings()
        self._target = Path(target or DEFAULT).expanduser()
        if not self._target.exists():
            raise SourceError(f"there are no sessions at {shown(self._target)!r}: name a file or folder that is there.")
        follow = self._target.is_dir() if settings.follow is None else settings.follow
        self._settings = settings.model_copy(update={"follow": follow})
        self.bounded = not follow
        self.replayable = not follow
        self._closed = threading.Event()
        self._folder: Path | None = None
        self._reader: Reader | None = None

    def keep(self, folder: Path) -> None:
        """Keep in this folder how far the many files were read, so that cursors stay small."""
        self._folder = folder

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what comes after `cursor`.

        Raises SourceError for a foreign cursor, a target that is gone or holds no conversation, and a snapshot that
        is missing; StorageError when the folder for state refuses to be written.
        """
        absolute = self._target.absolute()
        progress = Progress(file_key(absolute, Path(absolute.anchor)))
        if self._folder is not None and self._settings.follow:
            progress.keep(self._folder)
        if cursor is not None:
            progress.resume(cursor)
        folder = Folder(self._target, self._settings.max_files)
        self._reader = Reader(folder, self._settings, progress, self._closed)
        n_delivered = 0
        for item in self._reader.follow() if self._settings.follow else self._reader.once():
            if self._closed.is_set():
                return
            yield item
            n_delivered += 1
        if not n_delivered and cursor is None and not self._closed.is_set():
            raise SourceError(f"empty stream: no conversation in the sessions of {shown(self._target)!r}.")

    def commit(self, cursor: Cursor) -> None:
        """Forget the state that only earlier cursors need."""
        if self._folder is not None:
            forget_snapshots(self._folder, cursor)

    def close(self) -> None:
        """End `read` at the next line."""
        self._closed.set()

    def describe(self) -> str:
        """One line for people."""
        how = "ends by itself, can be read again" if self.bounded else "never ends, cannot be read again"
        secrets = "secrets redacted" if self._settings.redact else "SECRETS NOT REDACTED"
        return f"sessions {shown(self._target)}: {how}, {secrets}"

    def observe(self) -> dict[str, Json]:
        """Files, lines, bytes, messages, documents; secrets in all and by rule; lines left out by reason."""
        reader = self._reader
        if reader is None:
            return {}
        found = reader.found.copy()
        secrets: dict[str, Json] = {"n_redacted": found.total(), "redacted": dict(sorted(found.items()))}
        return {**dict(reader.counts.copy()), **secrets, "drops": dict(reader.skipped.copy())}
