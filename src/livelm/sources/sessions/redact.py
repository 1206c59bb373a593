"""Find secrets in the text of one message, also where line breaks, escapes or quotes cut them into parts.

The text is searched as it stands and once more *folded*: without what may stand between two parts of a token. Only
tokens (see `rules`) are looked for in the folded text; there the first word of the next line may seem to belong to a
token, so a last part that looks like a word is left out where the token is complete without it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from livelm.sources.sessions.rules import BODIES, IDENTITIES, PHRASES, TOKENS, Rule

SPAN = 320
"""How far after its trigger a match that begins before it is looked for."""
LONG = 64
"""Characters of a line in a key file."""
MARGIN = r"[ \t]*(?:\d{1,6}(?:→|\t)|[>|#+][ \t])?[ \t]*"
INNER = r"[\w./+~=-]"
JOINT = re.compile(  # begins with a set of characters, which `re` scans for fast
    r"[\\\r\n\"'\u200b-\u200d\u00ad\ufeff](?:"
    rf"(?<=\n){MARGIN}|(?<=\r)\n{MARGIN}"  # a line break, and the margin of the next line
    rf"|(?<=\\)(?:\\{{0,3}}u(?P<code>00[2-7][0-9a-fA-F])"  # an ASCII character as a JSON escape
    rf"|\\{{0,3}}(?:r\\{{1,4}})?n|\r?\n{MARGIN}|(?=[/_.-]))"  # a line break as an escape, or escaped; `\/`
    rf"|(?<={INNER}\")[ \t]*[+.]?\s*\"(?={INNER})|(?<={INNER}')[ \t]*[+.]?\s*'(?={INNER})"  # two literals side by side
    r"|(?<=[\u200b-\u200d\u00ad\ufeff]))"  # characters of no width
)
ROUGH = b" \t\r\n\\\"'+.>|#"
"""Bytes that may stand in joints: without them all, a text has every trigger that its folded form has, and more."""
NUMBERED = re.compile(r"\n *\d{1,6}[→\t]")
ESCAPE = re.compile(r"(?:\\[nrtbf]|\\u[0-9a-fA-F]{4}|%[0-9A-Fa-f]{2})$")
TOKEN_TRIGGERS = [(trigger, rule) for rule in TOKENS for trigger in rule.triggers]
PHRASE_TRIGGERS = [(trigger, rule) for rule in (*PHRASES, *IDENTITIES) for trigger in rule.triggers]
BARE_TRIGGERS = [trigger.encode().translate(None, ROUGH) for trigger, _ in TOKEN_TRIGGERS]
WIDTHLESS = "\u200b\u200c\u200d\u00ad\ufeff"
WORD = re.compile(r"[A-Z]?[a-z]{1,15}|[A-Z]{2,15}|[A-Za-z_]+(?=[=:(])|\d{1,3}")


@dataclass(frozen=True, slots=True)
class Secret:
    """Where one stands: text[start:stop], and the rule that found it."""

    start: int
    stop: int
    rule: str


def find_secrets(text: str) -> list[Secret]:
    """Every secret in order; none touches another."""
    lower = text.lower()
    if len(lower) != len(text):  # some capitals become two characters, and places must stay the same
        lower = re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), text)
    found: list[Secret] = []
    for trigger, rule in TOKEN_TRIGGERS:
        if trigger in text:
            found += [s for s in _matches(trigger, rule, text, text) if not _is_inside(rule, text, s.start)]
    for trigger, rule in PHRASE_TRIGGERS:
        if trigger in lower:
            found += _matches(trigger, rule, lower, text)
    if any(len(word) >= LONG for word in text.split()):
        bodies = BODIES.pattern.finditer(lower)
        found += [Secret(*m.span(), BODIES.name) for m in bodies if BODIES.genuine(text[m.start() : m.end()])]
    return _united(found + _split(text))


def replace(text: str, secrets: Sequence[Secret]) -> str:
    """The text with each secret as `[redacted:RULE]`."""
    parts, at = [], 0
    for secret in secrets:
        parts += [text[at : secret.start], f"[redacted:{secret.rule}]"]
        at = secret.stop
    return "".join([*parts, text[at:]])


def _find(trigger: str, rule: Rule, text: str) -> Iterator[re.Match[str]]:
    """Every match of a rule that has this trigger."""
    at, done = text.find(trigger), 0
    while at >= 0:
        if rule.reach:
            match = rule.pattern.search(text, max(done, at - rule.reach), at + SPAN)
        else:
            match = rule.pattern.match(text, at)
        if match is not None and match.start() <= at < match.end():
            yield match
            done = match.end()
        at = text.find(trigger, max(done, at + 1))


def _matches(trigger: str, rule: Rule, text: str, original: str) -> list[Secret]:
    """Where a rule finds a secret in `text`, which is `original` or its lower case."""
    spans = (match.span(match.lastindex or 0) for match in _find(trigger, rule, text))
    return [Secret(start, stop, rule.name) for start, stop in spans if rule.genuine(original[start:stop])]


def _is_inside(rule: Rule, text: str, start: int) -> bool:
    """Whether a word runs into it from the left, so that its prefix is none."""
    if not rule.apart or not text[start - 1 : start].isalnum():
        return False
    return ESCAPE.search(text, max(0, start - 6), start) is None


def _split(text: str) -> list[Secret]:
    """Tokens that go over a joint."""
    rough = text.encode("utf-8", "surrogatepass").replace(b"\\n", b"").translate(None, ROUGH)
    escaped = "\\u00" in text or any(c in text for c in WIDTHLESS) or NUMBERED.search(text) is not None
    likely = [pair for pair, bare in zip(TOKEN_TRIGGERS, BARE_TRIGGERS, strict=True) if escaped or bare in rough]
    if not likely:
        return []
    folded = JOINT.sub(_fold, text)
    if len(folded) == len(text):
        return []
    matches = [(rule, match) for trigger, rule in likely for match in _find(trigger, rule, folded)]
    if not matches:
        return []
    pieces = _pieces(text)
    folds = [piece[0] for piece in pieces]
    found = []
    for rule, match in matches:
        first, last = (bisect_right(folds, at) - 1 for at in (match.start(), match.end() - 1))
        if first == last or not rule.genuine(match[0]):
            continue
        start, stop = _place(pieces[first], match.start()), _place(pieces[last], match.end() - 1) + 1
        while (
            last > first
            and WORD.fullmatch(text, pieces[last][1], stop)
            and _is_whole(rule, text, start, pieces[last][1])
        ):
            last -= 1
            stop = pieces[last][2]
        if not _is_inside(rule, text, start):
            found.append(Secret(start, stop, rule.name))
    return found


Piece = tuple[int, int, int]
"""Where a run between two joints begins in the folded text; where it begins and ends in the text."""


def _pieces(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    fold = at = 0
    for joint in JOINT.finditer(text):
        if joint.start() > at:
            pieces.append((fold, at, joint.start()))
            fold += joint.start() - at
        if joint["code"]:
            pieces.append((fold, joint.start(), joint.end()))
            fold += 1
        at = joint.end()
    return [*pieces, (fold, at, len(text))]


def _place(piece: Piece, fold: int) -> int:
    return min(piece[1] + fold - piece[0], piece[2] - 1)


def _is_whole(rule: Rule, text: str, start: int, stop: int) -> bool:
    """Whether what stands before the last part is such a token by itself."""
    return rule.pattern.fullmatch(JOINT.sub(_fold, text[start:stop])) is not None


def _fold(joint: re.Match[str]) -> str:
    return chr(int(joint["code"], 16)) if joint["code"] else ""


def _united(found: list[Secret]) -> list[Secret]:
    """In order; what overlaps becomes one, named by the one that begins first, or else by the longest."""
    united: list[Secret] = []
    for secret in sorted(found, key=lambda s: (s.start, -s.stop)):
        if united and secret.start < united[-1].stop:
            last = united[-1]
            united[-1] = Secret(last.start, max(last.stop, secret.stop), last.rule)
        else:
            united.append(secret)
    return united
