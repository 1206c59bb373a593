"""Cut what a source gives into the documents that are scored: lines, or pieces of what it calls a document."""

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

from livelm.types import Document

MAX_BYTES = 64 << 10
"""A longer line or document is scored in parts of this size."""
MAX_OPEN = 1024
"""Documents followed at once; what is left of the one touched longest ago is then a part of its own."""
LINED = ("files", "stdin", "tail")
"""Sources whose documents are lines; those of a .jsonl file are its texts."""
_OF_JSONL = re.compile(r"\.jsonl(\.\w+)?#[0-9]+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """What is scored at once."""

    text: bytes
    """With the end of its line, if it has one."""
    id: str
    """The document that it belongs to."""
    place: int
    """1 for the first line or part of its document, and so on."""
    is_line: bool
    at: str | None = None


@dataclass(slots=True)
class _Open:
    """A document of which more may come."""

    held: bytearray = field(default_factory=bytearray)
    place: int = 0


class Cutter:
    """Takes a stream's documents in pieces; gives each line or part as soon as it is whole."""

    def __init__(self, by: Literal["auto", "line", "document"]) -> None:
        self._by = by
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def take(self, document: Document) -> list[Part]:
        """The parts that this piece completes."""
        lines = self._by_lines(document)
        state = self._open.pop(document.id, None) or _Open()
        text = _without(document)
        parts = []
        if lines:
            *whole, rest = text.split(b"\n")
            for line in whole:
                state.held += line + b"\n"
                parts += self._cut(state, document, lines, at_end=True)
            text = rest
        state.held += text
        parts += self._cut(state, document, lines, at_end=document.last)
        if not document.last:
            self._open[document.id] = state
        if len(self._open) > MAX_OPEN:
            name, oldest = self._open.popitem(last=False)
            parts += [Part(bytes(oldest.held), name, oldest.place + 1, lines)] if oldest.held else []
        return parts

    def finish(self) -> list[Part]:
        """What is left when the stream has ended."""
        left = [(name, state) for name, state in self._open.items() if state.held]
        self._open.clear()
        return [Part(bytes(state.held), name, state.place + 1, self._by != "document") for name, state in left]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"open": [[name, state.held.hex(), state.place] for name, state in self._open.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._open = OrderedDict((n, _Open(bytearray.fromhex(held), place)) for n, held, place in state["open"])

    def _by_lines(self, document: Document) -> bool:
        if self._by != "auto":
            return self._by == "line"
        return document.source in LINED and not _OF_JSONL.search(document.id)

    def _cut(self, state: _Open, document: Document, lines: bool, *, at_end: bool) -> list[Part]:
        """Take full parts from what is held, and the rest too `at_end`."""
        parts = []
        while len(state.held) > MAX_BYTES or (at_end and state.held):
            state.place += 1
            parts.append(Part(bytes(state.held[:MAX_BYTES]), document.id, state.place, lines, document.at))
            del state.held[:MAX_BYTES]
        return parts


def _without(document: Document) -> bytes:
    """Its text without what is only there to be read along."""
    kept, at = bytearray(), 0
    for start, stop in document.context:
        kept += document.text[at:start]
        at = max(at, stop)
    return bytes(kept) + document.text[at:] if document.context else document.text
