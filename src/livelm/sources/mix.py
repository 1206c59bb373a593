"""Several sources as one stream, each with its share of the bytes and its own cursor."""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from livelm.config import Settings
from livelm.errors import ConfigError, LivelmError, SourceError
from livelm.types import Acknowledging, Cursor, Document, Json, Keeping, Observed, Preparing, Source

QUEUE_PIECES = 4
"""Documents or pieces that a part of a live mix may be ahead; few, because a stop loses what nobody can send again."""
PATIENCE_S = 0.2
"""How long a live part may be silent inside a document before the others get their turn."""


class MixSettings(Settings):
    """How sources are mixed."""

    weights: tuple[float, ...] = ()
    """The share of the bytes that each source gets, relative to the others; empty: the same for all."""
    turn_bytes: int = Field(default=1 << 20, ge=1, le=1 << 40)
    """A longer document is cut for the others' sake after this many bytes, and goes on later as `ID+OFFSET`."""


DEFAULTS = MixSettings()


class Mix:
    """Reads several sources in turns: the next document comes from the part that is furthest behind its share.

    If every part can be read again, so can the mix, in the same order: the shares decide alone. Otherwise each part
    is read by a thread, whoever has something goes on when others are silent, and what a silent part missed it does
    not catch up later, but for one turn. Either way pieces of a document follow one another; a document that is
    longer than a turn (or whose part falls silent within it) ends, and its rest is a document `ID+OFFSET`.

    A part that ends leaves the others going. The error of a part becomes the error of the mix; what the others had
    ready by then is delivered first.
    """

    Config: ClassVar[type[Settings]] = MixSettings

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        names: Sequence[str],
        turn_bytes: int = DEFAULTS.turn_bytes,
    ) -> None:
        """`names` are for people and keep the parts apart. Raises ConfigError when the three do not fit together."""
        _check(sources, weights, names)
        self.bounded = all(source.bounded for source in sources)
        self.replayable = all(source.replayable for source in sources)
        self._sources, self._weights, self._names = tuple(sources), tuple(weights), tuple(names)
        self._turn_bytes = turn_bytes
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._n_documents = [0] * len(sources)
        self._n_bytes = [0] * len(sources)

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what the parts yield after `cursor`. Raises what a part raises, with its name in front."""
        state = _State(self._names, self._weights, self._turn_bytes)
        if cursor is not None:
            state.restore(cursor)
        for index, document in self._replayed(state) if self.replayable else self._live(state):
            if self._closed.is_set():
                return
            self._n_documents[index] += document.last
            self._n_bytes[index] += len(document.text)
            yield document, state.cursor()

    def commit(self, cursor: Cursor) -> None:
        """Tell every part which of its documents are durable."""
        state = _State(self._names, self._weights, self._turn_bytes)
        state.restore(cursor)
        for source, part in zip(self._sources, state.parts, strict=True):
            if part.cursor is not None and isinstance(source, Acknowledging):
                source.commit(part.cursor)

    def observe(self) -> dict[str, Json]:
        """By the name of the part: its `mixed_documents` and `mixed_bytes` delivered here, and what it says itself."""
        seen: dict[str, Json] = {}
        for index, (name, source) in enumerate(zip(self._names, self._sources, strict=True)):
            own = source.observe() if isinstance(source, Observed) else {}
            seen[name] = {**own, "mixed_documents": self._n_documents[index], "mixed_bytes": self._n_bytes[index]}
        return seen

    def prepare(self) -> None:
        """Let every part begin that takes a while."""
        for source in self._sources:
            if isinstance(source, Preparing):
                source.prepare()

    def keep(self, folder: Path) -> None:
        """Give every part that keeps something a folder of its own in `folder`."""
        for index, (name, source) in enumerate(zip(self._names, self._sources, strict=True)):
            if isinstance(source, Keeping):
                source.keep(folder / f"{index}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:40]}")

    def close(self) -> None:
        """End every part, and with them the mix."""
        self._closed.set()
        self._close_parts()
        with self._changed:
            self._changed.notify_all()

    def describe(self) -> str:
        """One line for people."""
        total = sum(self._weights)
        shares = ", ".join(f"{w / total:.0%} {name}" for w, name in zip(self._weights, self._names, strict=True))
        ends = "ends by itself" if self.bounded else "never ends"
        return f"mix of {shares}: {ends}, {'can' if self.replayable else 'cannot'} be read again"

    def _close_parts(self) -> None:
        for source in self._sources:
            source.close()

    def _replayed(self, state: "_State") -> Iterator[tuple[int, Document]]:
        """The shares alone decide, so that the same cursor always continues in the same way."""
        with ExitStack() as stack:
            readers: dict[int, Iterator[tuple[Document, Cursor]]] = {}
            while (index := state.next_part()) is not None:
                if index not in readers:
                    generator = cast(Any, self._sources[index].read(state.parts[index].cursor))
                    readers[index] = stack.enter_context(closing(generator))
                try:
                    item = next(readers[index], None)
                except LivelmError as error:
                    raise self._blame(index, error) from error
                if item is not None:
                    yield from state.deliver(index, *item)
                elif self._closed.is_set():
                    return
                else:
                    yield from state.end(index)

    def _live(self, state: "_State") -> Iterator[tuple[int, Document]]:
        """Every part in its own thread; ends after all of them did, then raises the first error among them."""
        readers = [
            _Reader(source, part.cursor, self._changed, name)
            for source, part, name in zip(self._sources, state.parts, self._names, strict=True)
        ]
        for reader, part in zip(readers, state.parts, strict=True):
            if not part.ended:
                reader.start()
        failed = False
        try:
            while (index := self._wait_for(state, readers)) is not None:
                if state.open is not None and index != state.current:
                    yield state.current, state.cut()
                item = readers[index].take()
                yield from state.end(index) if item is None else state.deliver(index, *item)
                if not failed and readers[index].error is not None:
                    failed = True
                    self._close_parts()  # the others come to their end, and what they have ready is delivered
        finally:
            for reader in readers:
                reader.stop()
        for index, reader in enumerate(readers):
            if reader.error is not None and not self._closed.is_set():
                raise self._blame(index, reader.error) from reader.error

    def _wait_for(self, state: "_State", readers: "Sequence[_Reader]") -> int | None:
        """The part to read next, which has something ready; None when all ended or the mix is closed."""
        since = time.monotonic()
        with self._changed:
            while not self._closed.is_set():
                ready = [i for i, part in enumerate(state.parts) if not part.ended and readers[i].is_ready()]
                if state.open is not None and state.current in ready:
                    return state.current
                patient = state.open is not None and time.monotonic() - since < PATIENCE_S
                if ready and not patient:
                    return state.choose(ready)
                if all(part.ended for part in state.parts):
                    return None
                self._changed.wait(PATIENCE_S / 4 if ready else 1.0)
        return None

    def _blame(self, index: int, error: Exception) -> LivelmError:
        message = f"{self._names[index]!r}, a part of the mix: {error}"
        if isinstance(error, LivelmError):
            return type(error)(message)
        return SourceError(f"{self._names[index]!r}, a part of the mix, failed: {type(error).__name__}: {error}.")


@dataclass(slots=True)
class _Part:
    """Where one part stands."""

    cursor: Cursor | None = None
    share: float = 0.0
    """Bytes delivered over weight: the part with the least is next."""
    base: int = 0
    """The byte of the part's own document at which the delivered one begins; not 0 only after a cut."""
    ended: bool = False


