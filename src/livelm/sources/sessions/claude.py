"""Claude Code logs: one JSON object a line, one block of an answer a line, the tree in `uuid` and `parentUuid`.

Types that say nothing a conversation shows (progress, snapshots, permission modes, …) keep their place in the tree
only, and so does whatever type comes new; `isMeta` lines and `<system-reminder>` blocks are notes of the program.
"""

from typing import Any

from livelm.sources.sessions.blocks import call, flat, split_reminders
from livelm.sources.sessions.conversation import Entry, Part, Role

KNOWN = {
    *("user", "assistant", "system", "summary", "result", "progress", "attachment", "file-history-snapshot"),
    *("queue-operation", "last-prompt", "permission-mode", "started"),
}
"""Types that make a file known as such a log even without a `uuid`."""


def parse(value: dict[str, Any], line: bytes) -> list[Entry] | None:
    """The entries of a line; None when it is no line of such a log."""
    kind = value.get("type")
    if not isinstance(kind, str) or "payload" in value:
        return None
    uuid, session = value.get("uuid"), value.get("sessionId")
    message = value.get("message")
    if not (isinstance(uuid, str) and (isinstance(session, str) or isinstance(message, dict))):
        return [] if kind in KNOWN and ("sessionId" in value or _is_bare(value)) else None
    parent, at = value.get("parentUuid"), value.get("timestamp")
    message = message if isinstance(message, dict) else {}
    answer = message.get("id") if kind == "assistant" else None
    role: Role = "assistant" if kind == "assistant" else "user" if kind == "user" else "system"
    note = value.get("isMeta") is True or value.get("isCompactSummary") is True
    return [
        Entry(
            role=role,
            parts=tuple(_parts(message.get("content"), note=note)) if kind in ("user", "assistant") else (),
            uuid=uuid,
            parent=parent if isinstance(parent, str) else None,
            tree=True,
            answer=answer if isinstance(answer, str) else None,
            at=at if isinstance(at, str) else None,
            begins=value.get("subtype") == "compact_boundary",
        )
    ]


def _is_bare(value: dict[str, Any]) -> bool:
    return any(name in value for name in ("leafUuid", "snapshot", "agentId", "summary"))


def _parts(content: Any, *, note: bool) -> list[Part]:
    parts: list[Part] = []
    for block in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        if not isinstance(block, dict):
            continue
        match block:
            case {"type": "text", "text": str(text)}:
                parts += [Part("reminder", text)] if note else split_reminders(text)
            case {"type": "thinking", "thinking": str(text)}:
                parts.append(Part("thinking", text))
            case {"type": "tool_use", "name": str(name)}:
                parts.append(Part("call", call(name, block.get("input"))))
            case {"type": "tool_result"}:
                parts.append(Part("result", flat(block.get("content"))))
            case {"type": "image"}:
                parts.append(Part("text", "[image]"))
    return [part for part in parts if part.text.strip()]
