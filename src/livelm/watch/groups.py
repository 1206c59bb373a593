"""Lines that share a key make one document: which kinds of lines it has, in which order, and which are missing."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from livelm.watch.expected import tail
from livelm.watch.frequencies import Frequencies, rarest
from livelm.watch.words import join

BEGIN, END = 1, 2
"""The kinds that stand before the first and after the last line of every group."""
MAX_ITEMS = 512
"""Kinds, and pairs of kinds, that are followed in one group."""
MAX_SHOWN = 4
"""Lines of a group that are kept to be shown."""
MAX_EXAMPLES = 4096
MAX_LINE_BYTES = 400


@dataclass(slots=True)
class Group:
    """What is known of one open group, in bounded memory."""

    key: bytes
    n_lines: int = 0
    n_bytes: int = 0
    bits: float = 0.0
    expected: float = 0.0
    variance: float = 0.0
    last: int = BEGIN
    """The kind of its last line."""
    kinds: dict[int, None] = field(default_factory=dict)
    pairs: dict[int, None] = field(default_factory=dict)
    shown: list[list[Any]] = field(default_factory=list)
    """[rarity, line number in the group, text, spans] of its most surprising lines."""
    touched: int = 0
    """Which line of the stream its last one was."""
    said: bool = False
    """Whether it was an alarm already."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the score of a group follows from."""

    rarity: float
    cost: float
    missing: tuple[int, ...] = ()
    """Kinds that more than half of the groups have and it lacks, which is a good part of its rarity."""


class Groups:
    """The open groups, and what was seen in those that are closed.

    The things about a group are: each kind of line in it, each pair of kinds that follow one another in it (a begin and
    an end included), and, once it is closed, each kind that it lacks although more than half of the groups have it.
    A kind of line is its telling words in their order. Groups are counted when they close: score first.
    """

    def __init__(self, max_open: int, idle: int, half_life: float, max_items: int) -> None:
        self._max_open, self._idle = max_open, idle
        self._open: OrderedDict[bytes, Group] = OrderedDict()
        self._kinds, self._pairs = Frequencies(half_life, max_items), Frequencies(half_life, max_items)
        self._examples: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def ceiling(self) -> float:
        """Bits of what no group ever had."""
        return self._kinds.ceiling

    def add(self, key: bytes, kind: int, line: int) -> tuple[Group, bool]:
        """The group of a line (its number) of this kind, and whether the line brings something new about it."""
        group = self._open.pop(key, None) or Group(key)
        self._open[key] = group  # put back last: ordered by last touch
        pair = join(group.last, kind)
        is_new = kind not in group.kinds or pair not in group.pairs
        if len(group.kinds) < MAX_ITEMS:
            group.kinds[kind] = None
        if len(group.pairs) < MAX_ITEMS:
            group.pairs[pair] = None
        group.last, group.n_lines, group.touched = kind, group.n_lines + 1, line
        return group, is_new

    def keep_example(self, kind: int, text: bytes) -> None:
        """Remember what lines of this kind look like."""
        if kind in self._examples:
            self._examples.move_to_end(kind)
            return
        self._examples[kind] = text[:MAX_LINE_BYTES].decode("utf-8", "backslashreplace").strip()
        if len(self._examples) > MAX_EXAMPLES:
            self._examples.popitem(last=False)

    def example(self, kind: int) -> str:
        """A line of this kind; empty if none is remembered."""
        return self._examples.get(kind, "")

    def judge(self, group: Group) -> Verdict:
        """What is surprising about an open group so far."""
        return self._verdict(group, {})

    def surplus(self, line: int) -> list[Group]:
        """The groups that must be closed at this line, touched longest ago first."""
        found = []
        while self._open:
            oldest = next(iter(self._open.values()))
            if len(self._open) <= self._max_open and line - oldest.touched < self._idle:
                break
            found.append(self._open.pop(oldest.key))
        return found

    def drain(self) -> list[Group]:
        """All open groups, oldest first: the stream has ended."""
        groups = list(self._open.values())
        self._open.clear()
        return groups

    def close(self, group: Group) -> Verdict:
        """What is surprising about a group that has ended; then it is learned."""
        group.pairs[join(group.last, END)] = None
        absences = self._kinds.absences(group.kinds)
        verdict = self._verdict(group, absences)
        self._kinds.add(group.kinds)
        self._pairs.add(group.pairs)
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        names = Group.__dataclass_fields__
        groups = []
        for group in self._open.values():
            values = {name: getattr(group, name) for name in names}
            groups.append(values | {"key": group.key.hex(), "kinds": [*group.kinds], "pairs": [*group.pairs]})
        return {
            "open": groups,
            "kinds": self._kinds.state_dict(),
            "pairs": self._pairs.state_dict(),
            "examples": [[kind, text] for kind, text in self._examples.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._open = OrderedDict()
        for values in state["open"]:
            key = bytes.fromhex(values["key"])
            sets = {name: dict.fromkeys(values[name]) for name in ("kinds", "pairs")}
            self._open[key] = Group(**{**values, **sets, "key": key})
        self._kinds.load_state_dict(state["kinds"])
        self._pairs.load_state_dict(state["pairs"])
        self._examples = OrderedDict((kind, text) for kind, text in state["examples"])

    def _verdict(self, group: Group, absences: dict[int, float]) -> Verdict:
        kinds, pairs = map(self._kinds.rarity, group.kinds), map(self._pairs.rarity, group.pairs)
        rarity = rarest([*kinds, *pairs, *absences.values()])
        cost = tail(group.bits - group.expected, math.sqrt(group.variance))
        missing = tuple(kind for kind, bits in absences.items() if bits >= rarity / 2)
        return Verdict(rarity, cost, missing)
