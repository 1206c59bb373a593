"""Merges of bytes promoted online from what was already graded, and how many bytes their tokens stand for.

Tokens: greedy longest match over the byte strings known so far. A pair of tokens that was emitted often enough in a
window of the past becomes a token, after the update that graded its last occurrence; when all places are taken, the
least recently used token that no other is made of gives way. So the segmentation follows from the stream alone.
"""

import time
from collections import Counter, OrderedDict, deque
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

N_FIXED = 257
"""Bytes and the mark: tokens that are always there."""
CHECKPOINTS = (100_000, 1_000_000)
"""Bytes after which `segmented` says how far it is."""


class Merges:
    """The tokens known so far, and which one is next to come or go."""

    def __init__(self, n_merges: int, threshold: int = 8, window: int = 16_384, longest: int = 32) -> None:
        """At most `n_merges` beside the bytes, of at most `longest` bytes; a pair is promoted when it came
        `threshold` times in the last `window` pairs, and a token gives way after as long without use."""
        self.n_merges, self.threshold, self.window, self.longest = n_merges, threshold, window, longest
        self.texts = [*(bytes([value]) for value in range(256)), b""]
        self.parts: list[tuple[int, int]] = [(0, 0)] * N_FIXED
        self.depths = [0] * N_FIXED
        self.n_demoted = 0
        self._ids = {text: i for i, text in enumerate(self.texts[:256])}
        self._begins = Counter(self.texts[:256])  # how many tokens begin so: what the longest match walks along
        self._n_wholes = [0] * N_FIXED  # how many tokens a token is a part of
        self._used: OrderedDict[int, int] = OrderedDict()  # merged tokens and when they were last used, oldest first
        self._clock = 0
        self._pairs: deque[bytes] = deque()
        self._counts: Counter[bytes] = Counter()
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def segment(self, text: bytes, at: int, n_tokens: int) -> tuple[list[int], int]:
        """The next tokens (fewer at the end of the text) by longest match, and where they end. Changes nothing."""
        ids, begins, tokens = self._ids, self._begins, []
        while len(tokens) < n_tokens and at < len(text):
            stop = at + 2
            token, after = text[at], at + 1
            while stop <= len(text) and (piece := text[at:stop]) in begins:
                if (found := ids.get(piece)) is not None:
                    token, after = found, stop
                stop += 1
            tokens.append(token)
            at = after
        return tokens, at

    def observe(self, tokens: list[int]) -> list[int]:
        """Learn from tokens that were graded; the numbers of the tokens that are new or mean something else now."""
        changed = []
        for token in tokens:
            self._clock += 1
            if token >= N_FIXED:
                self._used[token] = self._clock
                self._used.move_to_end(token)
        for token in tokens:
            if self._last is not None and (new := self._observe_pair(self._last, token)) is not None:
                changed.append(new)
            self._last = token
        return changed

    def _observe_pair(self, left: int, right: int) -> int | None:
        text = self.texts[left] + self.texts[right]
        self._pairs.append(text)
        self._counts[text] += 1
        if len(self._pairs) > self.window:
            gone = self._pairs.popleft()
            self._counts[gone] -= 1
            if not self._counts[gone]:
                del self._counts[gone]
        if self._counts[text] < self.threshold or len(text) > self.longest or text in self._ids:
            return None
        return self._promote(left, right, text)

    def _promote(self, left: int, right: int, text: bytes) -> int | None:
        token = len(self.texts)
        if token == N_FIXED + self.n_merges:
            victim = self._victim({left, right})
            if victim is None:
                return None
            token = self._demote(victim)
        else:
            for row in (self.texts, self.parts, self.depths, self._n_wholes):
                row.append(None)  # type: ignore[arg-type]  # filled at once
        self.texts[token], self.parts[token], self._n_wholes[token] = text, (left, right), 0
        self.depths[token] = 1 + max(self.depths[left], self.depths[right])
        for part in (left, right):
            self._n_wholes[part] += 1
        self._ids[text] = token
        self._begins.update(text[:n] for n in range(1, len(text) + 1))
        self._used[token] = self._clock
        return token

    def _victim(self, spared: set[int]) -> int | None:
        for token, used in self._used.items():
            if used > self._clock - self.window:
                return None
            if not self._n_wholes[token] and token not in spared:
                return token
        return None

    def _demote(self, token: int) -> int:
        text = self.texts[token]
        for n in range(1, len(text) + 1):
            self._begins[text[:n]] -= 1
            if not self._begins[text[:n]]:
                del self._begins[text[:n]]
        for part in self.parts[token]:
            self._n_wholes[part] -= 1
        del self._ids[text], self._used[token]
        self.n_demoted += 1
        return token


def segmented(text: bytes, n_merges: int, **rules: int) -> list[dict[str, Any]]:
    """Bytes per token that online merges reach: so far, and over the last tenth."""
    rows, merges = [], Merges(n_merges, **rules)
    at, counts, begin = 0, [(0, 0)], time.process_time()
    while at < len(text):
        tokens, at = merges.segment(text, at, 64)
        merges.observe(tokens)
        counts.append((at, counts[-1][1] + len(tokens)))
        if counts[-2][0] < (due := min(CHECKPOINTS[len(rows)], len(text))) <= at:
            since = next(row for row in counts if row[0] >= 0.9 * due)
            rows.append(
                {
                    "merges": n_merges,
                    "after_bytes": due,
                    "online_so_far": round(at / counts[-1][1], 3),
                    "online_last_tenth": round((at - since[0]) / (counts[-1][1] - since[1]), 3),
                    "demoted": merges.n_demoted,
                    "kb_per_s": round(at / (time.process_time() - begin) / 1e3),
                }
            )
            if len(rows) == len(CHECKPOINTS) or due == len(text):
                break
    return rows


def offline(text: bytes, n_merges: int) -> float:
    """Bytes per token of a BPE with as many merges, trained on the very text; merges end at line ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "merged_with_previous")  # type: ignore[assignment]
    letters = text.decode("latin-1")  # one letter per byte
    alphabet = sorted(set(letters))
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + n_merges, initial_alphabet=alphabet, show_progress=False, max_token_length=32
    )
    tokenizer.train_from_iterator([letters], trainer)
    return round(len(text) / len(tokenizer.encode(letters).ids), 3)