class _State:
    """Who is next, and how far everyone is: all that a cursor holds."""

    def __init__(self, names: Sequence[str], weights: Sequence[float], turn_bytes: int) -> None:
        self.parts = [_Part() for _ in names]
        self.current = 0
        """The part that delivered last."""
        self.open: Document | None = None
        """The latest piece (without its text) of the document that `current` has not finished."""
        self._turn = 0  # bytes delivered of the open document
        self._names, self._weights, self._turn_bytes = list(names), list(weights), turn_bytes

    def next_part(self) -> int | None:
        """The part whose document is open, or the one furthest behind its share; None when all ended."""
        if self.open is not None:
            return self.current
        going = [i for i, part in enumerate(self.parts) if not part.ended]
        return min(going, key=lambda i: (self.parts[i].share, i), default=None)

    def choose(self, ready: Sequence[int]) -> int:
        """Of these parts the one furthest behind; being silent earns no more than one turn."""
        clock = self.parts[self.current].share
        for i in ready:
            self.parts[i].share = max(self.parts[i].share, clock - self._turn_bytes / self._weights[i])
        return min(ready, key=lambda i: (self.parts[i].share, i))

    def deliver(self, index: int, document: Document, cursor: Cursor) -> Iterator[tuple[int, Document]]:
        """Account for a piece, and yield it under its delivered name; an empty rest of a cut document is left out."""
        part = self.parts[index]
        n_bytes = len(document.text)
        if document.offset == 0:
            part.base = 0
        base = part.base
        piece = replace(document, id=f"{document.id}+{base}" if base else document.id, offset=document.offset - base)
        begins = self.open is None
        self._turn = n_bytes if begins else self._turn + n_bytes
        part.cursor, part.share = cursor, part.share + max(n_bytes, 1) / self._weights[index]
        self.current = index
        others = any(not other.ended for i, other in enumerate(self.parts) if i != index)
        if not piece.last and self._turn >= self._turn_bytes and others:
            piece = replace(piece, last=True)
            part.base = document.offset + n_bytes
        self.open = None if piece.last else replace(piece, text=b"", offset=piece.offset + n_bytes, context=())
        if n_bytes or not (base and begins and piece.last):
            yield index, piece

    def cut(self) -> Document:
        """End the open document where it is; the rest of it will be another one."""
        assert self.open is not None  # noqa: S101  (for the type checker: only an open document is cut)
        closing_piece = replace(self.open, last=True)
        self.parts[self.current].base += closing_piece.offset
        self.open = None
        return closing_piece

    def end(self, index: int) -> Iterator[tuple[int, Document]]:
        """The part has nothing more; a document that it left open ends too."""
        self.parts[index].ended = True
        if self.open is not None and index == self.current:
            yield index, self.cut()

    def cursor(self) -> Cursor:
        parts = [
            {
                "cursor": None if p.cursor is None else {"source": p.cursor.source, "at": dict(p.cursor.at)},
                "share": p.share,
                "base": p.base,
                "ended": p.ended,
            }
            for p in self.parts
        ]
        o = self.open
        opened = None if o is None else {name: getattr(o, name) for name in ("id", "source", "offset", "at", "url")}
        at = {"names": self._names, "cursors": parts, "current": self.current, "turn": self._turn, "open": opened}
        return Cursor("mix", at)

    def restore(self, cursor: Cursor) -> None:
        """Raises SourceError for the cursor of anything but a mix of these names."""
        try:
            at = cast(Any, cursor.at)
            if cursor.source != "mix" or at["names"] != self._names or len(at["cursors"]) != len(self._names):
                raise KeyError
            self.parts = [
                _Part(
                    cursor=None if p["cursor"] is None else Cursor(str(p["cursor"]["source"]), dict(p["cursor"]["at"])),
                    share=float(p["share"]),
                    base=int(p["base"]),
                    ended=bool(p["ended"]),
                )
                for p in at["cursors"]
            ]
            self.current, self._turn = range(len(self._names))[at["current"]], int(at["turn"])
            self.open = None if at["open"] is None else Document(text=b"", last=False, **at["open"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise SourceError(
                f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to the mix of "
                f"{', '.join(self._names)}: this run was reading something else."
            ) from None


class _Reader:
    """Reads one part in a thread, a few pieces ahead."""

    def __init__(self, source: Source, cursor: Cursor | None, changed: threading.Condition, name: str) -> None:
        self.error: Exception | None = None
        self._read: Callable[[Cursor | None], Iterator[tuple[Document, Cursor]]] = source.read
        self._cursor, self._changed = cursor, changed
        self._items: deque[tuple[Document, Cursor] | None] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"livelm-mix-{name}"[:40], daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def is_ready(self) -> bool:
        return bool(self._items)

    def take(self) -> tuple[Document, Cursor] | None:
        """The next item; None: the part ended, and `error` says whether well. Only when `is_ready`."""
        with self._changed:
            self._changed.notify_all()
            return self._items.popleft()

    def _run(self) -> None:
        try:
            for item in self._read(self._cursor):
                if not self._put(item):
                    return
        except Exception as error:  # whatever it is, the mix must not wait for ever; it raises it
            self.error = error
        self._put(None)

    def _put(self, item: tuple[Document, Cursor] | None) -> bool:
        """False when nobody will take it."""
        with self._changed:
            while item is not None and len(self._items) >= QUEUE_PIECES and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._items.append(item)
                self._changed.notify_all()
            return not self._stopped


def _check(sources: Sequence[Source], weights: Sequence[float], names: Sequence[str]) -> None:
    if not sources:
        raise ConfigError("a mix needs at least one source. Name some after `mix:`.")
    if not len(sources) == len(weights) == len(names):
        raise ConfigError(
            f"source.mix.weights has {len(weights)} numbers for {len(sources)} sources. Give one for each."
        )
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        raise ConfigError(f"source.mix.weights holds {wrong[0]}; every weight is a number over 0, such as 1 or 2.5.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"{twice[0]!r} is in the mix more than once. Name each source once; its weight says how much."
        )
