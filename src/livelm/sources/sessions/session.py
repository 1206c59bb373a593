"""One session file while it is read: lines become messages, the tree decides where documents begin."""

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from livelm.sources.sessions import claude, codex, messages
from livelm.sources.sessions.conversation import Conversation, Entry, Part, Role, identity
from livelm.sources.sessions.follow import line_mark

Parser = Callable[[dict[str, Any], bytes], list[Entry] | None]
FORMATS: tuple[Parser, ...] = (codex.parse, claude.parse, messages.parse_ccsniff, messages.parse_rows)
"""Tried in this order on the first lines of a file until one recognises a line; it then reads the whole file."""
KEPT_MESSAGES = 24
KEPT_CHARACTERS = 1 << 18
"""How much of what was said last is kept to be recalled."""
MAX_PARTS = 256
"""A message that has more is delivered in several."""


@dataclass(slots=True)
class Message:
    """What one side said before the other spoke: all lines of one answer, or of one user turn."""

    entry: Entry
    """The first line of it."""
    start: int
    stop: int
    """The bytes of the file that its lines take."""
    is_new: bool
    """Whether it is to be delivered; a copy of what another file had is only remembered."""
    continues: bool
    """Whether it is on the same path as the new message before it."""
    parts: list[tuple[Role, Part]] = field(default_factory=list)
    lines: dict[int, int] = field(default_factory=dict)
    """Each line's identity and its first part."""
    ends: bool = False

    @property
    def n_characters(self) -> int:
        """The length of its text."""
        return sum(len(part.text) for _, part in self.parts)


class Known:
    """Which lines were delivered, however many files repeat them; of too many the oldest are forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: dict[int, None] = {}

    def __contains__(self, line: int) -> bool:
        return line in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int) -> None:
        """Remember a line."""
        self._lines[line] = None
        if len(self._lines) > self._limit:
            del self._lines[next(iter(self._lines))]


class Session:
    """Takes the lines of one file in order and gives the messages that are complete."""

    def __init__(self, known: Known, skipped: Counter[str]) -> None:
        self.position = 0
        """Bytes of the file that were taken."""
        self.mark = ""
        """See `follow.line_mark`."""
        self.left_path = False
        """Whether the path has changed since the last new message, so that the next one begins a document."""
        self.skipped = skipped
        """Why lines were not read, and how often."""
        self._known = known
        self._conversation = Conversation()
        self._format: Parser | None = None
        self._held: Message | None = None
        self._recent: deque[Message] = deque(maxlen=KEPT_MESSAGES)

    def take(self, line: bytes | None, stop: int, *, again: bool = False) -> list[Message]:
        """Take the line (None: one that is not to be read) that ends at byte `stop`; the new messages it completes.

        `again`: it was delivered before, and is taken only to know what came before the next one.
        """
        start, self.position = self.position, stop
        if line is None:
            return []
        if start == 0:
            self.mark = line_mark(line)
        completed: list[Message] = []
        for entry in self._parse(line):
            completed += self._add(entry, start, stop, again=again)
            if entry.ends:
                completed += self.flush()
        return completed

    def flush(self) -> list[Message]:
        """The message that is not known to be complete, if it is new; it is complete now."""
        held, self._held = self._held, None
        if held is None:
            return []
        self._recent.append(held)
        while sum(m.n_characters for m in self._recent) > KEPT_CHARACTERS and len(self._recent) > 1:
            self._recent.popleft()
        for line in held.lines:
            self._known.add(line)
        return [held] if held.is_new else []

    def before(self, message: Message) -> list[Message]:
        """What was said on the path to a message, oldest first, as far as it is still kept."""
        parent = message.entry.parent
        if message.entry.begins:
            return []
        if not message.entry.tree:
            recent = [m for m in self._recent if m.entry.thread == message.entry.thread and m.start < message.start]
            firsts = [i for i, m in enumerate(recent) if m.entry.begins]
            return recent[firsts[-1] :] if firsts else recent
        if parent is None:
            return []
        path = set(self._conversation.ancestors(parent, limit=8 * KEPT_MESSAGES))
        return [m for m in self._recent if m is not message and not path.isdisjoint(m.lines)]

    @property
    def is_waiting(self) -> bool:
        """Whether a message is held that more lines may continue."""
        return self._held is not None

    def _parse(self, line: bytes) -> list[Entry]:
        if not line.strip():
            return []
        try:
            value = _loads(line)
        except (ValueError, RecursionError):
            self.skipped["not JSON"] += 1
            return []
        if not isinstance(value, dict):
            self.skipped["not an object"] += 1
            return []
        for parse in FORMATS if self._format is None else (self._format,):
            try:
                entries = parse(value, line)
            except (ValueError, TypeError, RecursionError):  # nested deeper than can be written as text again
                self.skipped["malformed"] += 1
                return []
            if entries is not None:
                self._format = parse
                return entries
        self.skipped["of no known format"] += 1
        return []

    def _add(self, entry: Entry, start: int, stop: int, *, again: bool) -> list[Message]:
        held = self._held
        line = None if entry.uuid is None else identity(entry.uuid)
        if held is not None and line is not None and line in held.lines:
            self._replace(held, line, entry)
            held.stop = stop
            return []
        if not self._conversation.add(entry):
            self.left_path = True
        if not entry.parts and not entry.ends:
            return []
        is_new = not again and (line is None or line not in self._known)
        if not is_new and not again:
            self.skipped["copy of a line"] += 1
        completed: list[Message] = []
        if held is None or self.left_path or not _belongs(entry, held) or held.is_new != is_new:
            completed = self.flush()
            held = self._held = Message(entry, start, stop, is_new, continues=not self.left_path)
            self.left_path = self.left_path and not is_new
        _extend(held, entry, line)
        held.stop, held.ends = stop, entry.ends
        return completed

    def _replace(self, held: Message, line: int, entry: Entry) -> None:
        """The same line once more: what it says now counts."""
        first = held.lines[line]
        later = min((at for at in held.lines.values() if at > first), default=len(held.parts))
        if later == len(held.parts):
            held.parts[first:] = [(entry.role, part) for part in entry.parts]
        else:
            self.skipped["copy of a line"] += 1


def _loads(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:  # it refuses halves of surrogate pairs, which JavaScript writes when it cuts a text
        return json.loads(line)


def _belongs(entry: Entry, held: Message) -> bool:
    """Whether a line is part of the message: of the same answer, or of the same turn of the user."""
    if entry.role != held.entry.role or entry.thread != held.entry.thread or len(held.parts) >= MAX_PARTS:
        return False
    if entry.role == "assistant":
        return entry.answer is None or entry.answer == held.entry.answer
    return True


def _extend(held: Message, entry: Entry, line: int | None) -> None:
    if line is not None:
        held.lines[line] = len(held.parts)
    for part in entry.parts:
        if held.parts and entry.answer is not None:
            role, last = held.parts[-1]
            if last.kind == part.kind != "call" and part.text.startswith(last.text):  # a snapshot grew
                held.parts[-1] = (role, part)
                if line is not None:
                    held.lines[line] = min(held.lines[line], len(held.parts) - 1)
                continue
        held.parts.append((entry.role, part))
