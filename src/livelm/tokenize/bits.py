"""One token per bit, most significant first, with an even parity bit after each byte if wanted; 2 is the mark."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from livelm.config import Settings
from livelm.errors import ContractError
from livelm.types import Tokens


class BitsConfig(Settings):
    """What follows the eight bits of a byte."""

    parity: Literal["none", "even"] = "none"
    """`even`: a ninth bit that makes the number of ones even, as BitTransformerLM has it; it tells nothing new."""


class Bits:
    """Tokens 0 and 1 are bits, 2 is the mark. The last token of each byte stands for it, the others for none."""

    Config = BitsConfig
    adaptive = False
    n_vocabulary = 3
    mark = 2

    def __init__(self, config: BitsConfig) -> None:
        self.config = config
        self.n_symbols = 9 if config.parity == "even" else 8
        """Tokens per byte."""

    def encoder(self) -> "BitsEncoder":
        """A fresh encoder for one document; it never holds anything back."""
        return BitsEncoder(self)

    def encode(self, text: bytes) -> Tokens:
        """Encode a whole document at once, without the mark: ids (n_symbols * len(text),)."""
        bits = np.unpackbits(np.frombuffer(text, dtype=np.uint8)).reshape(-1, 8)
        if self.n_symbols == 9:
            bits = np.concatenate([bits, bits.sum(axis=1, dtype=np.uint8, keepdims=True) & 1], axis=1)
        n_bytes = np.zeros(bits.shape, dtype=np.int32)
        n_bytes[:, -1] = 1
        return Tokens(bits.astype(np.int32).ravel(), n_bytes.ravel())

    def decode(self, ids: Sequence[int]) -> bytes:
        """The whole bytes these tokens stand for, counted from the start and from each mark; parity is not judged.

        Raises ContractError for an id outside the vocabulary.
        """
        values = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= self.mark:
            raise ContractError(f"decode got ids from {values.min()} to {values.max()}; bits are 0, 1 and {self.mark}.")
        stretches = np.split(values, np.flatnonzero(values == self.mark))
        return b"".join(self._bytes(stretch[stretch != self.mark]).tobytes() for stretch in stretches)

    def whole(self, ids: Sequence[int]) -> int:
        """How many of the first `ids` make whole bytes; those after them begin a byte that is not all there."""
        marks = np.flatnonzero(np.asarray(ids, dtype=np.int64) == self.mark)
        begin = int(marks[-1]) + 1 if marks.size else 0
        return len(ids) - (len(ids) - begin) % self.n_symbols

    def _bytes(self, bits: np.ndarray) -> np.ndarray:
        n = len(bits) // self.n_symbols
        return np.packbits(bits[: n * self.n_symbols].reshape(n, self.n_symbols)[:, :8].astype(np.uint8), axis=1)


class BitsEncoder:
    """Stateless: every byte becomes its bits the moment it arrives."""

    held = b""

    def __init__(self, tokenizer: Bits) -> None:
        self._tokenizer = tokenizer

    def feed(self, piece: bytes) -> Tokens:
        """All bits of the piece."""
        return self._tokenizer.encode(piece)

    def finish(self) -> Tokens:
        """Nothing was held back, so nothing comes."""
        return self._tokenizer.encode(b"")
