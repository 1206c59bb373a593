"""Where contexts keep what they saw: one word while it was always the same byte, buckets of counters after that.

Most contexts of high order are met once or never see a second byte, so a context begins as a *run*: one 32-bit word
(check 16 bits, byte 8, length 7, split 1). When a second byte comes it *splits*: the two paths through the tree of bits
are written into buckets, one of 64 bytes (a cache line) per half byte: a check and 15 counters, one for each prefix
of the half byte. A counter is 32 bits: a bit history (8), how often it was used (6), the probability of a one (18).

Each context has its own region; lookups try four neighbours within one or four cache lines, so their cost has a bound
that no input changes. Nothing is written while something is looked up.
"""

import numpy as np
from numpy.typing import NDArray

from livelm.compiled import called, inlined
from livelm.memory.contexts import finish

BUCKET_WORDS = 16
"""Words of a bucket: the check, then the nodes 1 to 15 of a half byte (node 1: no bit known, 2 and 3: one bit, ...)."""
LONGEST_RUN = 127
COUNT_LIMIT = 63
COUNTED_UP_TO = 32
"""A counter counts every use up to here, then about one in eight: so six bits reach to 280 uses."""


@inlined
def update_counter(word, bit, after, rates):
    """The counter after `bit`."""
    history, count, p = (word >> 24) & 0xFF, (word >> 18) & 63, word & 0x3FFFF
    if word == 0:
        p = 0x20000
    target = 0x3FFFF if bit else 0
    p += ((target - p) * rates[count]) >> 16
    if count < COUNTED_UP_TO or (count < COUNT_LIMIT and p & 7 == 0):  # the lowest bits of p serve as dice
        count += 1
    return np.int64(after[history, bit]) << 24 | count << 18 | p


def build_rates() -> NDArray[np.int64]:
    """(64,) by how much of 65,536 a counter of each count moves towards a bit: the mean of what it has seen."""
    used = [count + 7 * max(0, count - COUNTED_UP_TO) for count in range(COUNT_LIMIT + 1)]
    return np.array([int(65536 / (n + 1.5)) for n in used], np.int64)


@inlined
def find_run(runs, first, n_groups, h):
    """(index of the run of the context with hash `h`, True), or (where it may be put, False)."""
    check = h & 0xFFFF
    base = first + ((((h >> 32) & 0xFFFFFFFF) * n_groups) >> 32) * 4
    best, lowest = base, 1 << 20
    for i in range(base, base + 4):
        word = np.int64(runs[i])
        if word != 0 and word >> 16 == check:
            return i, True
        worth = 0 if word == 0 else (word >> 1) & 0x7F | (word & 1) << 4
        if worth < lowest:
            best, lowest = i, worth
    return best, False


@inlined
def find_bucket(buckets, first, n_groups, h):
    """(row of the bucket with hash `h`, True), or (the row that may be cleared for it, False)."""
    check = (h & 0xFFFF) | 0x10000
    base = first + ((((h >> 32) & 0xFFFFFFFF) * n_groups) >> 32) * 4
    best, lowest = base, 1 << 20
    for i in range(base, base + 4):
        if np.int64(buckets[i, 0]) == check:
            return i, True
        worth = (np.int64(buckets[i, 1]) >> 18) & 63
        if worth < lowest:
            best, lowest = i, worth
    return best, False


@called
def claim_bucket(buckets, first, n_groups, h):
    """The row of the bucket with hash `h`, which takes the place of the least used neighbour if it is new."""
    row, found = find_bucket(buckets, first, n_groups, h)
    if not found:
        buckets[row, :] = 0
        buckets[row, 0] = (h & 0xFFFF) | 0x10000
    return row


@inlined
def half_hash(h, half):
    """The hash of a context's bucket: `half` 0 is the first half byte, 16 + value the second after that value."""
    return finish(h + (half + 1) * 0x632BE59BD9B4E019)


@called
def learn_half(buckets, row, half, times, after, rates):
    """Take the four bits of `half` into the counters on their path, `times` times."""
    node = 1
    for b in range(4):
        bit = (half >> (3 - b)) & 1
        word = np.int64(buckets[row, node])
        for _ in range(times):
            word = update_counter(word, bit, after, rates)
        buckets[row, node] = word
        node = node * 2 + bit


@called
def learn_path(buckets, where, h, byte, times, after, rates):
    """Take a whole byte into the buckets of a context, whose region begins and extends as `where` says."""
    row = claim_bucket(buckets, where[0], where[1], half_hash(h, 0))
    learn_half(buckets, row, byte >> 4, times, after, rates)
    row = claim_bucket(buckets, where[0], where[1], half_hash(h, 16 + (byte >> 4)))
    learn_half(buckets, row, byte & 15, times, after, rates)


@inlined
def learn_context(runs, buckets, run_at, found, where, h, byte, after, rates):
    """Let one context learn the byte that came: begin a run, prolong it, split it, or count in its buckets.

    `where`: first row and number of groups of the region of buckets; `h`: the context's hash.
    """
    if not found:
        runs[run_at] = (h & 0xFFFF) << 16 | byte << 8 | 1 << 1
        return
    word = np.int64(runs[run_at])
    expected, length, split = (word >> 8) & 0xFF, (word >> 1) & 0x7F, word & 1
    if expected != byte and not split:
        learn_path(buckets, where, h, expected, length, after, rates)
        split = 1
    if split:
        learn_path(buckets, where, h, byte, 1, after, rates)
    length = min(length + 1, LONGEST_RUN) if expected == byte else 1
    runs[run_at] = (word >> 16) << 16 | byte << 8 | length << 1 | split


@inlined
def count_cell(word):
    """The cell of a counter in the map that corrects it: 8 steps of its count, 64 of its probability."""
    count = (word >> 18) & 63
    step = count if count < 4 else 4 if count < 7 else 5 if count < 14 else 6 if count < 40 else 7
    return step << 6 | (word & 0x3FFFF) >> 12
