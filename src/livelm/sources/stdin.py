"""Read standard input as one document until it ends."""

import os
import select
import threading
from collections.abc import Iterator

from livelm.errors import SourceError
from livelm.types import Cursor, Document

PIECE_BYTES = 64 << 10
_POLL_MS = 200


class Stdin:
    """What arrives on standard input, in pieces, as one document `stdin`.

    A pipe gives each byte once: pieces are meant to go through the spool. Read after a cursor, what is on standard
    input now continues the document (`generate-rest | livelm resume RUN`).
    """

    bounded = True
    replayable = False

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._closed = threading.Event()

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield what arrives; at the end an empty last piece. Raises SourceError when it is closed or has no byte."""
        offset, ended = _parse(cursor)
        while not ended:
            piece = self._wait()
            if piece is None:
                return
            ended = not piece
            if ended and not offset:
                raise SourceError("empty stream: standard input ended without a single byte. Pipe something in.")
            document = Document(text=piece, id="stdin", source="stdin", offset=offset, last=ended)
            offset += len(piece)
            yield document, Cursor("stdin", {"offset": offset, "ended": ended})

    def close(self) -> None:
        """End `read` within the time of one poll."""
        self._closed.set()

    def describe(self) -> str:
        """One line for people."""
        return "stdin, standard input: ends by itself, cannot be read again (kept in the spool)"

    def _wait(self) -> bytes | None:
        """The next bytes; empty at the end of the input, None once closed."""
        try:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            while not self._closed.is_set():
                ready = poll.poll(_POLL_MS)
                if ready and ready[0][1] & select.POLLNVAL:
                    raise SourceError("standard input is closed. Pipe something in, or name another source.")
                if ready:
                    try:
                        return os.read(self._descriptor, PIECE_BYTES)
                    except BlockingIOError:  # somebody else took it, or the pipe is in non-blocking mode
                        continue
        except OSError as error:
            raise SourceError(f"standard input cannot be read: {error.strerror or error}.") from None
        return None


def _parse(cursor: Cursor | None) -> tuple[int, bool]:
    if cursor is None:
        return 0, False
    if cursor.source == "stdin":
        match dict(cursor.at):
            case {"offset": int(offset), "ended": bool(ended)}:
                return offset, ended
    raise SourceError(f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to standard input.")
