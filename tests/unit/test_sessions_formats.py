"""Formats and the tree: what becomes text, what of it is learned, and that no line counts twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from livelm.errors import SourceError
from livelm.sources.sessions import Sessions, SessionsSettings
from livelm.types import Cursor, Document


def line(uuid: str, parent: str | None, role: str, content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": role, "content": content, "id": more.pop("answer", None)}
    return {"type": role, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "message": message, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path, cursor: Cursor | None = None, **settings: Any) -> list[tuple[Document, Cursor]]:
    return list(Sessions(str(path), SessionsSettings(follow=False, **settings)).read(cursor))


def texts(path: Path, **settings: Any) -> list[str]:
    """The text of each document."""
    whole: dict[str, str] = {}
    for document, _ in read(path, **settings):
        whole[document.id] = whole.get(document.id, "") + document.text.decode()
    return list(whole.values())


def graded(path: Path, **settings: Any) -> str:
    found = b""
    for document, _ in read(path, **settings):
        at = 0
        for start, stop in [*document.context, (len(document.text), 0)]:
            found += document.text[at:start]
            at = stop
    return found.decode()


def test_the_rendered_form_is_the_documented_one_and_only_the_assistant_is_graded(tmp_path: Path) -> None:
    use = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls\npwd", "n": 3}}
    result = [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "out"}]}]
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "hi\n<system-reminder>psst</system-reminder>"),
            line("2", "1", "assistant", [{"type": "thinking", "thinking": "hm"}], answer="a"),
            line("3", "2", "assistant", [{"type": "text", "text": "hello"}], answer="a"),
            line("4", "3", "assistant", [use], answer="a"),
            line("5", "4", "user", result),
            line("6", "5", "user", "note", isMeta=True),
        ],
    )
    assert texts(path) == [
        "### user\nhi\n\n### reminder\n<system-reminder>psst</system-reminder>\n\n### assistant thinking\nhm\n\n"
        "### assistant\nhello\n\n### tool call\nBash\ncommand: ls\npwd\nn: 3\n\n### tool result\nout\n\n"
        "### reminder\nnote\n\n"
    ]
    assert graded(path) == "hello\n\nBash\ncommand: ls\npwd\nn: 3\n\n"
    assert graded(path, thinking="graded") == "hm\n\nhello\n\nBash\ncommand: ls\npwd\nn: 3\n\n"
    assert "thinking" not in texts(path, thinking="omit")[0]
    assert graded(path, grade="all") == texts(path)[0]


def test_blocks_of_one_answer_are_one_message_even_over_repeats_and_growing_snapshots(tmp_path: Path) -> None:
    text = [{"type": "text", "text": t} for t in ("He", "Hello", "more")]
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "hi"),
            line("2", "1", "assistant", [text[0]], answer="a"),
            line("3", "2", "assistant", [text[1]], answer="a"),
            line("3", "2", "assistant", [text[1]], answer="a"),
            line("4", "3", "assistant", [text[2]], answer="a"),
            line("5", "4", "user", "ok"),
        ],
    )
    pieces = [document.text for document, _ in read(path)]
    assert pieces[1] == b"### assistant\nHello\n\n### assistant\nmore\n\n"


def test_a_rewind_begins_another_document_with_its_common_past_as_context(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "question"),
            line("2", "1", "assistant", "first answer", answer="a"),
            line("3", "2", "user", "wrong way"),
            line("4", "3", "assistant", "lost", answer="b"),
            line("5", "2", "user", "right way"),
            line("6", "5", "assistant", "found", answer="c"),
        ],
    )
    one, two = texts(path)
    assert one.split("\n\n")[-2] == "### assistant\nlost"
    assert two == "### user\nquestion\n\n### assistant\nfirst answer\n\n### user\nright way\n\n### assistant\nfound\n\n"
    assert graded(path) == "first answer\n\nlost\n\nfound\n\n"
    assert texts(path, recall_bytes=0)[1].startswith("### user\nright way")


def test_results_of_parallel_calls_and_lines_without_text_continue_the_path(tmp_path: Path) -> None:
    uses = [{"type": "tool_use", "id": f"t{i}", "name": "Read", "input": {"i": i}} for i in range(2)]
    results = [[{"type": "tool_result", "tool_use_id": f"t{i}", "content": f"r{i}"}] for i in range(2)]
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "go"),
            line("2", "1", "assistant", [uses[0]], answer="a"),
            line("3", "2", "assistant", [uses[1]], answer="a"),
            line("4", "2", "user", results[0]),
            line("5", "3", "user", results[1]),
            {"type": "system", "uuid": "6", "parentUuid": "5", "sessionId": "s", "content": "hook"},
            {"type": "a-new-type", "uuid": "7", "parentUuid": "6", "sessionId": "s"},
            line("8", "7", "assistant", "done", answer="b"),
        ],
    )
    assert len(texts(path)) == 1


def test_a_compaction_begins_a_document_that_knows_nothing_of_the_past(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "long ago"),
            line("2", "1", "assistant", "yes", answer="a"),
            {"type": "system", "subtype": "compact_boundary", "uuid": "3", "parentUuid": None, "sessionId": "s"},
            line("4", "3", "user", "This session continues …", isCompactSummary=True),
            line("5", "4", "assistant", "going on", answer="b"),
        ],
    )
    assert texts(path)[1] == "### reminder\nThis session continues …\n\n### assistant\ngoing on\n\n"


def test_a_resumed_session_counts_copied_lines_once_and_remembers_them(tmp_path: Path) -> None:
    day = "2025-01-01T00:00:00Z"
    old = [line("1", None, "user", "hi", timestamp=day), line("2", "1", "assistant", "hello", answer="a")]
    write(tmp_path / "a.jsonl", old)
    copied = [{"type": "queue-operation", "timestamp": "2025-01-02T00:00:00Z", "sessionId": "t"}, *old]
    write(tmp_path / "b.jsonl", [*copied, line("3", "2", "user", "more"), line("4", "3", "assistant", "x", answer="b")])
    assert texts(tmp_path)[1] == "### user\nhi\n\n### assistant\nhello\n\n### user\nmore\n\n### assistant\nx\n\n"
    assert graded(tmp_path) == "hello\n\nx\n\n"


def test_sidechains_in_the_same_file_are_documents_of_their_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        [
            line("1", None, "user", "go"),
            line("2", "1", "assistant", "calling", answer="a"),
            line("s1", None, "user", "task", isSidechain=True),
            line("s2", "s1", "assistant", "working", answer="sa", isSidechain=True),
            line("3", "2", "user", "result"),
            line("4", "3", "assistant", "thanks", answer="b"),
        ],
    )
    main, side, again = texts(path)
    assert side == "### user\ntask\n\n### assistant\nworking\n\n"
    assert again == main + "### user\nresult\n\n### assistant\nthanks\n\n"
    assert graded(path) == "calling\n\nworking\n\nthanks\n\n"


def test_a_codex_rollout_is_read_from_its_response_items_alone(tmp_path: Path) -> None:
    def item(kind: str, **values: Any) -> dict[str, Any]:
        return {"timestamp": "2025-01-01T00:00:00Z", "type": "response_item", "payload": {"type": kind, **values}}

    rows = [
        {"timestamp": "2025-01-01T00:00:00Z", "type": "session_meta", "payload": {"id": "x", "cwd": "/"}},
        item("message", role="developer", content=[{"type": "input_text", "text": "rules"}]),
        item("message", role="user", content=[{"type": "input_text", "text": "hi"}]),
        {
            "timestamp": "2025-01-01T00:00:00Z",
            "type": "event_msg",
            "payload": {"type": "user_message", "message": "hi"},
        },
        item("reasoning", summary=[{"type": "summary_text", "text": "hm"}]),
        item("function_call", name="shell", arguments='{"command": ["ls"]}', call_id="c"),
        item("function_call_output", call_id="c", output='{"output": "a.py", "metadata": {}}'),
        item("message", role="assistant", content=[{"type": "output_text", "text": "done"}]),
        {"timestamp": "2025-01-01T00:00:01Z", "type": "compacted", "payload": {"message": "so far"}},
        item("message", role="assistant", content=[{"type": "output_text", "text": "new"}]),
    ]
    path = write(tmp_path / "2025" / "rollout-1.jsonl", rows)
    assert texts(path) == [
        '### system\nrules\n\n### user\nhi\n\n### assistant thinking\nhm\n\n### tool call\nshell\ncommand: ["ls"]\n\n'
        "### tool result\na.py\n\n### assistant\ndone\n\n",
        "### reminder\nso far\n\n### assistant\nnew\n\n",
    ]
    write(tmp_path / "archived" / "rollout-1.jsonl", rows)
    assert graded(tmp_path) == graded(path)
    bare = [row["payload"] for row in rows if row["type"] == "response_item"]
    assert graded(write(tmp_path / "old.jsonl", [{"id": "x", "instructions": None}, *bare])) == graded(path)


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {
                    "role": "assistant",
                    "content": "yes",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "b"}'}}],
                },
                {"role": "tool", "content": "r", "tool_call_id": "1"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "yes"},
                {"from": "function_call", "value": "f\na: b"},
                {"from": "observation", "value": "r"},
            ]
        },
    ],
)
def test_a_row_is_a_whole_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "m.jsonl", [row, row])
    document, again = [d for d, _ in read(path)]
    assert document.text == b"### user\nhi\n\n### assistant\nyes\n\n### tool call\nf\na: b\n\n### tool result\nr\n\n"
    assert document.last
    assert again.last
    assert (document.text, document.id) != (again.text, again.id)
    assert graded(path) == "yes\n\nf\na: b\n\n" * 2


def test_rows_of_ccsniff_are_told_apart_by_session(tmp_path: Path) -> None:
    def row(sid: str, role: str, kind: str, text: str, **more: Any) -> dict[str, Any]:
        return {
            "ts": len(text),
            "sid": sid,
            "role": role,
            "type": kind,
            "text": text,
            "tool": None,
            "isMeta": False,
            **more,
        }

    rows = [
        row("a", "user", "text", "hi"),
        row("a", "assistant", "tool_use", "ls", tool="Bash"),
        row("a", "tool_result", "tool_result", "out"),
        row("b", "user", "text", "other"),
        row("b", "assistant", "text", "answer"),
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    assert texts(path) == [
        "### user\nhi\n\n### tool call\nBash\nls\n\n### tool result\nout\n\n",
        "### user\nother\n\n### assistant\nanswer\n\n",
    ]
    assert graded(path) == "Bash\nls\n\nanswer\n\n"


def test_malformed_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    good = line("1", None, "user", "hi")
    path = write(tmp_path / "s.jsonl", ["{broken", "[1]", '{"silly": 1}', "", good, '{"type": "user", "uuid": "2'])
    source = Sessions(str(path), SessionsSettings(follow=False))
    assert b"".join(d.text for d, _ in source.read(None)) == b"### user\nhi\n\n"
    assert source.observe()["drops"] == {"not JSON": 2, "not an object": 1, "of no known format": 1}


def test_a_line_over_the_limit_is_skipped_and_the_middle_of_a_long_result_left_out(tmp_path: Path) -> None:
    rows = [
        line("1", None, "user", "x" * 5000),
        line("2", "1", "user", [{"type": "tool_result", "content": "ü" * 500}]),
    ]
    path = write(tmp_path / "s.jsonl", rows)
    source = Sessions(str(path), SessionsSettings(follow=False, line_bytes=4096, result_bytes=101))
    text = b"".join(d.text for d, _ in source.read(None)).decode()
    assert "bytes left out]" in text
    assert "x" not in text
    assert len(text) < 120
    assert source.observe()["drops"] == {"line over line_bytes": 1}


@pytest.mark.parametrize("piece_bytes", [64, 1000, 1 << 16])
def test_resuming_after_any_piece_yields_the_same_rest(tmp_path: Path, piece_bytes: int) -> None:
    write(tmp_path / "a" / "m.jsonl", [{"messages": [{"role": "user", "content": "ä" * 90}]}, {"messages": []}] * 2)
    rows = [line("1", None, "user", "q"), line("2", "1", "assistant", "wörd " * 60, answer="a")]
    rows += [
        line("3", "2", "user", "no"),
        line("4", "2", "user", "yes"),
        line("5", "4", "assistant", "end", answer="b"),
    ]
    write(tmp_path / "b" / "s.jsonl", rows)
    write(tmp_path / "c" / "t.jsonl", [*rows, line("6", "5", "user", "resumed")])
    whole = read(tmp_path, piece_bytes=piece_bytes)
    assert len(whole) >= 10
    assert "".join(d.text.decode() for d, _ in whole).count("resumed") == 1
    for k, (_, cursor) in enumerate(whole):
        again = Cursor(cursor.source, json.loads(json.dumps(cursor.at)))
        assert read(tmp_path, again, piece_bytes=piece_bytes) == whole[k + 1 :], k


def test_a_cursor_in_a_single_pass_stays_small(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"{i}.jsonl", [line(f"{i}", None, "user", "hi")])
    assert max(len(json.dumps(cursor.at)) for _, cursor in read(tmp_path)) < 400


def test_no_folder_name_reaches_documents_cursors_or_descriptions(tmp_path: Path) -> None:
    write(tmp_path / "-Users-jane-work" / "s.jsonl", [line("1", None, "user", "hi")])
    source = Sessions(str(tmp_path), SessionsSettings(follow=False))
    assert "jane" not in repr(list(source.read(None)))


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no sessions at"):
        Sessions(str(tmp_path / "missing"))
    with pytest.raises(SourceError, match="empty stream"):
        read(tmp_path)


def test_every_real_file_parses_and_its_assistant_texts_come_once(shared: Callable[[str], Path]) -> None:
    folder = shared("sessions")
    files = sorted(folder.rglob("*.jsonl"))
    assert len(files) == 194
    source = Sessions(str(folder), SessionsSettings(follow=False))
    pieces = [document for document, _ in source.read(None)]
    seen = source.observe()
    assert seen["n_files"] == 194
    drops = seen["drops"]
    assert isinstance(drops, dict)
    assert {k: v for k, v in drops.items() if k != "copy of a line"} == {"not an object": 3, "of no known format": 1}
    context = {d.id: 0 for d in pieces}
    for d in pieces:
        assert all(0 <= a < b <= len(d.text) for a, b in d.context)
        context[d.id] += len(d.text) - sum(b - a for a, b in d.context)
    assert sum(context.values()) > 700_000


def test_real_sessions_hold_every_answer_that_a_plain_reading_finds(shared: Callable[[str], Path]) -> None:
    folder = shared("sessions") / "claude-code-log" / "real_projects"
    wanted: set[str] = set()
    for path in folder.rglob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            if row.get("type") == "assistant":
                wanted |= {b["text"].strip() for b in row["message"]["content"] if b.get("type") == "text"}
    text = graded(folder, redact=False, part_bytes=1 << 24)
    missing = [w for w in wanted if w not in text]
    assert not missing


def test_half_a_surrogate_pair_is_read_and_a_bottomless_value_is_skipped(tmp_path: Path) -> None:
    use = [{"type": "tool_use", "name": "f", "input": {"x": json.loads("[" * 900 + "]" * 900)}}]
    rows = [line("1", None, "user", "\ud83d cut"), line("2", "1", "assistant", use, answer="a"), "[" * 100_000]
    path = write(tmp_path / "s.jsonl", rows)
    assert texts(path)[0].startswith("### user\n? cut\n\n")


def test_hostile_json_is_never_fatal(shared: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    good = json.dumps(line("1", None, "user", "hi")).encode()
    with ZipFile(shared("hostile") / "json-malformed" / "JSONTestSuite.zip") as suite, path.open("wb") as file:
        for name in sorted(name for name in suite.namelist() if name.endswith(".json")):
            file.write(suite.read(name).replace(b"\n", b" ") + b"\n")
        file.write(b"\n" + good + b"\n")
    source = Sessions(str(path), SessionsSettings(follow=False))
    assert b"".join(d.text for d, _ in source.read(None)).endswith(b"### user\nhi\n\n")
    drops = source.observe()["drops"]
    assert isinstance(drops, dict)
    assert drops["not JSON"] > 100
