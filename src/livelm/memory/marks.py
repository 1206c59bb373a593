"""Whether another document opens here: one more bit before each byte, from counts of its own.

Documents end after few kinds of bytes, so what came last says most: the last two bytes, backed by the last one, backed
by everything. Each estimate is shrunk towards the shorter one by a few imagined observations (MacKay and Peto 1995), so
a document without end pays next to nothing: less than a bit for the first 256 KB of tinyshakespeare.
"""

from livelm.compiled import called
from livelm.memory.contexts import RECENT

MARK_ROWS = 1 + 256 + 65536
_IMAGINED = 0.4
"""Observations that the shorter context's estimate is worth."""
_FIRST = 0.002
"""Probability of a mark before anything was seen."""
_LEAST = 1e-7


@called
def mark_probability(marks, s):
    """The probability that a document opens here, from (rows, 2) counts of bytes and of marks."""
    p = _FIRST
    for row in (0, 1 + (s[RECENT] & 0xFF), 257 + (s[RECENT] & 0xFFFF)):
        p = (marks[row, 1] + _IMAGINED * p) / (marks[row, 0] + marks[row, 1] + _IMAGINED)
    return max(_LEAST, min(1 - _LEAST, p))


@called
def learn_mark(marks, s, is_mark):
    """Count whether a document opened here; large counts are halved, so that a changed stream is noticed."""
    for row in (0, 1 + (s[RECENT] & 0xFF), 257 + (s[RECENT] & 0xFFFF)):
        marks[row, 1 if is_mark else 0] += 1
        if marks[row, 0] + marks[row, 1] > 1 << 20:
            marks[row, 0] *= 0.5
            marks[row, 1] *= 0.5
