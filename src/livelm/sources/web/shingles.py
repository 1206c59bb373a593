"""The runs of five words of a text as numbers, in any script: what repetition and near-duplicates are measured by."""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WORDS = 5
IDEOGRAPHS = 10
"""Length of a run in Chinese and Japanese: five words of two characters."""
LETTERS = 20
"""Length of a run in the other scripts that set no spaces between words; vowel signs count."""
MAX_BYTES = 1 << 17
"""The beginning decides: what comes after this many bytes is not looked at."""

_IDEOGRAPH = re.compile("[\u2e80-\u2fff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_UNSPACED_LETTER = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf]"
)
"""Thai, Lao, Tibetan, Burmese, Khmer and the Tai scripts. Korean sets spaces."""

_ODD = 0x9E3779B97F4A7C15


def _powers(base: int) -> NDArray[np.uint64]:
    powers = np.full(MAX_BYTES + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)  # wraps: arithmetic modulo 2^64


_POWERS = _powers(_ODD)
_INVERSES = _powers(pow(_ODD, -1, 1 << 64))


@dataclass(frozen=True, slots=True)
class Shingles:
    """A text as the comparisons see it."""

    normal: bytes
    """Lower case, one space between words, one at either end; UTF-8."""
    hashes: NDArray[np.uint64]
    """One number for each run, in order; the same in every process. Empty for texts shorter than one run."""


@lru_cache(maxsize=1)  # the filter and the search for duplicates look at the same text one after the other
def words_of(text: str) -> list[str]:
    """What stands between blanks. Not to be changed: the next caller gets the same list."""
    return text.split()


@lru_cache(maxsize=1)
def shingles(text: str) -> Shingles:
    """Hash every run of `WORDS` words, or of `unspaced_run` characters where words are not set apart.

    A run's number is its bytes as a polynomial modulo 2^64 (Karp and Rabin, 1987), mixed: a difference of two prefix
    sums, so the cost is a few passes over the bytes however long the runs are.
    """
    normal = f" {' '.join(words_of(text)).lower()} ".encode("utf-8", "replace")
    data = np.frombuffer(normal[:MAX_BYTES], np.uint8)
    if length := unspaced_run(text):
        starts, gap = np.flatnonzero((data & 0xC0) != 0x80), 0  # where a character begins
    else:
        starts = np.flatnonzero(data == 32) + 1
        length, gap = WORDS, 1
    if len(starts) <= length:
        return Shingles(normal, np.empty(0, np.uint64))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * _POWERS[: len(data)], out=sums[1:])
    begin, end = starts[:-length], starts[length:] - gap
    return Shingles(normal, _mix((sums[end] - sums[begin]) * _INVERSES[begin]))


def unspaced_run(text: str) -> int:
    """Characters of a run in a script that sets no spaces between words; 0 for others. The first 1,000 decide."""
    head = text[:1000]
    if head.isascii():
        return 0
    if len(_IDEOGRAPH.findall(head)) > 0.2 * len(head):
        return IDEOGRAPHS
    return LETTERS if len(_UNSPACED_LETTER.findall(head)) > 0.2 * len(head) else 0


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: low bits of a polynomial depend on few bytes, minima need all bits alike."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
