"""Reads the files: messages become pieces of documents, with the cursor after each.

One document is open at a time. It grows while its conversation does, and ends when another conversation or branch has
something to say; a conversation that is taken up again begins another document, with its last words as context.
"""

import logging
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace as changed
from typing import BinaryIO

from livelm.sources.sessions.follow import Folder, SessionFile, file_mark, lines
from livelm.sources.sessions.progress import OpenDocument, Place, Progress
from livelm.sources.sessions.render import Rendered, cuts, render
from livelm.sources.sessions.session import Known, Message, Session
from livelm.sources.sessions.settings import SessionsSettings
from livelm.types import Cursor, Document

MAX_SESSIONS = 64
"""Files whose conversation is kept in memory; another one that grows is read again up to where it was."""

TIME = re.compile(r"[0-9T:.Z+-]{10,40}")
Item = tuple[Document, Cursor]
log = logging.getLogger(__name__)


class Reader:
    """One read of a target."""

    def __init__(self, folder: Folder, settings: SessionsSettings, progress: Progress, closed: threading.Event) -> None:
        """`settings.follow` says which of `once` and `follow` will be called."""
        self.counts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        """Secrets by rule."""
        self.skipped: Counter[str] = Counter()
        self._folder, self._settings, self._progress, self._closed = folder, settings, progress, closed
        self._known = Known(settings.max_known_lines)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._looks: dict[str, tuple[int, int, int]] = {}
        self._grown_at: dict[str, float] = {}
        self._reported: set[str] = set()
        self._is_single = settings.follow is False

    def once(self) -> Iterator[Item]:
        """Every file to its present end, oldest conversation first."""
        files = [file for file, _ in self._folder.look(self.skipped)]
        self.counts["n_files"] = len(files)
        after = self._progress.after
        done = [file for file in files if after is not None and (file.began, file.key) < after]
        self._remember((file, None) for file in done)
        for file in files[len(done) :]:
            if (file.began, file.key) == after:
                self._remember([(file, self._progress.place(file.key).offset)])
            yield from self._drain(file, settled=True)
            yield from self._end()
        self._report()

    def follow(self) -> Iterator[Item]:
        """Every file, then what is appended and what comes new, until closed."""
        first = True
        while not self._closed.is_set():
            files = self._folder.look(self.skipped)
            self.counts["n_files"] = len(files)
            if first:
                places = self._progress.places()
                self._remember((file, places[file.key].offset) for file, _ in files if file.key in places)
                first = False
            opened = self._progress.open
            files.sort(key=lambda item: opened is None or item[0].key != opened.key)  # stable: the open one goes first
            for file, status in files:
                look = (status.st_size, status.st_mtime_ns, status.st_ino)
                if look != self._looks.get(file.key):
                    known = file.key in self._looks
                    self._grown_at[file.key] = time.monotonic() - (0 if known else time.time() - status.st_mtime)
                elif file.key not in self._grown_at:
                    continue
                settled = time.monotonic() - self._grown_at[file.key] >= self._settings.settle_s
                yield from self._drain(file, settled=settled)
                self._looks[file.key] = look
                session = self._sessions.get(file.key)
                if session is None or not session.is_waiting:
                    self._grown_at.pop(file.key, None)
            self._report()
            self._closed.wait(self._settings.poll_s)

    def _remember(self, files: Iterable[tuple[SessionFile, int | None]]) -> None:
        """Take again what was delivered of these files, so that its copies are known."""
        for file, offset in files:
            if self._closed.is_set():
                return
            with suppress(OSError), file.path.open("rb") as opened:
                self._again(file, opened, offset)

    def _again(self, file: SessionFile, opened: BinaryIO, offset: int | None) -> Session:
        """The session as it was when `offset` bytes (None: all) had been delivered."""
        session = Session(self._known, Counter())
        if offset != 0:
            for line, stop in lines(opened, 0, self._settings.line_bytes, to_end=True):
                if (offset is not None and stop > offset) or self._closed.is_set():
                    break
                session.take(line, stop, again=True)
            session.flush()
        session.skipped = self.skipped
        session.position = offset or session.position
        session.left_path = False  # what comes next goes on where this ended, if that document is still open
        self._sessions[file.key] = session
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def _drain(self, file: SessionFile, *, settled: bool) -> Iterator[Item]:
        """Deliver what the file has more; `settled`: its last message counts as complete."""
        try:
            opened = file.path.open("rb")
        except OSError as error:
            self.skipped[f"file: {error.strerror}"] += 1
            return
        with opened:
            progress = self._progress
            if self._is_single:
                progress.after = (file.began, file.key)
            place, session = progress.place(file.key), self._sessions.get(file.key)
            position = place.offset if session is None else session.position
            mark = place.mark or ("" if session is None else session.mark)
            if mark and (opened.seek(0, 2) < position or file_mark(opened) != mark):
                log.warning("a session file was replaced: %s is read from its beginning", file.name)
                if progress.open is not None and progress.open.key == file.key:
                    yield from self._end()
                session = None
                progress.put(file.key, Place(0, place.n_documents))
            if session is None:
                session = self._again(file, opened, progress.place(file.key).offset)
            self._sessions.move_to_end(file.key)
            if progress.part is not None and progress.open is not None and progress.open.key == file.key:
                yield from self._finish_message(file, session, opened)
            for messages in self._messages(session, opened, settled=settled):
                yield from self._deliver(file, session, messages)

    def _messages(self, session: Session, opened: BinaryIO, *, settled: bool) -> Iterator[list[Message]]:
        """What is complete, message by message; the messages of one line together."""
        for line, stop in lines(opened, session.position, self._settings.line_bytes, to_end=self._is_single):
            if self._closed.is_set():
                return
            self.counts["n_lines"] += 1
            self.counts["n_read_bytes"] += stop - session.position
            if line is None:
                self.skipped["line over line_bytes"] += 1
            together: list[Message] = []
            for message in session.take(line, stop):
                if together and (message.start, message.stop) != (together[-1].start, together[-1].stop):
                    yield together
                    together = []
                together.append(message)
            if together:
                yield together
        if settled and (rest := session.flush()):
            yield rest

    def _finish_message(self, file: SessionFile, session: Session, opened: BinaryIO) -> Iterator[Item]:
        """Deliver the rest of the message in the middle of which reading was stopped."""
        assert self._progress.part is not None  # noqa: S101  (for the type checker)
        end = self._progress.part[0]
        messages: list[Message] = []
        for line, stop in lines(opened, session.position, self._settings.line_bytes, to_end=True):
            messages += session.take(line, stop)
            if stop >= end:
                break
        messages += session.flush()
        yield from self._pieces(file, messages, self._render(messages))
        self._progress.part = None  # also when the file has lost what was to be delivered

    def _deliver(self, file: SessionFile, session: Session, messages: list[Message]) -> Iterator[Item]:
        rendered = self._render(messages)
        if not rendered.text:
            return
        progress = self._progress
        if progress.open is None or progress.open.key != file.key or not messages[0].continues:
            yield from self._end()
            place = progress.place(file.key)
            progress.open = OpenDocument(file.key, f"{file.name}#{place.n_documents}")
            progress.put(file.key, changed(place, n_documents=place.n_documents + 1, mark=session.mark))
            self.counts["n_documents"] += 1
            recalled = self._recall(session, messages[0])
            progress.part = (messages[-1].stop, 0)
            if recalled:
                text = Rendered(recalled, ((0, len(recalled)),))
                yield self._piece(text, messages[0].entry.at, last=False)
        self.counts["n_messages"] += len(messages)
        yield from self._pieces(file, messages, rendered)

    def _pieces(self, file: SessionFile, messages: list[Message], rendered: Rendered) -> Iterator[Item]:
        """Deliver a message from where `part` says; then the place is after it."""
        progress = self._progress
        start = 0 if progress.part is None else progress.part[1]
        end = messages[-1].stop if messages else 0
        ends = bool(messages) and messages[-1].ends
        stops = [stop for stop in cuts(rendered.text, self._settings.piece_bytes) if stop > start]
        for stop in stops:
            is_final = stop == len(rendered.text)
            progress.part = None if is_final else (end, stop)
            if is_final:
                place = progress.place(file.key)
                progress.put(file.key, changed(place, offset=end))
            yield self._piece(rendered.cut(start, stop), messages[0].entry.at, last=is_final and ends)
            start = stop

    def _piece(self, rendered: Rendered, at: str | None, *, last: bool) -> Item:
        progress, opened = self._progress, self._progress.open
        assert opened is not None  # noqa: S101  (for the type checker)
        document = Document(
            text=rendered.text,
            id=opened.id,
            source="sessions",
            offset=opened.n_bytes,
            last=last,
            at=at if at is not None and TIME.fullmatch(at) else None,
            context=rendered.context,
        )
        progress.open = None if last else OpenDocument(opened.key, opened.id, opened.n_bytes + len(rendered.text))
        return document, progress.cursor()

    def _end(self) -> Iterator[Item]:
        """End the document that is open, if one is, with an empty piece."""
        self._progress.part = None
        if self._progress.open is not None:
            yield self._piece(Rendered(b"", ()), None, last=True)

    def _render(self, messages: list[Message]) -> Rendered:
        return render([part for message in messages for part in message.parts], self._settings, self.found)

    def _recall(self, session: Session, message: Message) -> bytes:
        """The last words before a message, from the beginning of a part where one begins there."""
        before = [part for earlier in session.before(message) for part in earlier.parts]
        text = render(before, self._settings, Counter()).text if self._settings.recall_bytes else b""
        tail = text[max(0, len(text) - self._settings.recall_bytes) :]
        begins = tail.find(b"### ")
        return tail[begins:] if 0 <= begins < len(tail) // 2 else tail.decode("utf-8", "ignore").encode()

    def _report(self) -> None:
        for reason in self.skipped.keys() - self._reported:
            self._reported.add(reason)
            if reason != "copy of a line":  # resuming a session copies it: nothing is lost
                log.warning("sessions: %d x %s; further ones are counted", self.skipped[reason], reason)
