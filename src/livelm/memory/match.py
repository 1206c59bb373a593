"""The longest repetition: where the last bytes occurred before, and so which byte should follow.

A match that fails is kept for a while (`misses`): in a log line whose number differs, what follows the number still
fits. It is given up when it fails too often, or when the index knows a place that fits the last bytes.
"""

from livelm.compiled import called, inlined
from livelm.memory.contexts import POSITION, RECENT, finish

POINTER, LENGTH, MISSES = range(3)
LONGEST = 65535
VERIFIED = 48
"""Bytes that are compared at most when a place is tried: what bounds the cost."""
MOST_MISSES = 7
"""Failures among the last eight bytes that a match survives."""


@called
def recall(matches, m, ring, places, s, minimum, byte):
    """Follow match `m` over `byte`, which has come, or look for another; then enter the present place."""
    position, mask = s[POSITION], ring.shape[0] - 1
    if matches[m, POINTER] > 0:
        hit = ring[matches[m, POINTER] & mask] == byte
        matches[m, LENGTH] = min(matches[m, LENGTH] + 1, LONGEST) if hit else 0
        matches[m, MISSES] = (matches[m, MISSES] << 1 | (not hit)) & 0xFF
        matches[m, POINTER] += 1
        if position - matches[m, POINTER] >= mask or bits_set(matches[m, MISSES]) > MOST_MISSES:
            matches[m, POINTER] = matches[m, LENGTH] = matches[m, MISSES] = 0
    h = finish(s[RECENT] << (64 - 8 * minimum) if minimum < 8 else s[RECENT])
    slot = (h >> 20) & (places.shape[1] - 1)
    if matches[m, LENGTH] < minimum:
        length = verify(ring, places[m, slot], position)
        if length >= minimum and length > matches[m, LENGTH]:
            matches[m, POINTER], matches[m, LENGTH], matches[m, MISSES] = places[m, slot], length, 0
    places[m, slot] = position


@called
def verify(ring, place, position):
    """How many bytes before `place` equal those before `position`, at most `VERIFIED`."""
    length, mask = 0, ring.shape[0] - 1
    if place <= 0 or position - place >= ring.shape[0] - VERIFIED:
        return 0
    while length < min(VERIFIED, place) and ring[(place - 1 - length) & mask] == ring[(position - 1 - length) & mask]:
        length += 1
    return length


@inlined
def bits_set(x):
    """How many of eight bits are one."""
    n = 0
    for i in range(8):
        n += (x >> i) & 1
    return n


@inlined
def length_grade(length):
    """0 to 6: how much a match of this length is worth, for choosing weights."""
    if length < 16:
        return 0 if length == 0 else 1 if length < 8 else 2 if length < 12 else 3
    return 4 if length < 24 else 5 if length < 40 else 6


@inlined
def match_cell(length, misses):
    """The cell of a match in the map of how often matches are right: 16 steps of length, 8 of recent failures."""
    step = 15
    if length < 16:
        step = length // 2
    elif length < 512:
        step = 8 + (length - 16) // 8 if length < 32 else 10 + (length - 32) // 16 if length < 64 else 12
        step += (length >= 128) + (length >= 256)
    return step * 8 + min(bits_set(misses), 3) * 2 + (misses & 1)
