"""Documents become batches: each document flows into a lane, and every batch takes the next tokens of each lane."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from livelm.config import FeedSettings
from livelm.errors import ContractError
from livelm.feed.cursor import FeedCursor, OpenDocument, Stretch
from livelm.types import Batch, Cursor, Document, DocumentSpan, DocumentStart, Encoder, Source, Tokenizer, Tokens

SLICE_BYTES = 64 << 10
"""A long document is tokenised this many bytes at a time, which bounds what waits in a lane."""


def _constant(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values


_YES, _NO = _constant(np.ones(SLICE_BYTES, np.bool_)), _constant(np.zeros(1, np.bool_))
_NO_BYTES = _constant(np.zeros(1, np.int32))


def batches(source: Source, tokenizer: Tokenizer, settings: FeedSettings, cursor: FeedCursor | None) -> Iterator[Batch]:
    """Yield batches until the source ends; after `cursor` (None: from the start) exactly as if it had never stopped.

    The last batches may be shorter; where some lanes end before others they are filled with ungraded marks.
    """
    yield from _Assembler(source, tokenizer, settings, cursor).run()


@dataclass(slots=True)
class _Reading:
    """The document that is being read, while more pieces of it may come."""

    id: str
    ordinal: int
    lane: int
    encoder: Encoder
    position: int
    context: list[tuple[int, int]]

    def save(self) -> OpenDocument:
        return OpenDocument(self.id, self.ordinal, self.lane, self.encoder.held, self.position, tuple(self.context))


class _Assembler:
    def __init__(self, source: Source, tokenizer: Tokenizer, settings: FeedSettings, cursor: FeedCursor | None) -> None:
        n = settings.lanes
        self._source, self._tokenizer, self._settings = source, tokenizer, settings
        self._place: Cursor | None = None if cursor is None else cursor.source
        self._skip = 0 if cursor is None else cursor.skip
        self._n_documents = 0 if cursor is None else cursor.n_documents
        self._n_batches = 0 if cursor is None else cursor.n_batches
        self._lanes: list[deque[Stretch]] = (
            [deque(lane) for lane in cursor.lanes] if cursor else [deque() for _ in range(n)]
        )
        self._waiting = [sum(map(len, lane)) for lane in self._lanes]
        self._fresh = list(cursor.fresh) if cursor else [True] * n
        self._begun: list[DocumentStart] = []
        self._mark = _constant(np.array([tokenizer.mark], np.int32))
        self._reading: _Reading | None = None
        if cursor is not None and cursor.open is not None:
            o = cursor.open
            encoder = tokenizer.encoder()
            encoder.feed(o.held)  # restores it: what it held back, it holds back again
            self._reading = _Reading(o.id, o.ordinal, o.lane, encoder, o.position, list(o.context))

    def run(self) -> Iterator[Batch]:
        n_tokens = self._settings.update_tokens
        with closing(self._documents()) as documents:
            more = True
            while more:  # what a cursor brought along comes first: a live source may be silent for long
                while min(self._waiting) >= n_tokens:
                    yield self._take(n_tokens)
                more = next(documents, False)
        while any(self._waiting):
            yield self._take(min(n_tokens, max(self._waiting)))

    def _documents(self) -> Generator[bool, None, None]:
        """Move the stream into the lanes slice by slice; the fields are a consistent cursor at every yield."""
        skip = self._skip
        for document, after in self._source.read(self._place):
            for start in range(skip, max(len(document.text), 1), SLICE_BYTES):
                stop = min(start + SLICE_BYTES, len(document.text))
                ends = stop == len(document.text)
                self._absorb(document, start, stop)
                if ends:
                    self._place, self._skip = after, 0
                else:
                    self._skip = stop
                yield True
            skip = 0

    def _absorb(self, document: Document, start: int, stop: int) -> None:
        """Turn text[start:stop] into tokens of its lane."""
        whole = len(self._lanes) > 1  # then every piece is a document by itself, so that no lane starves
        if start == 0 and (whole or (document.offset == 0 and not self._began(document.id))):
            self._open(document, whole)
        reading = self._reading
        if reading is None or (reading.id != document.id and not whole):
            raise ContractError(
                f"source {document.source!r} continued document {document.id!r} at byte {document.offset} "
                "without having begun it; a source delivers the pieces of a document one after another."
            )
        if start == 0:
            base = 0 if whole else document.offset
            reading.context += [(base + a, base + b) for a, b in document.context if a < b]
        self._push(reading, reading.encoder.feed(document.text[start:stop]))
        if stop == len(document.text) and (whole or document.last):
            self._push(reading, reading.encoder.finish())
            self._reading = None

    def _began(self, name: str) -> bool:
        """Whether this document is open already, with nothing but empty pieces so far."""
        reading = self._reading
        return reading is not None and reading.id == name and not reading.position and not reading.encoder.held

    def _open(self, document: Document, whole: bool) -> None:
        name = f"{document.id}+{document.offset}" if whole and document.offset else document.id
        lane = self._waiting.index(min(self._waiting))
        ordinal, self._n_documents = self._n_documents, self._n_documents + 1
        opens = DocumentStart(ordinal, name, document.source, document.at, document.url)
        self._reading = _Reading(document.id, ordinal, lane, self._tokenizer.encoder(), 0, [])
        # the mark says that another document begins, which is news (and graded) except at the very beginning
        graded = _NO[:1] if self._fresh[lane] else _YES[:1]
        self._put(lane, Stretch(self._mark, _NO_BYTES, graded, ordinal, opens))
        self._fresh[lane] = False

    def _push(self, reading: _Reading, tokens: Tokens) -> None:
        if not len(tokens.ids):
            return
        graded, n_bytes = _YES[: len(tokens.ids)], tokens.n_bytes
        if reading.context or len(graded) < len(tokens.ids):
            graded = _outside(tokens, reading.position, reading.context)
            n_bytes = np.where(graded, n_bytes, 0).astype(np.int32)
        reading.position += int(tokens.n_bytes.sum())
        if reading.context:
            reading.context = [r for r in reading.context if r[1] > reading.position]
        self._put(reading.lane, Stretch(tokens.ids, n_bytes, graded, reading.ordinal, None))

    def _put(self, lane: int, stretch: Stretch) -> None:
        self._lanes[lane].append(stretch)
        self._waiting[lane] += len(stretch)

    def _take(self, n_tokens: int) -> Batch:
        shape = (len(self._lanes), n_tokens)
        tokens = np.full(shape, self._tokenizer.mark, np.int64)
        starts, graded, n_bytes = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
        spans: list[DocumentSpan] = []
        for lane, waiting in enumerate(self._lanes):
            at = 0
            while at < n_tokens and waiting:
                stretch = waiting.popleft()
                if len(stretch) > n_tokens - at:
                    stretch, rest = stretch.cut(n_tokens - at)
                    waiting.appendleft(rest)
                stop = at + len(stretch)
                tokens[lane, at:stop], graded[lane, at:stop] = stretch.ids, stretch.graded
                n_bytes[lane, at:stop], starts[lane, at] = stretch.n_bytes, stretch.opens is not None
                self._note(spans, lane, at, stop, stretch)
                at = stop
            self._waiting[lane] -= at
        begun, self._begun = tuple(self._begun), []
        index, self._n_batches = self._n_batches, self._n_batches + 1
        return Batch(
            tokens=torch.from_numpy(tokens),
            starts=torch.from_numpy(starts),
            graded=torch.from_numpy(graded),
            n_bytes=torch.from_numpy(n_bytes),
            index=index,
            spans=tuple(spans),
            begun=begun,
            cursor=self._cursor(),
        )

    def _note(self, spans: list[DocumentSpan], lane: int, start: int, stop: int, stretch: Stretch) -> None:
        if stretch.opens is not None:
            self._begun.append(stretch.opens)
        if spans and (spans[-1].ordinal, spans[-1].lane, spans[-1].stop) == (stretch.ordinal, lane, start):
            start = spans.pop().start
        spans.append(DocumentSpan(stretch.ordinal, lane, start, stop))

    def _cursor(self) -> FeedCursor:
        return FeedCursor(
            source=self._place,
            skip=self._skip,
            n_documents=self._n_documents,
            n_batches=self._n_batches,
            lanes=tuple(tuple(lane) for lane in self._lanes),
            fresh=tuple(self._fresh),
            open=None if self._reading is None else self._reading.save(),
        )


def _outside(tokens: Tokens, position: int, context: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """(n,) whether each token, the first of which begins at byte `position`, touches none of the ranges."""
    outside = np.ones(len(tokens.ids), np.bool_)
    if context:
        stops = position + np.cumsum(tokens.n_bytes)
        begins = stops - tokens.n_bytes
        stops = np.maximum(stops, begins + 1)  # a token that stands for no byte is a part of the one that comes next
        for first, last in context:
            outside &= (stops <= first) | (begins >= last)
    return outside
