"""Lempel-Ziv complexity: how many phrases a sequence falls into when each is the shortest that is new."""

import math

import numpy as np
from numpy.typing import NDArray

from livelm.compiled import compiled

_TABLE = 1 << 16
"""Most entries of the table of k-grams, which decides k: pairs of bytes, sixteen bits."""


class PhraseCounter:
    """Counts phrases in compiled code; keeps its tables, so that a call costs nothing but the sequence's own length.

    The phrases are those of the exhaustive history of Lempel and Ziv (1976, "On the complexity of finite sequences",
    section II), the ones that Kaspar and Schuster (1987) count: from position i on, the shortest piece that does not
    begin anywhere before i; it may overlap what it repeats. What is left at the end counts as one.

    Earlier places are found by the k symbols they begin with, in chains. Exact; time is the length for random
    sequences, and at worst its square.
    """

    def __init__(self, n_symbols: int) -> None:
        """For sequences over 0 to `n_symbols` - 1; 2 to 256."""
        if not 2 <= n_symbols <= 256:
            raise ValueError(f"n_symbols is {n_symbols}; an alphabet has 2 to 256 symbols.")
        self.n_symbols = n_symbols
        self._k = int(math.log(_TABLE, n_symbols) + 1e-9)
        self._heads = np.full(n_symbols**self._k, -1, np.int32)
        shorter = sum(n_symbols**j for j in range(1, self._k))
        self._seen = np.zeros(max(shorter, 1), np.uint8)
        self._chain = np.empty(0, np.int32)

    def count(self, symbols: NDArray[np.uint8]) -> int:
        """Phrases of an (n,) sequence; 0 for an empty one. Raises ValueError for a symbol outside the alphabet."""
        if len(symbols) and int(symbols.max()) >= self.n_symbols:
            raise ValueError(f"symbol {int(symbols.max())} is outside an alphabet of {self.n_symbols}.")
        if len(self._chain) < len(symbols):
            self._chain = np.empty(len(symbols), np.int32)
        tables = (self._heads, self._chain, self._seen)
        return int(_count(np.ascontiguousarray(symbols), self.n_symbols, self._k, *tables))


def count_phrases_reference(symbols: bytes) -> int:
    """The definition, word for word: what `PhraseCounter.count` must give."""
    n_phrases = start = 0
    while start < len(symbols):
        stop = start + 1
        # reproducible: the piece also begins before `start` (it may run on into itself)
        while stop < len(symbols) and symbols.find(symbols[start:stop], 0, stop - 1) >= 0:
            stop += 1
        n_phrases, start = n_phrases + 1, stop
    return n_phrases


def complexity(n_phrases: int, n: int, n_symbols: int) -> float:
    """C = c log_A(n) / n, at most 1: phrases against those of a random sequence of A symbols, for long n.

    Lempel and Ziv (1976, theorem 2) prove c < n / ((1 - e_n) log_A n) with e_n falling to 0, and Kaspar and Schuster
    (1987) divide by n / log_A n. For short windows of many symbols e_n is not small: random bytes reach 0.7 to 0.8.
    0 for fewer than two symbols, which cannot be complex.
    """
    return min(1.0, n_phrases * math.log(n) / (n * math.log(n_symbols))) if n > 1 else 0.0


@compiled
def _count(symbols, n_symbols, k, heads, chain, seen):
    """Phrases; `heads` (-1) and `seen` (0) are left as they were found."""
    n, n_phrases, start, entered = len(symbols), 0, 0, 0
    while start < n:
        while entered < start:  # everything that begins before `start`
            code, level = 0, 0
            for j in range(1, min(k, n - entered) + 1):
                code = code * n_symbols + symbols[entered + j - 1]
                if j == k:
                    chain[entered], heads[code] = heads[code], entered
                else:
                    seen[level + code] = 1
                    level = (level + 1) * n_symbols
            entered += 1
        longest, code, level = 0, 0, 0
        for j in range(1, min(k, n - start) + 1):
            code = code * n_symbols + symbols[start + j - 1]
            if j < k:
                if seen[level + code] == 0:
                    break
                longest, level = j, (level + 1) * n_symbols
                continue
            place = heads[code]
            while place >= 0 and start + longest < n:
                # worth a look only if it agrees where the best so far ended
                if longest < k or symbols[place + longest] == symbols[start + longest]:
                    length = k
                    while start + length < n and symbols[place + length] == symbols[start + length]:
                        length += 1
                    longest = max(longest, length)
                place = chain[place]
        n_phrases += 1
        start += longest + 1
    for at in range(entered):  # only what was touched: the tables are far larger than a window
        code, level = 0, 0
        for j in range(1, min(k, n - at) + 1):
            code = code * n_symbols + symbols[at + j - 1]
            if j == k:
                heads[code] = -1
            else:
                seen[level + code] = 0
                level = (level + 1) * n_symbols
    return n_phrases
