"""OpenAI Codex rollouts: `response_item` lines in an envelope, or, in old files, without one.

Only `response_item` is read: `event_msg` shows the same text again for the screen.
"""

from typing import Any

from livelm.sources.sessions.blocks import call, flat, unpacked
from livelm.sources.sessions.conversation import Entry, Part, Role, identity

ENVELOPES = ("session_meta", "turn_context", "response_item", "event_msg", "compacted", "world_state")
BARE = ("message", "reasoning", "function_call", "function_call_output")
CALLS = ("function_call", "custom_tool_call", "local_shell_call", "web_search_call", "tool_search_call")
ROLES: dict[str, Role] = {"assistant": "assistant", "user": "user"}
RESULTS = ("function_call_output", "custom_tool_call_output", "tool_search_output")


def parse(value: dict[str, Any], line: bytes) -> list[Entry] | None:
    """The entries of a line; None when it is no line of a rollout."""
    kind, item, at = value.get("type"), value.get("payload"), value.get("timestamp")
    if kind in ENVELOPES and isinstance(item, dict):
        if kind == "compacted":
            text = item.get("message")
            parts = (Part("reminder", text),) if isinstance(text, str) and text.strip() else ()
            return [_entry("user", parts, line, at, begins=True)]
        return _item(item, line, at) if kind == "response_item" else []
    if value.get("record_type") == "state" or ("instructions" in value and "id" in value and kind is None):
        return []
    if kind in BARE and "uuid" not in value and "sessionId" not in value:
        return _item(value, line, at)
    return None


def _item(item: dict[str, Any], line: bytes, at: Any) -> list[Entry]:
    kind = item.get("type")
    role: Role = "assistant"
    parts: list[Part] = []
    if kind == "message":
        role = ROLES.get(str(item.get("role")), "system")
        parts.append(Part("text", flat(item.get("content"))))
    elif kind == "reasoning":
        parts.append(Part("thinking", "\n".join(filter(None, map(flat, (item.get("summary"), item.get("content")))))))
    elif kind in CALLS:
        arguments = next((item[k] for k in ("arguments", "input", "action") if item.get(k) is not None), None)
        parts.append(Part("call", call(str(item.get("name") or kind), unpacked(arguments))))
    elif kind in RESULTS:
        role = "user"
        output = unpacked(item.get("output"))
        inner = output.get("output", output.get("content")) if isinstance(output, dict) else output
        parts.append(Part("result", flat(output if inner is None else inner)))
    return [_entry(role, tuple(part for part in parts if part.text.strip()), line, at)]


def _entry(role: Role, parts: tuple[Part, ...], line: bytes, at: Any, *, begins: bool = False) -> Entry:
    # a line has no name, but a resumed or archived rollout repeats it byte for byte, time included
    uuid = f"{identity(line.strip()):016x}" if isinstance(at, str) else None
    return Entry(role=role, parts=parts, uuid=uuid, at=at if isinstance(at, str) else None, begins=begins)
