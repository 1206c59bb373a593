"""One token per byte: 256 values and a document mark."""

from collections.abc import Sequence

import numpy as np

from livelm.config import Settings
from livelm.errors import ContractError
from livelm.types import Tokens


class BytesConfig(Settings):
    """Nothing to set: the alphabet is fixed."""


class Bytes:
    """Token number = byte value; 256 is the mark."""

    Config = BytesConfig
    adaptive = False
    n_vocabulary = 257
    mark = 256

    def __init__(self, config: BytesConfig) -> None:
        self.config = config

    def encoder(self) -> "BytesEncoder":
        """A fresh encoder for one document; it never holds anything back."""
        return BytesEncoder()

    def encode(self, text: bytes) -> Tokens:
        """Encode a whole document at once, without the mark: ids (len(text),)."""
        return _tokens(text)

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes these tokens stand for; the mark stands for none.

        Raises ContractError for an id outside the vocabulary.
        """
        values = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= self.mark:
            raise ContractError(f"decode got ids from {values.min()} to {values.max()}; bytes are 0 to {self.mark}.")
        return values[values != self.mark].astype(np.uint8).tobytes()


class BytesEncoder:
    """Stateless: every byte is a token the moment it arrives."""

    held = b""

    def feed(self, piece: bytes) -> Tokens:
        """One token for each byte of the piece."""
        return _tokens(piece)

    def finish(self) -> Tokens:
        """Nothing was held back, so nothing comes."""
        return _NOTHING


def _tokens(text: bytes) -> Tokens:
    ones = _ONES[: len(text)] if len(text) <= len(_ONES) else np.ones(len(text), dtype=np.int32)
    return Tokens(np.frombuffer(text, dtype=np.uint8).astype(np.int32), ones)


_ONES = np.ones(64 << 10, dtype=np.int32)  # shared by all that is tokenised, so nobody may write into it
_ONES.flags.writeable = False
_NOTHING = _tokens(b"")
