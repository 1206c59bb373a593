"""Blocks of a message as text: tool calls, lists of blocks, notes injected by the program."""

import json
import re
from typing import Any

from livelm.sources.sessions.conversation import Part

REMINDER = re.compile(r"<system-reminder>.*?(?:</system-reminder>|\Z)\n?", re.DOTALL)


def split_reminders(text: str) -> list[Part]:
    """Text with the notes that the program put into it as parts of their own."""
    parts, at = [], 0
    for match in REMINDER.finditer(text):
        parts += [Part("text", text[at : match.start()]), Part("reminder", match[0])]
        at = match.end()
    return [*parts, Part("text", text[at:])]


def call(name: str, arguments: Any) -> str:
    """A tool call as text: the name, then an argument a line; strings stand as they are, the rest as JSON."""
    if not isinstance(arguments, dict):
        return (
            name
            if arguments in (None, "")
            else f"{name}\n{arguments if isinstance(arguments, str) else _json(arguments)}"
        )
    return "\n".join([name, *(f"{k}: {v if isinstance(v, str) else _json(v)}" for k, v in arguments.items())])


def flat(content: Any) -> str:
    """The text of a string or of a list of blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else _json(content)
    texts = []
    for block in content:
        match block:
            case str(text) | {"text": str(text)}:
                texts.append(text)
            case {"type": ("image" | "image_url" | "input_image")}:
                texts.append("[image]")
    return "\n".join(texts)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def unpacked(arguments: Any) -> Any:
    """Arguments arrive as a string of JSON; one that is none stays what it is."""
    if isinstance(arguments, str) and arguments[:1] in ("{", "["):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments
