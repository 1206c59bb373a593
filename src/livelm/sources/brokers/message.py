"""A document as a message and back: one header of JSON, the text itself as the body; any other message is plain text.

On the wire every message is a whole document, because the messages of several producers come interleaved and a
broker may forget the first half of something: what is too long for one message becomes several documents, named by
the byte at which they begin (`id`, `id+1000000`, …).
"""

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Protocol

from livelm.errors import SourceError
from livelm.types import Document

HEADER = "livelm"
"""The name of the header (in Redis: of the field) that holds the JSON."""
KEY = "livelm-key"
"""The name of the header or field that holds `key`, where the broker has none of its own for it."""
MAX_HEADER_BYTES = 64 << 10
MAX_RANGES = 1000
"""Most context ranges in one message, which bounds its header."""
LOG_S = 60.0
"""One line about the same kind of bad message at most so often."""

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Where documents are sent: everything is stored by the broker when `publish` returns."""

    def publish(self, batch: Sequence[Document]) -> None:
        """Store them all, in this order, each once. Raises SourceError when the broker stays away or refuses."""
        ...

    def close(self) -> None:
        """Let go of the broker; safe to call more than once."""
        ...


class MalformedMessage(ValueError):
    """A message with our header that says something impossible."""


def pack(document: Document) -> str:
    """The JSON (ASCII, one line) that goes beside `document.text`; of a whole document. Raises SourceError."""
    header: dict[str, Any] = {"v": 1, "id": document.id, "source": document.source}
    if document.at is not None:
        header["at"] = document.at
    if document.url is not None:
        header["url"] = document.url
    if document.context:
        header["context"] = document.context
    packed = json.dumps(header, separators=(",", ":"))
    if len(packed) > MAX_HEADER_BYTES:
        raise SourceError(
            f"the document {document.id[:80]!r}… cannot be published: its id, url and context take {len(packed)} "
            f"bytes of JSON, and {MAX_HEADER_BYTES} are allowed. Shorten its id."
        )
    return packed


def unpack(header: str | bytes, body: bytes) -> Document:
    """The document that `pack` wrote. Raises MalformedMessage."""
    if len(header) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"a header of {len(header)} bytes")
    try:
        values = json.loads(header)
    except (ValueError, RecursionError):
        raise MalformedMessage("a header that is not JSON") from None
    if not isinstance(values, dict):
        raise MalformedMessage("a header that is no object")
    get = values.get  # plain look-ups: this runs for every message
    if get("v") != 1:
        raise MalformedMessage(f"a header of version {str(get('v'))[:20]}, not 1; is there a newer livelm?")
    name, source, at, url, context = get("id"), get("source"), get("at"), get("url"), get("context")
    if not (name and _is_text(name) and source and _is_text(source)):
        raise MalformedMessage("a header without id or source")
    if not ((at is None or _is_text(at)) and (url is None or _is_text(url))):
        raise MalformedMessage("a header whose at or url is no text")
    return Document(
        text=body, id=name, source=source, at=at, url=url, context=_ranges(context, len(body)) if context else ()
    )


def key(document: Document) -> str:
    """What makes a message the same message: id, place and text, not when it was seen. 32 hexadecimal digits."""
    name = json.dumps([document.source, document.id, document.offset, document.last])
    return blake2b(document.text, digest_size=16, key=blake2b(name.encode(), digest_size=32).digest()).hexdigest()


def pieces(document: Document, max_bytes: int) -> Iterator[Document]:
    """The whole documents of at most `max_bytes` that go into one message each; characters stay whole in UTF-8."""
    text, start, ranges = document.text, 0, _disjoint(document.context)
    while True:
        stop = min(start + max_bytes, len(text))
        inside = [(max(a, start), min(b, stop)) for a, b in ranges if a < stop and b > start]
        if len(inside) > MAX_RANGES:
            stop = inside[MAX_RANGES][0]
        elif stop < len(text):
            stop = _boundary(text, start, stop)
        place = document.offset + start
        yield Document(
            text=text[start:stop],
            id=f"{document.id}+{place}" if place else document.id,
            source=document.source,
            at=document.at,
            url=document.url,
            context=tuple((max(a, start) - start, min(b, stop) - start) for a, b in ranges if a < stop and b > start),
        )
        start = stop
        if start >= len(text):
            return


class Recent:
    """Which keys came in the last `reach` places of a stream: a window with an exact rule, so it can be rebuilt.

    A message repeats another if its key was seen at most `reach` places before. Reading those places again gives the
    same answers, whatever came earlier.
    """

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._places: dict[str, int] = {}
        self._order: deque[tuple[int, str]] = deque()

    def repeats(self, key: str | None, place: int) -> bool:
        """Note that `key` (None: the message has none) is at `place`, growing; whether it came shortly before."""
        while self._order and self._order[0][0] < place - self._reach:
            old, name = self._order.popleft()
            if self._places[name] == old:
                del self._places[name]
        if key is None or not self._reach:
            return False
        again = key in self._places
        self._places[key] = place
        self._order.append((place, key))
        return again

    def clear(self) -> None:
        """Forget everything."""
        self._places.clear()
        self._order.clear()


class Drops:
    """Counts messages that were not delivered, by reason, and says so in the log now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: Counter[str] = Counter()
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, reason: str, where: str, n: int = 1, *, level: int = logging.WARNING) -> None:
        """Count `n` more, the last of them at `where`; `reason` comes from a small fixed set."""
        now = time.monotonic()
        with self._lock:
            self._counts[reason] += n
            total, said = self._counts[reason], self._said.get(reason)
            if said is not None and now - said < LOG_S:
                return
            self._said[reason] = now
        log.log(level, "%s: skipped %s (%d so far: %s)", self._name, where, total, reason)

    def counts(self) -> dict[str, int]:
        """How many so far, by reason."""
        with self._lock:
            return dict(self._counts)


def _is_text(value: Any) -> bool:
    """Whether it can be written anywhere: JSON can spell halves of surrogate pairs, UTF-8 cannot."""
    if not isinstance(value, str) or value.isascii():
        return isinstance(value, str)
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _disjoint(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as sorted ranges that neither touch nor are empty."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _ranges(values: Any, n_bytes: int) -> tuple[tuple[int, int], ...]:
    if not values:
        return ()
    if not isinstance(values, list) or len(values) > MAX_RANGES:
        raise MalformedMessage("a header whose context is no short list")
    ranges: list[tuple[int, int]] = []
    for entry in values:
        match entry:
            case [int(start), int(stop)] if 0 <= start <= stop <= n_bytes:
                ranges.append((start, stop))
            case _:
                raise MalformedMessage("a header whose context is not inside the text")
    return tuple(ranges)


def _boundary(text: bytes, start: int, stop: int) -> int:
    """The last place up to `stop` where a UTF-8 character begins; `stop` itself when the text is something else."""
    for place in range(stop, max(start, stop - 4), -1):
        if text[place] & 0xC0 != 0x80:
            return place
    return stop
