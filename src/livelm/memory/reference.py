"""The slow twin of the kernel, for tests: dictionaries instead of tables, plain sums, double precision.

It keeps each counter of each context under its own name (context, hash, bits so far), so it has no runs that split, no
buckets, and nothing is displaced: on a short text the kernel must say the same. What it shares with the kernel is the
table of contexts, the search for matches and the constants.
"""

import math
from collections.abc import Sequence

import numpy as np

from livelm.memory import kernel
from livelm.memory.contexts import (
    CLASSES,
    COLUMN,
    FIELD,
    INDEX,
    N_CONTEXTS,
    ORDER_2,
    ORDER_8,
    POSITION,
    RECENT,
    WORD,
    WORD_LENGTH,
    byte_class,
    finish,
    hash_contexts,
    observe,
)
from livelm.memory.match import length_grade, match_cell, recall
from livelm.memory.mixing import FIRST_BYTES, LARGEST, LEAST, N_BINS, N_STRETCH
from livelm.memory.slots import COUNT_LIMIT, COUNTED_UP_TO, LONGEST_RUN, count_cell
from livelm.memory.tables import (
    CONTEXT_INPUTS,
    FIRST_MATCH_WEIGHT,
    FIRST_WEIGHT,
    MAP_ROWS,
    N_FINALS,
    N_MAPS,
    N_SETS,
    build_tables,
    set_rows,
)


def score_reference(active: Sequence[int], text: bytes) -> list[float]:
    """Bits of each byte of a short text, as a fresh memory of these contexts would say."""
    twin = _Twin(active)
    return [twin.score_byte(byte) for byte in text]


