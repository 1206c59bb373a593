"""The conversation: what one line says, and where it stands in the tree of a session.

A session file is a log of a tree. A line names its parent; usually that is the line before it, but a rewind goes back
to an earlier one, a compaction starts from nothing, and sub-agents of older versions run between the lines of their
caller. The path that is being written is one document; a line that does not continue it begins another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

Role = Literal["user", "assistant", "system"]
Kind = Literal["text", "thinking", "call", "result", "reminder"]

MAX_NODES = 200_000
"""Lines of one file whose place in the tree is remembered; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Part:
    """One block of a message: text, a thought, a tool call, a tool result, or a note injected by the program."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one line adds to a conversation; without parts it only has a place in the tree."""

    role: Role
    parts: tuple[Part, ...]
    uuid: str | None = None
    """Names the line wherever it is copied to; None when nothing does, and then it cannot be told from its copies."""
    parent: str | None = None
    tree: bool = False
    """Whether `parent` means something; without it a conversation simply goes on."""
    answer: str | None = None
    """Lines of the same answer share it."""
    thread: str = ""
    """Which conversation of the file it belongs to, where one file holds several."""
    at: str | None = None
    begins: bool = False
    """Nothing said before is known to what follows: the first message, or a compaction."""
    ends: bool = False
    """The conversation is complete with it."""


@dataclass(frozen=True, slots=True)
class _Node:
    parent: int | None
    answer: str | None
    passable: bool
    """Whether a line may continue from before it: results of parallel calls and notes do not end a path."""


class Conversation:
    """Follows the path through the tree of one file."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._path: dict[int, None] = {}
        """Lines of the present path since it began, in the order they were written."""
        self._thread: str | None = None

    def add(self, entry: Entry) -> bool:
        """Put a line in its place; whether it continues the path (else a new path begins with it)."""
        continues = self._continues(entry)
        if not continues:
            self._path = {}
            if entry.parent is not None:
                self._path[identity(entry.parent)] = None
        self._thread = entry.thread
        if entry.uuid is not None:
            key = identity(entry.uuid)
            passable = not entry.parts or all(part.kind in ("result", "reminder") for part in entry.parts)
            parent = None if entry.parent is None else identity(entry.parent)
            self._nodes[key] = _Node(parent, entry.answer, passable)
            self._path[key] = None
            for kept in (self._nodes, self._path):
                if len(kept) > MAX_NODES:
                    del kept[next(iter(kept))]
        return continues

    def ancestors(self, uuid: str, limit: int) -> Iterator[int]:
        """The identities of a line and of what it continues, newest first, at most `limit`."""
        key: int | None = identity(uuid)
        for _ in range(limit):
            if key is None:
                return
            yield key
            node = self._nodes.get(key)
            key = None if node is None else node.parent

    def _continues(self, entry: Entry) -> bool:
        if entry.begins or (self._thread is not None and entry.thread != self._thread):
            return False
        if not entry.tree:
            return True
        if entry.parent is None:
            return not self._path
        parent = identity(entry.parent)
        if parent not in self._path:
            return parent not in self._nodes  # an unknown parent is a line that could not be read: go on
        of = self._nodes.get(parent)
        answers = {entry.answer, None if of is None else of.answer} - {None}
        for key in reversed(self._path):
            if key == parent:
                return True
            node = self._nodes.get(key)
            if node is not None and not node.passable and node.answer not in answers:
                return False
        return True


def identity(name: str | bytes) -> int:
    """64 bits that stand for a line; two of a million lines collide with a chance of 3e-8."""
    data = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return int.from_bytes(blake2b(data, digest_size=8).digest())
