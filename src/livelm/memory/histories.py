"""Bit histories: what a context has seen of one bit, in one byte: how many zeros and ones, and which came last.

A history is a pair of counts that forgets: when a bit comes, what speaks for its opposite is discounted, so a history
says more about the recent past than about the distant one. How probable a one is after each history is learned (a map
from history to probability, per context), which is what makes the histories pay: 0 0 0 0 1 means something else in a
sparse context than in a long one. After M. Mahoney, "The ZPAQ Open Standard Format", 2.0, section on bit histories.
"""

import numpy as np
from numpy.typing import NDArray

N_HISTORIES = 256

_LARGEST_BESIDE = (44, 30, 15, 9, 6, 5)
"""The largest count beside a smaller one of 0, 1, 2, ...: long runs are told apart finely, mixtures are not."""
_LAST_BIT_UP_TO = 16
"""Which bit came last is kept while the counts sum to no more than this."""

History = tuple[int, int, int]
"""(zeros, ones, last bit); the last bit is 0 where it is not kept or follows from the counts."""


def build_histories() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Number every reachable history, 0 being the empty one.

    Returns (256, 2) the history after a zero and after a one, and (256,) a first guess of the probability of a one.
    """
    numbers: dict[History, int] = {(0, 0, 0): 0}
    queue: list[History] = [(0, 0, 0)]
    after = np.zeros((N_HISTORIES, 2), np.uint8)
    guess = np.full(N_HISTORIES, 0.5, np.float32)
    for history in queue:  # grows while it is walked: breadth first, so short histories get small numbers
        zeros, ones, _ = history
        guess[numbers[history]] = (ones + 0.4) / (zeros + ones + 0.8)
        for bit in (0, 1):
            following = _follow(history, bit)
            if following not in numbers:
                numbers[following] = len(numbers)
                queue.append(following)
            after[numbers[history], bit] = numbers[following]
    return after, guess


def _follow(history: History, bit: int) -> History:
    same, other = (history[1], history[0]) if bit else (history[0], history[1])
    same, other = same + 1, _discount(other)
    while not _allowed(same, other):
        same, other = (same - 1, other) if same > other else (same, other - 1)
    zeros, ones = (other, same) if bit else (same, other)
    keeps_last = zeros > 0 and ones > 0 and zeros + ones <= _LAST_BIT_UP_TO
    return zeros, ones, bit if keeps_last else 0


def _discount(count: int) -> int:
    return count if count < 3 else (count + 7) // 3 if count < 8 else 4 + (count >= 16) + (count >= 28)


def _allowed(same: int, other: int) -> bool:
    small, large = min(same, other), max(same, other)
    return small < len(_LARGEST_BESIDE) and large <= _LARGEST_BESIDE[small]
