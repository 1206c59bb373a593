"""The reservation of a whole host: `/.well-known/tdmrep.json` of the TDM reservation protocol.

W3C community group report, 10 May 2024, "TDM File on the Origin Server": a JSON array of rules, of which the first that
matches an address counts. Read kindly, as robots.txt is: what can be meant as a reservation is one.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

PATH = "/.well-known/tdmrep.json"
MAX_BYTES = 64 << 10
"""About a thousand rules. A longer file is cut, so it is no JSON, and counted as invalid."""

_ORIGIN = re.compile(r"https?://[^/]*", re.IGNORECASE)
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~$*")
"""Unreserved characters (RFC 3986), and those that a pattern must encode to mean them."""
_VALUES = {"1": True, "true": True, "0": False, "false": False}
"""What `tdm-reservation` may be; the report knows the numbers only, people write all of these."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the addresses of one pattern."""

    pieces: tuple[str, ...]
    """The pattern, divided at each `*`."""
    whole: bool
    """Whether the address must end where the pattern does (`$`)."""
    reserved: bool

    def matches(self, path: str) -> bool:
        """Whether the pattern matches a path (with its query) in the spelling of `_spelled`.

        In linear time: with the first piece at the beginning, taking each next one where it comes first is enough.
        """
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        place = len(first)
        if not others:
            return not self.whole or place == len(path)
        if self.whole:
            *others, last = others
            end = len(path) - len(last)
            if not path.endswith(last):
                return False
        else:
            end = len(path)
        for piece in others:
            found = path.find(piece, place, end)
            if found < 0:
                return False
            place = found + len(piece)
        return place <= end


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a host reserves."""

    rules: tuple[Rule, ...] = ()

    def covers(self, url: str) -> bool:
        """Whether text and data mining of `url` (of this host) is reserved; the first rule that matches says it."""
        if not self.rules:
            return False
        path = _spelled(_ORIGIN.sub("", url, count=1) or "/")
        return next((rule.reserved for rule in self.rules if rule.matches(path)), False)


NOTHING = Reservation()


def parse_reservation(body: bytes) -> tuple[Reservation, bool]:
    """The rules of a file, and whether all of it is as the report wants it; never raises, whatever the bytes are.

    A rule that cannot be understood is left out, the others hold. One rule without the array is taken for an array of
    one, and a location may be a whole address or lack its first slash.
    """
    try:
        found: Any = json.loads(body[:MAX_BYTES])
    except (ValueError, RecursionError):
        return NOTHING, False
    is_valid = isinstance(found, list)
    rules: list[Rule] = []
    for entry in found if isinstance(found, list) else [found]:
        rule = _rule(entry)
        if rule is None:
            is_valid = False
        else:
            rules.append(rule)
    return (Reservation(tuple(rules)) if rules else NOTHING), is_valid


def _rule(entry: object) -> Rule | None:
    match entry:
        case {"location": str(location), "tdm-reservation": value} if isinstance(value, int | float | str):
            reserved = _VALUES.get(f"{value:g}" if isinstance(value, float) else str(value).strip().lower())
            if reserved is None:
                return None
        case _:
            return None
    location = _ORIGIN.sub("", location.strip(), count=1)
    if not location.startswith(("/", "*")):
        location = f"/{location}"
    whole = location.endswith("$")
    pieces = location.removesuffix("$").split("*")
    return Rule(tuple(map(_spelled, pieces)), whole, reserved)


def _spelled(path: str) -> str:
    """One spelling of a path: characters that need no encoding as they are, those outside ASCII encoded."""
    encoded = "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace")) for c in path)
    return _ENCODED.sub(_decoded, encoded)


def _decoded(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _PLAIN else match[0].upper()
