"""Conversations as plain rows: OpenAI `messages`, ShareGPT `conversations`, single messages, rows of ccsniff."""

from datetime import UTC, datetime
from typing import Any

from livelm.sources.sessions.blocks import call, flat, split_reminders, unpacked
from livelm.sources.sessions.conversation import Entry, Part, Role, identity

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "tool", "function", "observation", "tool_response", "tool_result"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bing", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer", "result"), "system"),
}
RESULTS = ("tool", "function", "observation", "tool_response", "tool_result")
CALLS = ("function_call", "tool_call")


def parse_rows(value: dict[str, Any], line: bytes) -> list[Entry] | None:
    """A whole conversation in a line (`messages` or `conversations`), or one message; None when it is neither."""
    for name in ("messages", "conversations"):
        if isinstance(value.get(name), list):
            return _conversation(value[name])
    if isinstance(value.get("role"), str) and ("content" in value or "tool_calls" in value) and "sid" not in value:
        return [Entry(role=_role(value["role"]), parts=_parts(value))]
    return None


def parse_ccsniff(value: dict[str, Any], line: bytes) -> list[Entry] | None:
    """A row of `ccsniff --json --full` or `--rollup`; None when it is none."""
    role, text = value.get("role"), value.get("text")
    if not (isinstance(value.get("sid"), str) and isinstance(role, str) and isinstance(text, str) and "ts" in value):
        return None
    kind, tool = value.get("type"), value.get("tool")
    if kind == "tool_use":
        parts = [Part("call", f"{tool or 'tool'}\n{text}" if text else str(tool or "tool"))]
    elif kind == "tool_result" or role in RESULTS:
        parts = [Part("result", text)]
    elif kind == "thinking":
        parts = [Part("thinking", text)]
    else:
        parts = [Part("reminder", text)] if value.get("isMeta") else split_reminders(text)
    shown = () if _role(role) == "system" else tuple(part for part in parts if part.text.strip())
    uuid = f"{identity(line.strip()):016x}"  # rows have no name, but a copy of one is a copy of every byte
    return [Entry(role=_role(role), parts=shown, uuid=uuid, thread=value["sid"], at=_time(value))]


def _conversation(messages: list[Any]) -> list[Entry]:
    found = [m for m in messages if isinstance(m, dict) and ("role" in m or "from" in m)]
    last = len(found) - 1
    return [
        Entry(role=_role(m.get("role", m.get("from"))), parts=_parts(m), begins=not i, ends=i == last)
        for i, m in enumerate(found)
    ]


def _role(name: Any) -> Role:
    return ROLES.get(str(name).lower(), "system")


def _parts(message: dict[str, Any]) -> tuple[Part, ...]:
    name = str(message.get("role", message.get("from"))).lower()
    text = flat(message.get("content", message.get("value")))
    if name in RESULTS:
        parts = [Part("result", text)]
    elif name in CALLS:
        parts = [Part("call", text)]
    else:
        parts = split_reminders(text)
    thought = message.get("reasoning_content", message.get("thinking"))
    if isinstance(thought, str):
        parts.insert(0, Part("thinking", thought))
    calls = message.get("tool_calls")
    for item in calls if isinstance(calls, list) else []:
        function = item.get("function", item) if isinstance(item, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parts.append(Part("call", call(function["name"], unpacked(function.get("arguments")))))
    return tuple(part for part in parts if part.text.strip())


def _time(row: dict[str, Any]) -> str | None:
    if isinstance(row.get("iso"), str):
        return row["iso"]
    try:
        return datetime.fromtimestamp(float(row["ts"]) / 1000, UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
