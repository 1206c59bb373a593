"""Following a folder: appended lines, new and replaced files, and resuming with state in a folder."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from livelm.errors import SourceError
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.sources.sessions import Sessions, SessionsSettings
from livelm.types import Cursor, Document


def line(uuid: str, parent: str | None, role: str, text: str, answer: str | None = None) -> bytes:
    message = {"role": role, "content": text, "id": answer}
    row = {"type": role, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "message": message}
    return json.dumps(row).encode() + b"\n"


def append(path: Path, *parts: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b"".join(parts))


@contextmanager
def following(
    target: Path, cursor: Cursor | None = None, keep: Path | None = None, **settings: Any
) -> Iterator[Iterator[tuple[Document, Cursor]]]:
    values = {"poll_s": 0.01, "settle_s": 0.0, **settings}
    source = Sessions(str(target), SessionsSettings(follow=True, **values))
    if keep is not None:
        source.keep(keep)
    timer = threading.Timer(20, source.close)  # a test that waits in vain ends
    timer.start()
    with closing(source):
        try:
            yield source.read(cursor)
        finally:
            timer.cancel()


def test_each_answer_comes_soon_after_it_was_written_in_one_growing_document(tmp_path: Path) -> None:
    path = tmp_path / "p" / "s.jsonl"
    append(path, line("1", None, "user", "hi"))
    with following(tmp_path) as items:
        first, _ = next(items)
        append(path, line("2", "1", "assistant", "hello", "a"))
        second, _ = next(items)
        append(path, line("3", "2", "user", "more"))
        third, _ = next(items)
    assert (first.text, second.text, third.text) == (
        b"### user\nhi\n\n",
        b"### assistant\nhello\n\n",
        b"### user\nmore\n\n",
    )
    assert first.id == second.id == third.id
    assert (first.offset, second.offset, third.offset) == (0, 13, 34)
    assert not third.last


def test_a_line_is_read_only_when_it_is_whole_and_an_answer_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    second = line("2", "1", "assistant", "hello", "a")
    append(path, line("1", None, "user", "hi"), second[:40])
    with following(tmp_path, settle_s=3600.0) as items:
        append(path, second[40:], line("3", "2", "assistant", "there", "a"), line("4", "3", "user", "ok"))
        assert [next(items)[0].text for _ in range(2)] == [
            b"### user\nhi\n\n",
            b"### assistant\nhello\n\n### assistant\nthere\n\n",
        ]


def test_a_new_file_ends_the_open_document_and_going_back_recalls_its_last_words(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "one" / "subagents" / "agent-1.jsonl"
    append(one, line("1", None, "user", "hi"))
    with following(tmp_path) as items:
        got = [next(items)[0]]
        append(two, line("x1", None, "user", "task"))
        got += [next(items)[0], next(items)[0]]
        append(one, line("2", "1", "assistant", "back", "a"))
        got += [next(items)[0] for _ in range(3)]
    assert [(d.id.split("@")[0], d.text, d.last) for d in got] == [
        ("one", b"### user\nhi\n\n", False),
        ("one", b"", True),
        ("agent-1", b"### user\ntask\n\n", False),
        ("agent-1", b"", True),
        ("one", b"### user\nhi\n\n", False),
        ("one", b"### assistant\nback\n\n", False),
    ]
    assert got[4].context == ((0, 13),)
    assert got[0].id != got[4].id == got[5].id


def test_what_is_repeated_by_a_resumed_file_is_not_counted_twice(tmp_path: Path) -> None:
    old = line("1", None, "user", "hi"), line("2", "1", "assistant", "hello", "a")
    append(tmp_path / "a.jsonl", *old)
    with following(tmp_path, recall_bytes=0) as items:
        assert [next(items)[0].offset for _ in range(2)] == [0, 13]
        append(tmp_path / "b.jsonl", *old, line("3", "2", "user", "again"))
        assert [next(items)[0].text for _ in range(2)] == [b"", b"### user\nagain\n\n"]


@pytest.mark.parametrize("how", ["replaced", "truncated"])
def test_a_file_that_was_replaced_is_read_from_its_beginning_without_its_old_lines(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s.jsonl"
    old = line("1", None, "user", "hi"), line("2", "1", "assistant", "hello there", "a")
    append(path, *old)
    with following(tmp_path, recall_bytes=0) as items:
        assert [next(items)[0].offset for _ in range(2)] == [0, 13]
        if how == "replaced":
            append(tmp_path / "new", line("0", None, "user", "before"), *old)
            (tmp_path / "new").replace(path)
        else:
            path.write_bytes(line("0", None, "user", "before"))
        got = [next(items)[0] for _ in range(2)]
    assert [d.text for d in got] == [b"", b"### user\nbefore\n\n"]
    assert got[0].last


def _folder(folder: Path, n_files: int) -> None:
    for i in range(n_files):
        path = folder / f"{i:03}.jsonl"
        append(
            path, line(f"{i}a", None, "user", f"question {i}"), line(f"{i}b", f"{i}a", "assistant", f"answer {i}", "a")
        )


def _some(
    target: Path, cursor: Cursor | None, keep: Path | None, n: int, **settings: Any
) -> list[tuple[Document, Cursor]]:
    with following(target, cursor, keep, **settings) as items:
        return [next(items) for _ in range(n)]


@pytest.mark.parametrize(("keep", "piece_bytes"), [(True, 1 << 16), (False, 1 << 16), (True, 64)])
def test_resuming_after_any_document_yields_the_same_rest(tmp_path: Path, keep: bool, piece_bytes: int) -> None:
    _folder(tmp_path / "logs", 6)
    for i in range(6):
        append(tmp_path / "logs" / f"{i:03}.jsonl", line(f"{i}c", f"{i}b", "user", "wörd " * 30))
    folder = tmp_path / "state" if keep else None
    whole = _some(tmp_path / "logs", None, folder, 23, piece_bytes=piece_bytes)
    for k, (_, cursor) in enumerate(whole):
        again = Cursor(cursor.source, json.loads(json.dumps(cursor.at)))
        rest = _some(tmp_path / "logs", again, folder, len(whole) - k - 1, piece_bytes=piece_bytes)
        assert [d for d, _ in rest] == [d for d, _ in whole[k + 1 :]]


def test_with_a_folder_cursors_stay_small_and_old_snapshots_are_forgotten(tmp_path: Path) -> None:
    _folder(tmp_path / "logs", 200)
    state = tmp_path / "state"
    whole = _some(tmp_path / "logs", None, state, 599)
    assert max(len(json.dumps(cursor.at)) for _, cursor in whole) < 3500
    assert len(list(state.iterdir())) >= 3
    for k in (149, 150, 300, 598):
        rest = _some(tmp_path / "logs", whole[k][1], state, min(5, 598 - k))
        assert [d for d, _ in rest] == [d for d, _ in whole[k + 1 : k + 6]]
    source = Sessions(str(tmp_path / "logs"))
    source.keep(state)
    source.close()
    source.commit(whole[-1][1])
    [left] = state.iterdir()
    assert left.name == f"places-{whole[-1][1].at['base']}.json"
    left.unlink()
    with pytest.raises(SourceError, match="Restore it"):
        _some(tmp_path / "logs", whole[-1][1], state, 1)


def test_a_spooled_follower_loses_and_doubles_nothing_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "s.jsonl"
    said: list[str] = []
    cursor: Cursor | None = None
    parent = None
    for i in range(6):
        append(path, line(f"{i}", parent, "user", f"word {i}"))
        parent = f"{i}"
        inner = Sessions(str(tmp_path / "logs"), SessionsSettings(poll_s=0.01, settle_s=0.0))
        with closing(Spooled(inner, Spool(tmp_path / "spool"))) as source:
            document, cursor = next(iter(source.read(cursor)))
            said.append(document.text.decode())
    assert said == [f"### user\nword {i}\n\n" for i in range(6)]


def _graded_lines(items: list[tuple[Document, Cursor]]) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    for document, _ in items:
        at = 0
        for start, stop in [*document.context, (len(document.text), 0)]:
            found.update(part for part in document.text[at:start].split(b"\n") if part.strip())
            at = stop
    return found


def _write_slowly(files: dict[Path, bytes], seed: int) -> None:
    """Append to several files in turn, cut anywhere."""
    rng = random.Random(seed)
    places = dict.fromkeys(files, 0)
    while places:
        path = rng.choice(sorted(places)[:3])
        stop = places[path] + rng.randint(1, 100_000)
        append(path, files[path][places[path] : stop])
        places[path] = stop
        if stop >= len(files[path]):
            del places[path]
        time.sleep(0.002)


def test_real_sessions_written_while_followed_over_restarts_give_what_a_single_pass_gives(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shared("sessions") / "claude-code-log" / "real_projects" / "-Users-dain-workspace-JSSoundRecorder"
    files = {tmp_path / "logs" / path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.jsonl")}
    expected = _graded_lines(list(Sessions(str(folder), SessionsSettings(follow=False)).read(None)))
    assert expected.total() > 900
    (tmp_path / "logs").mkdir()
    writer = threading.Thread(target=_write_slowly, args=(files, 1))
    writer.start()
    items: list[tuple[Document, Cursor]] = []
    for _ in range(200):
        cursor, before = items[-1][1] if items else None, len(items)
        was_alive = writer.is_alive()
        source = Sessions(str(tmp_path / "logs"), SessionsSettings(poll_s=0.01, settle_s=0.1))
        source.keep(tmp_path / "state")
        timer = threading.Timer(0.1 if was_alive else 0.7, source.close)
        timer.start()
        items += source.read(cursor)
        timer.join()
        if not was_alive and len(items) == before:
            break
    writer.join()
    assert _graded_lines(items) == expected


def test_a_blocked_read_ends_when_closed(tmp_path: Path) -> None:
    source = Sessions(str(tmp_path), SessionsSettings(poll_s=3600.0))
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (list(source.read(None)), ended.set()), daemon=True)
    thread.start()
    assert not ended.wait(0.2)
    source.close()
    assert ended.wait(10)


@pytest.mark.parametrize("at", [{}, {"path": "x"}, {"target": "x", "base": None, "files": {}}])
def test_a_foreign_cursor_is_refused(tmp_path: Path, at: dict[str, Any]) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor("sessions", at)):
        with pytest.raises(SourceError, match="does not belong"):
            _some(tmp_path, cursor, None, 1)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    live, single = Sessions(str(tmp_path)), Sessions(str(tmp_path), SessionsSettings(follow=False))
    assert (live.bounded, live.replayable) == (False, False)
    assert (single.bounded, single.replayable) == (True, True)
    assert "never ends" in live.describe()
    assert "cannot be read again" not in single.describe()
    assert "NOT REDACTED" in Sessions(str(tmp_path), SessionsSettings(redact=False)).describe()
