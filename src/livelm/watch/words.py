"""Which words of a text say what kind of thing it is: those without digits, and numbers that are codes."""

import re
from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

MAX_WORD_BYTES = 64
"""A longer word is data."""
CODE_DIGITS = 3
"""A code (an HTTP status, an event number) has at most so many digits."""
CODE_VALUES = 64
"""A place in a text with more values than this holds numbers, not codes."""
CODE_USES = 16
"""How often the values of a code must come back, on average, before they count as words."""
MAX_SHAPES = 1024
_DIGITS = re.compile(rb"[0-9]+")


class Word(NamedTuple):
    """A word that says what kind of text it stands in."""

    item: int
    """Its number: a hash of 63 bits."""
    text: bytes


class Words:
    """Reads the telling words of a text; what varies from line to line (times, addresses, counts) is left out.

    A word with a digit is left out, unless it is a code: words of its *shape* (digits replaced by 0) have at most
    `CODE_DIGITS` digits, have had at most `CODE_VALUES` values, and these came back `CODE_USES` times on average. So
    `500` in a log of requests is a word, and the seconds of a clock are not. Once a shape has more values, it is never
    asked again.
    """

    def __init__(self) -> None:
        self._shapes: OrderedDict[bytes, tuple[int, set[int] | None]] = OrderedDict()  # uses, values; None: too many

    def read(self, text: bytes) -> list[Word]:
        """Its telling words, in order."""
        found = []
        for token in text.split():
            if len(token) > MAX_WORD_BYTES:
                continue
            digits = _DIGITS.findall(token)
            if not digits or self._is_code(token, sum(map(len, digits))):
                found.append(Word(number(token), token))
        return found

    def _is_code(self, token: bytes, n_digits: int) -> bool:
        if n_digits > CODE_DIGITS:
            return False
        shape = _DIGITS.sub(b"0", token)
        uses, values = self._shapes.pop(shape, (0, set()))
        if values is not None:
            uses += 1
            values.add(number(token))
            values = values if len(values) <= CODE_VALUES else None
        self._shapes[shape] = uses, values
        if len(self._shapes) > MAX_SHAPES:
            self._shapes.popitem(last=False)
        return values is not None and uses >= CODE_USES * len(values)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shapes": [
                [shape.hex(), uses, None if values is None else sorted(values)]
                for shape, (uses, values) in self._shapes.items()
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._shapes = OrderedDict(
            (bytes.fromhex(shape), (uses, None if values is None else set(values)))
            for shape, uses, values in state["shapes"]
        )


@lru_cache(maxsize=1 << 16)
def number(token: bytes) -> int:
    """The same 63 bits for the same bytes, today and after a restart."""
    return int.from_bytes(blake2b(token, digest_size=8).digest(), "little") >> 1


def join(*numbers: int) -> int:
    """One number for several in this order, above 2: those below are free for marks."""
    data = b"".join(n.to_bytes(8, "little") for n in numbers)
    return (int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1) | 4
