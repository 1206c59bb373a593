"""Messages as plain text, and which of its bytes are read but not learned.

The form: each part is a header line `### NAME`, its text, and an empty line. The names are `user`, `assistant`,
`system`, `assistant thinking`, `tool call` (first line: the tool; then one `argument: value` each), `tool result` and
`reminder` (notes that the program put in). With `grade = "assistant"` only the texts and tool calls of the assistant,
with the empty line that ends them, are graded and learned; headers and everything else are context.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from livelm.sources.sessions.conversation import Kind, Part, Role
from livelm.sources.sessions.redact import Secret, find_secrets
from livelm.sources.sessions.settings import SessionsSettings

NAMES: dict[Kind, str] = {
    "thinking": "assistant thinking",
    "call": "tool call",
    "result": "tool result",
    "reminder": "reminder",
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the byte ranges of it that are context."""

    text: bytes
    context: tuple[tuple[int, int], ...]

    def cut(self, start: int, stop: int) -> "Rendered":
        """The bytes [start, stop)."""
        ranges = ((max(a, start) - start, min(b, stop) - start) for a, b in self.context)
        return Rendered(self.text[start:stop], tuple((a, b) for a, b in ranges if a < b))


def render(parts: Sequence[tuple[Role, Part]], settings: SessionsSettings, found: Counter[str]) -> Rendered:
    """Render what was said together; secrets are looked for in all of it at once, and counted in `found` by rule."""
    shown: list[tuple[Role, Part]] = [
        (role, part) for role, part in parts if part.kind != "thinking" or settings.thinking != "omit"
    ]
    bodies = [part.text.strip("\n") for _, part in shown]
    if settings.redact:
        bodies = _redacted(bodies, found)
    pieces: list[bytes] = []
    context: list[tuple[int, int]] = []
    size = 0
    for (role, part), body in zip(shown, bodies, strict=True):
        limit = settings.result_bytes if part.kind == "result" else settings.part_bytes
        for text, graded in ((_header(role, part), False), (_shortened(body, limit), _is_graded(role, part, settings))):
            stop = size + len(text)
            if not graded and settings.grade == "assistant":
                joins = bool(context) and context[-1][1] == size
                context[-1 if joins else len(context) :] = [(context[-1][0] if joins else size, stop)]
            pieces.append(text)
            size = stop
    return Rendered(b"".join(pieces), tuple(context))


def cuts(text: bytes, limit: int) -> list[int]:
    """Where to cut a text into pieces of at most `limit` bytes and no torn character; the last is its end."""
    places, at = [], 0
    while len(text) - at > limit:
        at += limit
        while at > 0 and text[at] & 0xC0 == 0x80:
            at -= 1
        places.append(at)
    return [*places, len(text)]


def _header(role: Role, part: Part) -> bytes:
    return f"### {NAMES.get(part.kind, role)}\n".encode()


def _is_graded(role: Role, part: Part, settings: SessionsSettings) -> bool:
    if part.kind == "thinking":
        return settings.thinking == "graded"
    return role == "assistant" and part.kind in ("text", "call")


def _redacted(bodies: list[str], found: Counter[str]) -> list[str]:
    """Neighbours are searched as one text; a secret that goes on in the next body has its placeholder in the first."""
    text = "\n".join(bodies)
    secrets = find_secrets(text)
    if not secrets:
        return bodies
    found.update(secret.rule for secret in secrets)
    redacted, start = [], 0
    for body in bodies:
        redacted.append(_within(text, secrets, start, start + len(body)))
        start += len(body) + 1
    return redacted


def _within(text: str, secrets: Sequence[Secret], start: int, stop: int) -> str:
    parts, at = [], start
    for secret in secrets:
        if secret.stop > start and secret.start < stop:
            parts.append(text[at : max(at, secret.start)])
            if secret.start >= start:
                parts.append(f"[redacted:{secret.rule}]")
            at = min(stop, secret.stop)
    return "".join([*parts, text[at:stop]])


def _shortened(body: str, limit: int) -> bytes:
    """The body with its ending; of one that is too long, the first and the last part."""
    text = body.encode("utf-8", "replace")
    if len(text) > limit:
        head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
        left_out = f"\n[{len(text) - len(head) - len(tail)} bytes left out]\n"
        text = b"".join([_whole(head), left_out.encode(), _whole(tail)])
    return text + b"\n\n"


def _whole(text: bytes) -> bytes:
    return text.decode("utf-8", "ignore").encode()