class _Twin:
    def __init__(self, active: Sequence[int]) -> None:
        self.active = active
        self.n_sets = len(set_rows(len(active)))
        self.tables = t = build_tables([0], 96 << 20, 1 << 20)  # for the past and its matches only
        self.counters: dict[tuple[int, int, int], int] = {}
        self.runs: dict[tuple[int, int], tuple[int, int, int]] = {}  # (byte, length, whether another was seen)
        self.history = [t.history_map[0].astype(float) for _ in active]
        self.count = [t.count_map[0].astype(float) for _ in active]
        self.run = [t.run_map[0].astype(float) for _ in active]
        self.match = t.match_map.astype(float)
        self.n_matches = len(self.match)
        first = (
            [FIRST_WEIGHT, 0.0, FIRST_WEIGHT, 0.0] * len(active) + [FIRST_MATCH_WEIGHT, 0.0] * self.n_matches + [0.0]
        )
        self.first = np.array(first)
        self.weights: dict[tuple[int, int], np.ndarray] = {}
        self.final: dict[tuple[int, int], np.ndarray] = {}
        self.maps: dict[tuple[int, int], np.ndarray] = {}

    def score_byte(self, byte: int) -> float:
        self.begin_byte()
        cost, steps, prefix = 0.0, [], 1
        for b in range(8):
            bit = byte >> 7 - b & 1
            p, step = self.predict(b, prefix)
            cost -= math.log2(p if bit else 1 - p)
            steps.append((b, bit, step))
            prefix = prefix * 2 + bit
        for b, bit, step in steps:
            self.learn_bit(b, bit, *step)
        self.learn_byte(byte)
        return cost

    def begin_byte(self) -> None:
        t = self.tables
        self.foretold: list[tuple[int, int]] = []
        self.longest = (-1, 0)
        for pointer, length, misses in t.matches.tolist():
            byte = int(t.ring[pointer]) if pointer > 0 else -1
            self.foretold.append((byte, match_cell(length, misses)))
            if pointer > 0 and (self.longest[0] < 0 or length > self.longest[1]):
                self.longest = (byte, length)
        hashes = np.zeros(N_CONTEXTS, np.int64)
        hash_contexts(t.summary, t.ring, *self.longest, hashes)
        self.keys = [(i, int(hashes[k])) for i, k in enumerate(self.active)]
        known = sum(key in self.runs for key, k in zip(self.keys, self.active, strict=True) if ORDER_2 <= k <= ORDER_8)
        s = t.summary.tolist()
        word = s[WORD_LENGTH]
        self.chosen = (
            0 if self.longest[0] < 0 else 1 + length_grade(self.longest[1]),
            s[RECENT] & 255,
            known,
            s[CLASSES] & 0o777,
            self.longest[0],
            s[COLUMN] if s[COLUMN] < 128 else 128 + min(127, s[FIELD]),
            min(word, 15) * 8 + byte_class(s[RECENT] >> 8 * min(word, 7) & 255),
            s[RECENT] >> 8 & 255,
            int(finish(s[RECENT] & 0xFFFF)) & 511,
            int(finish(s[WORD])) & 511,
        )

    def predict(self, b: int, prefix: int) -> tuple[float, tuple]:
        x = []
        for (i, h), history, count, run in zip(self.keys, self.history, self.count, self.run, strict=True):
            word = self.counters.get((i, h, prefix), 0)
            x += [0.0, 0.0, 0.0] if word == 0 else [
                _stretch(history[word >> 24]),
                _stretch((word & 0x3FFFF) / (1 << 18)) * min(word >> 18 & 63, kernel.TRUSTED_AT) / kernel.TRUSTED_AT,
                _stretch(count[count_cell(word)]),
            ]  # fmt: skip
            byte, length, split = self.runs.get((i, h), (-1, 0, 0))
            sign = _sign(byte, b, prefix)
            x.append(sign * _stretch(run[split, b, length]) if sign else 0.0)
        for m, (byte, cell) in enumerate(self.foretold):
            sign, p = _sign(byte, b, prefix), self.match[m, cell]
            x += [sign * _stretch(p), sign * (p - 0.5) * kernel.SURENESS]
        x.append(kernel.CONSTANT_INPUT)
        inputs = np.array(x)
        rows = self.rows(b, prefix) + self.more_rows(b, prefix, inputs)
        logits = np.array([_clip(float(self.row(self.weights, at, self.first) @ inputs)) for at in rows])
        equal = np.full(self.n_sets, 1 / self.n_sets)
        ends = self.ends(b, prefix)
        mixed = [_clip(float(self.row(self.final, at, equal) @ logits)) for at in ends]
        logit = sum(mixed) / N_FINALS
        low, share = _bin(logit)
        identity = 1 / (1 + np.exp(-(np.arange(N_BINS) - 16) / 2))
        cells = [self.row(self.maps, at, identity) for at in self.map_rows(b, prefix)]
        refined = sum(c[low] * (1 - share) + c[low + 1] * share for c in cells) / N_MAPS
        p = _squash(logit) * (1 - kernel.MAP_SHARE) + refined * kernel.MAP_SHARE
        return max(LEAST, min(1 - LEAST, p)), (prefix, inputs, rows, logits, ends, mixed, low, share, cells)

    def rows(self, b: int, prefix: int) -> list[tuple[int, int]]:
        c, expected = self.chosen, _sign(self.longest[0], b, prefix) != 0
        first = (c[0] if expected else 0) << 8 | prefix
        fifth = 256 + (c[4] << 3 | b) if expected else prefix
        own = [first, c[1] << 3 | b, c[2] << 8 | prefix, c[3] << 3 | b, fifth, *(c[k] << 3 | b for k in (5, 6, 7))]
        return list(enumerate(own))

    def more_rows(self, b: int, prefix: int, inputs: np.ndarray) -> list[tuple[int, int]]:
        if self.n_sets == N_SETS:
            return []
        words = [self.counters.get((*key, prefix), 0) for key in self.keys]
        expected = _sign(self.longest[0], b, prefix) != 0
        own = [
            self.chosen[8] << 3 | b,
            self.chosen[9] << 3 | b,
            words[INDEX["order 2"]] >> 24 | expected << 8,
            words[INDEX["order 3"]] >> 24,
        ]
        for contexts in (kernel.LEANING_A, kernel.LEANING_B):
            number = 0
            for i in contexts:
                steps = (-kernel.LEANING, 0, kernel.LEANING)
                leaning = 1 + sum(inputs[i * CONTEXT_INPUTS] >= step for step in steps)
                number = number * 5 + (leaning if words[i] else 0)
            own.append(number)
        return list(enumerate(own, N_SETS))

    def ends(self, b: int, prefix: int) -> list[tuple[int, int]]:
        c, expected = self.chosen, _sign(self.longest[0], b, prefix) != 0
        own = [prefix, c[1], c[2] << 3 | b, (c[0] if expected else 0) << 3 | b, c[3], c[6]]
        return list(enumerate(own))

    def map_rows(self, b: int, prefix: int) -> list[tuple[int, int]]:
        recent, sign = int(self.tables.summary[RECENT]), _sign(self.longest[0], b, prefix)
        own = [
            (recent & 0xFF) << 8 | prefix,
            finish((recent & 0xFFFF) << 8 | prefix) & (MAP_ROWS - 1),
            finish((recent & 0xFFFFFF) << 8 | prefix | 1 << 40) & (MAP_ROWS - 1),
            (self.chosen[0] * 2 + (sign > 0) if sign else 0) << 8 | prefix,
        ]
        return list(enumerate(own))

    def row(self, table: dict, at: tuple[int, int], first: np.ndarray) -> np.ndarray:
        return table.setdefault(at, first.copy())

    def learn_bit(self, b, bit, prefix, inputs, rows, logits, ends, mixed, low, share, cells) -> None:
        for cell in cells:
            cell[low] += (bit - cell[low]) * kernel.MAP_RATE * (1 - share)
            cell[low + 1] += (bit - cell[low + 1]) * kernel.MAP_RATE * share
        for at, logit in zip(ends, mixed, strict=True):
            self.final[at] += logits * (bit - _squash(logit)) * kernel.FINAL_RATE
        position = self.tables.summary[POSITION]
        rate = kernel.MIX_RATE + kernel.MIX_RATE_FIRST / (1 + position / FIRST_BYTES)
        for at, logit in zip(rows, logits, strict=True):
            self.weights[at] += inputs * (bit - _squash(logit)) * rate
        for key, history, count, run in zip(self.keys, self.history, self.count, self.run, strict=True):
            word = self.counters.get((*key, prefix), 0)
            if word:
                history[word >> 24] += (bit - history[word >> 24]) * kernel.CELL_RATE
                count[count_cell(word)] += (bit - count[count_cell(word)]) * kernel.CELL_RATE
            byte, length, split = self.runs.get(key, (-1, 0, 0))
            if _sign(byte, b, prefix):
                run[split, b, length] += ((byte >> 7 - b & 1 == bit) - run[split, b, length]) * kernel.CELL_RATE
        for m, (byte, cell) in enumerate(self.foretold):
            if _sign(byte, b, prefix):
                self.match[m, cell] += ((byte >> 7 - b & 1 == bit) - self.match[m, cell]) * kernel.CELL_RATE

    def learn_byte(self, byte: int) -> None:
        t = self.tables
        for key in self.keys:
            for b in range(8):
                at = (*key, (byte | 256) >> 8 - b)
                self.counters[at] = self.count_bit(self.counters.get(at, 0), byte >> 7 - b & 1)
            last, length, split = self.runs.get(key, (byte, 0, 0))
            self.runs[key] = (byte, min(length + 1, LONGEST_RUN) if last == byte else 1, int(split or last != byte))
        observe(t.summary, t.ring, byte)
        for m, minimum in enumerate(t.minima):
            recall(t.matches, m, t.ring, t.places, t.summary, minimum, byte)

    def count_bit(self, word: int, bit: int) -> int:
        history, count, p = word >> 24, word >> 18 & 63, word & 0x3FFFF if word else 1 << 17
        used = count if count < COUNTED_UP_TO else COUNTED_UP_TO + 8 * (count - COUNTED_UP_TO)
        p += (((1 << 18) - 1 if bit else 0) - p) * int(65536 / (used + 1.5)) >> 16
        count += count < COUNTED_UP_TO or (count < COUNT_LIMIT and p % 8 == 0)
        return int(self.tables.after[history, bit]) << 24 | count << 18 | p


def _sign(byte: int, b: int, prefix: int) -> int:
    """+1 or -1 for the bit that `byte` foretells, 0 where it does not fit what has come."""
    if byte < 0 or (byte | 256) >> 8 - b != prefix:
        return 0
    return 1 if byte >> 7 - b & 1 else -1


def _stretch(p: float) -> float:
    step = (int(p * (N_STRETCH - 0.01)) + 0.5) / N_STRETCH
    return math.log(step / (1 - step))


def _squash(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _clip(x: float) -> float:
    return max(-LARGEST, min(LARGEST, x))


def _bin(x: float) -> tuple[int, float]:
    t = (max(-7.999, min(7.999, x)) + 8) * 2
    return int(t), t - int(t)
