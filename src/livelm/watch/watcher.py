"""Score every document of a stream, then learn it; say which ones stand out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livelm.memory import CountMemory
from livelm.types import Record
from livelm.watch.cut import Part
from livelm.watch.drift import Drift
from livelm.watch.expected import Expectation, tail
from livelm.watch.frequencies import LEAST_RARE, Frequencies, rarest
from livelm.watch.groups import MAX_LINE_BYTES, MAX_SHOWN, Group, Groups, Verdict
from livelm.watch.level import Level
from livelm.watch.settings import WatchSettings
from livelm.watch.spans import Span, costliest
from livelm.watch.words import Word, Words, join

MAX_TEXT_BYTES = 2000
"""Of a document's text that a record holds, around what is surprising in it."""
MAX_KEYS = 64
"""Keys of one line that are followed."""
MAX_KEY_BYTES = 256


@dataclass(frozen=True, slots=True)
class Read:
    """A line or document with all that was measured of it."""

    part: Part
    bits: NDArray[np.float64]
    """(n,) of its bytes."""
    words: list[Word]
    kind: int
    total: float
    """Bits in all."""
    expected: float
    deviation: float


class Watcher:
    """Turns the parts of a stream into records: `surprise` for those that stand out, `drift` when all changes.

    The score of a line or document is max(R, C) in bits. R is how rare the things about it are, its telling words and
    the usual words that it lacks: the mean over the rarest of them (`frequencies.rarest`) of -log2 of the share of
    documents of which they are true, over the long past and of late; `level.Level.cap` bounds it. C is how far its
    bytes cost more than those of such documents usually do (`expected.tail`). Groups: see `groups.Groups`. Everything
    is a function of the documents alone, but for `per_day`, which needs to know when they came.
    """

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._memory = CountMemory(settings.memory)
        self._words = Words()
        self._long = Frequencies(settings.half_life, settings.items)
        self._recent = Frequencies(settings.recent, settings.items)
        self._names: dict[int, bytes] = {}  # what the usual words are, to say which one is missing
        self._expectation = Expectation()
        self._groups = Groups(settings.groups, settings.idle, settings.half_life, settings.items)
        self._drift = Drift(settings.window_bytes)
        self._levels = {"single": Level(settings), "group": Level(settings)}
        self.n_documents = 0
        """Lines or documents that were scored."""
        self.n_bytes = 0
        self.n_said = 0

    @property
    def n_open(self) -> int:
        """Groups that are open."""
        return len(self._groups)

    @property
    def held_back(self) -> int:
        """Documents above the threshold that were not said because too many were."""
        return sum(level.held_back for level in self._levels.values())

    @property
    def threshold(self) -> float | None:
        """Bits from which a document, or group, is said; None while only learning what is usual."""
        if self._settings.key:
            return self._levels["group"].threshold(self._groups.ceiling)
        return self._levels["single"].threshold(self._ceiling)

    @property
    def _ceiling(self) -> float:
        return (self._long.ceiling + self._recent.ceiling) / 2

    @property
    def level(self) -> float:
        """Bits per byte of the stream of late."""
        return self._expectation.level

    def take(self, part: Part, gap_s: float = 0.0) -> Iterator[Record]:
        """Score a part that came `gap_s` seconds after the one before, learn it, and give the records it makes."""
        if not part.is_line and part.place == 1:
            self._memory.begin_document()
        for level in self._levels.values():
            level.pass_time(gap_s)
        keys = self._keys(part)
        read = self._read(part, keys)
        self.n_bytes += len(part.text)
        if part.text.strip():
            self.n_documents += 1
            found = self._take_line(read, keys) if keys else self._take_single(read)
            yield from found
            self._expectation.learn(read.kind, len(part.text), read.total)
        for record in self._drift.take(part.text, read.bits):
            yield {**record, "document": self.n_documents}

    def finish(self) -> Iterator[Record]:
        """Close every group: the stream has ended."""
        for group in self._groups.drain():
            yield from self._close(group)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later records depend on; the memory's tensors are views."""
        return {
            "memory": self._memory.state_dict(),
            "words": self._words.state_dict(),
            "long": self._long.state_dict(),
            "recent": self._recent.state_dict(),
            "names": [[item, name.hex()] for item, name in self._names.items()],
            "expectation": self._expectation.state_dict(),
            "groups": self._groups.state_dict(),
            "drift": self._drift.state_dict(),
            "levels": {name: level.state_dict() for name, level in self._levels.items()},
            "counts": [self.n_documents, self.n_bytes, self.n_said],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises CheckpointError where the memory has another size."""
        self._memory.load_state_dict(state["memory"])
        self._words.load_state_dict(state["words"])
        self._long.load_state_dict(state["long"])
        self._recent.load_state_dict(state["recent"])
        self._names = {item: bytes.fromhex(name) for item, name in state["names"]}
        self._expectation.load_state_dict(state["expectation"])
        self._groups.load_state_dict(state["groups"])
        self._drift.load_state_dict(state["drift"])
        for name, level in self._levels.items():
            level.load_state_dict(state["levels"][name])
        self.n_documents, self.n_bytes, self.n_said = state["counts"]

    def _keys(self, part: Part) -> list[bytes]:
        """The keys in a line, each once."""
        pattern = self._settings.key
        if pattern is None or not part.is_line:
            return []
        found: dict[bytes, None] = {}
        for match in pattern.finditer(part.text):
            key = _key_of(match)
            if key and len(found) < MAX_KEYS:
                found[key[:MAX_KEY_BYTES]] = None
        return list(found)

    def _read(self, part: Part, keys: list[bytes]) -> Read:
        text = part.text
        bits = self._memory.score(text)
        plain = _without_keys(text, self._settings.key) if keys and self._settings.key else text
        words = self._words.read(plain)
        kind = join(*(word.item for word in words))
        judged = self._expectation.judge(kind, len(text))
        return Read(part, bits, words, kind, float(bits.sum()), judged.expected, judged.deviation)

    def _take_single(self, read: Read) -> Iterator[Record]:
        items = {word.item: word.text for word in read.words}
        rarities = {item: (self._long.rarity(item) + self._recent.rarity(item)) / 2 for item in items}
        absences = {item: (bits + self._recent.absence(item)) / 2 for item, bits in self._long.absences(items).items()}
        rarity = rarest([*rarities.values(), *absences.values()])
        cost = tail(read.total - read.expected, read.deviation)
        level, ceiling = self._levels["single"], self._ceiling
        score = max(level.cap(rarity, ceiling), cost)
        threshold = level.threshold(ceiling)
        if level.is_alarm(score, threshold):
            top = sorted(items, key=lambda item: -rarities[item])[:LEAST_RARE]
            # a word that one document in eight has is no reason
            rare = [(items[item], rarities[item]) for item in top if rarities[item] >= 3]
            text, spans = _excerpt(read.part.text, costliest(read.part.text, read.bits, [w for w, _ in rare]))
            yield self._record(
                read.part,
                {"score": score, "threshold": threshold, "rarity": rarity, "cost": cost},
                _costs(read.total, len(read.part.text), read.expected),
                text=text,
                spans=spans,
                rare=[[_shown(word), round(bits, 3)] for word, bits in rare],
                missing=[_shown(self._names[i]) for i, b in absences.items() if b >= rarity / 2 and i in self._names],
            )
        self._name(items)
        self._long.add(items)
        self._recent.add(items)
        level.count(score, rarity, ceiling)

    def _name(self, items: dict[int, bytes]) -> None:
        """Remember what the usual words are, and forget those that no longer are."""
        usual = self._long.usual
        self._names |= {item: items[item] for item in usual.keys() & items.keys()}
        if len(self._names) > 2 * len(usual):
            self._names = {item: name for item, name in self._names.items() if item in usual}

    def _take_line(self, read: Read, keys: list[bytes]) -> Iterator[Record]:
        for key in keys:
            group, is_new = self._groups.add(key, read.kind, self.n_documents)
            group.bits += read.total
            group.expected += read.expected
            group.variance += read.deviation**2
            group.n_bytes += len(read.part.text)
            self._keep_line(group, read)
            if is_new and not group.said and not self._settings.says_all:
                verdict, level = self._groups.judge(group), self._levels["group"]
                enough = len(group.kinds) + len(group.pairs) >= LEAST_RARE
                threshold = level.threshold(self._groups.ceiling)
                score = max(level.cap(verdict.rarity, self._groups.ceiling), verdict.cost)
                if enough and level.is_alarm(score, threshold):
                    group.said = True
                    yield self._group_record(read.part, group, verdict, (score, threshold), closed=False)
        self._groups.keep_example(read.kind, read.part.text)
        for group in self._groups.surplus(self.n_documents):
            yield from self._close(group)

    def _keep_line(self, group: Group, read: Read) -> None:
        """Keep the line to be shown if it is among the most surprising of its group."""
        costly = tail(read.total - read.expected, read.deviation)
        novelty = round(self._expectation.rarity(read.kind) + costly, 3)
        if len(group.shown) >= MAX_SHOWN and novelty <= min(line[0] for line in group.shown):
            return
        text, spans = _excerpt(read.part.text, costliest(read.part.text, read.bits), MAX_LINE_BYTES)
        group.shown.append([novelty, group.n_lines, text, spans])
        if len(group.shown) > MAX_SHOWN:
            group.shown.remove(min(group.shown, key=lambda line: line[0]))

    def _close(self, group: Group) -> Iterator[Record]:
        level, ceiling = self._levels["group"], self._groups.ceiling
        threshold, verdict = level.threshold(ceiling), self._groups.close(group)
        score = max(level.cap(verdict.rarity, ceiling), verdict.cost)
        if not group.said and level.is_alarm(score, threshold):
            yield self._group_record(None, group, verdict, (score, threshold), closed=True)
        level.count(score, verdict.rarity, ceiling)

    def _group_record(
        self, part: Part | None, group: Group, verdict: Verdict, found: tuple[float, float | None], *, closed: bool
    ) -> Record:
        scores = {"score": found[0], "threshold": found[1], "rarity": verdict.rarity, "cost": verdict.cost}
        shown = sorted(group.shown, key=lambda line: line[1])
        return self._record(
            part,
            scores,
            _costs(group.bits, group.n_bytes, group.expected),
            group=_shown(group.key),
            closed=closed,
            n_lines=group.n_lines,
            lines=[{"line": line, "text": text, "spans": spans} for _, line, text, spans in shown],
            missing=[text for kind in verdict.missing[:MAX_SHOWN] if (text := self._groups.example(kind))],
        )

    def _record(
        self, part: Part | None, scores: dict[str, float | None], costs: dict[str, float], **more: Any
    ) -> Record:
        record: Record = {"kind": "surprise", "surprise": self.n_said, "document": self.n_documents}
        self.n_said += 1
        if part is not None:
            record |= {"id": part.id, "line" if part.is_line else "part": part.place}
            record |= {"at": part.at} if part.at is not None else {}
        rounded = {name: None if value is None else round(value, 4) for name, value in scores.items()}
        return record | rounded | costs | more


def _costs(bits: float, n_bytes: int, expected: float) -> dict[str, float]:
    return {
        "bits_per_byte": round(bits / n_bytes, 4),
        "excess": round((bits - expected) / n_bytes, 4),
        "bits": round(bits, 2),
        "n_bytes": n_bytes,
    }


def _excerpt(text: bytes, spans: list[Span], most: int = MAX_TEXT_BYTES) -> tuple[str, list[list[float]]]:
    """At most so many bytes around the costliest span, as text, and the spans in its characters."""
    begin = 0
    if len(text) > most and spans:
        begin = max(0, min(max(spans, key=lambda s: s.bits).start - most // 4, len(text) - most))
    stop = min(len(text), begin + most)
    shown = _shown(text[begin:stop]).rstrip("\r\n")
    placed = []
    for span in spans:
        start, end = max(span.start, begin), min(span.stop, stop)
        if start < end:
            first = len(_shown(text[begin:start]))
            placed.append([first, first + len(_shown(text[start:end])), round(span.bits, 2)])
    return shown, placed


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _key_of(match: "re.Match[bytes]") -> bytes:
    return (match[1] if match.re.groups else match[0]) or b""


def _without_keys(text: bytes, pattern: "re.Pattern[bytes]") -> bytes:
    """The text with a blank for every key, so that a key never makes a line a kind of its own."""
    parts, at = [], 0
    for match in pattern.finditer(text):
        start, stop = match.span(1 if pattern.groups else 0)
        if start >= 0:
            parts += [text[at:start], b" "]
            at = stop
    return b"".join([*parts, text[at:]])
