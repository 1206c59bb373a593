"""Any byte-level BPE tokenizer.json, made exact over bytes: invalid UTF-8, hostile text and any cut included."""

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from livelm.config import Settings
from livelm.errors import ConfigError, ContractError
from livelm.tokenize.segments import split_segments
from livelm.tokenize.tokenizer_json import Vocabulary, read_vocabulary
from livelm.types import Tokens

MARKS = (
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",  # DeepSeek: full-width bars, low blanks
    "<|startoftext|>",
    "<|im_start|>",
    "<bos>",
    "<s>",
    "<eos>",
    "</s>",
)
"""Names under which tokenizers keep a token for the border of a text, in the order they are looked for."""

_PROBE = "A  tokenizer\tkeeps\r\n\r\n  all: 12345 it's, naïve — 漢字 \u3000 e\u0301 \uff23\x00\x7f\n\n<s>\n".encode()
_INVALID = re.compile("([\udc80-\udcff]+)")  # what `surrogateescape` makes of bytes that are not UTF-8


class BpeConfig(Settings):
    """Which tokenizer, and how many rows the model's table has."""

    file: str
    """Path of a Hugging Face tokenizer.json."""
    n_vocabulary: int | None = None
    """Rows of the table; None: the highest id of the file + 1. Every id that text can produce must fit, and the mark.
    A table smaller than the file's special tokens need is fine: text never produces those."""
    mark: str | None = None
    """The text of the token that opens every document; None: the first known name that fits, else an id of its own."""


class Bpe:
    """Byte-level BPE. A special token's name in the text is encoded as text, never as the special id."""

    Config = BpeConfig
    adaptive = False

    def __init__(self, config: BpeConfig) -> None:
        """Load the file; raises ConfigError if it is unfit or the vocabulary does not fit `n_vocabulary`."""
        self.config = config
        vocabulary = read_vocabulary(config.file)
        self._library = vocabulary.library
        self.mark, self.n_vocabulary = _place_mark(config, vocabulary)
        self._bytes = [vocabulary.plain.get(id_, b"") for id_ in range(self.n_vocabulary)]  # reserved: no byte
        self._n_bytes = np.array([len(text) for text in self._bytes], dtype=np.int32)
        self._bytes_to_id = np.array(vocabulary.bytes_to_id, dtype=np.int32)
        if self._join(self._encode_text(_PROBE.decode())) != _PROBE:
            raise ConfigError(
                f"tokenizer.file {config.file!r} loses bytes: a probe text does not come back as it went in. "
                "A pre-tokenizer that removes or rewrites text cannot be used."
            )

    def encoder(self) -> "BpeEncoder":
        """A fresh encoder for one document."""
        return BpeEncoder(self)

    def encode(self, text: bytes) -> Tokens:
        """Encode a whole document at once, without the mark; the same tokens as in pieces."""
        segments, rest = split_segments(text)
        return self.encode_segments([*segments, rest])

    def encode_segments(self, segments: Sequence[bytes]) -> Tokens:
        """Encode segments, each on its own, in one call of the library.

        The library takes only valid UTF-8; other bytes become single-byte tokens, and so does a part whose tokens do
        not give back its bytes (a pre-tokenizer that drops something the probe did not contain).
        """
        parts = [part for segment in segments for part in _split_invalid(segment)]
        valid = [part for part in parts if not _INVALID.match(part)]
        encodings = iter(self._library.encode_batch_fast(valid, add_special_tokens=False))
        ids = [self._single(part) if _INVALID.match(part) else next(encodings).ids for part in parts]
        flat = list(chain.from_iterable(ids))
        if self._join(flat) != b"".join(segments):
            flat = list(chain.from_iterable(map(self._repair, parts, ids)))
        numbers = np.array(flat, dtype=np.int32)
        return Tokens(numbers, self._n_bytes[numbers])

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes these tokens stand for; the mark and other special tokens stand for none.

        Raises ContractError for an id outside the vocabulary.
        """
        values: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.n_vocabulary:
            raise ContractError(
                f"decode got ids from {values.min()} to {values.max()}; the vocabulary is 0 to {self.n_vocabulary - 1}."
            )
        return self._join(values.tolist())

    def _encode_text(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def _join(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))

    def _repair(self, part: str, ids: list[int]) -> list[int]:
        return ids if self._join(ids) == _to_bytes(part) else self._single(part)

    def _single(self, part: str) -> list[int]:
        """One token per byte."""
        return self._bytes_to_id[np.frombuffer(_to_bytes(part), dtype=np.uint8)].tolist()


class BpeEncoder:
    """Holds back the last segment until its end is certain: at most about 4 KB, in text with spaces about 70 bytes."""

    def __init__(self, tokenizer: Bpe) -> None:
        self._tokenizer = tokenizer
        self._held = b""

    @property
    def held(self) -> bytes:
        """Bytes taken but not yet returned as tokens; they begin at a cut, so a fresh encoder fed them is this one."""
        return self._held

    def feed(self, piece: bytes) -> Tokens:
        """Take the next piece; return the tokens that no later byte can change."""
        segments, self._held = split_segments(self._held + piece)
        return self._tokenizer.encode_segments(segments)

    def finish(self) -> Tokens:
        """Return what was held back at the end of the document; the encoder is then fresh again."""
        held, self._held = self._held, b""
        return self._tokenizer.encode_segments([held])


def _split_invalid(segment: bytes) -> list[str]:
    """Runs of valid UTF-8 and runs of other bytes (as surrogates), in order; encoded surrogates count as other."""
    try:
        return [segment.decode()]
    except UnicodeDecodeError:
        return [part for part in _INVALID.split(segment.decode("utf-8", "surrogateescape")) if part]


def _to_bytes(part: str) -> bytes:
    return part.encode("utf-8", "surrogateescape")


def _place_mark(config: BpeConfig, vocabulary: Vocabulary) -> tuple[int, int]:
    """The mark's id and the vocabulary size; the mark is never an id that text can produce."""
    last, n = max(vocabulary.plain), config.n_vocabulary
    if n is not None and n <= last:
        raise ConfigError(
            f"tokenizer.n_vocabulary is {n}, but text encoded with {config.file!r} produces ids up to {last}. "
            f"Set it to {last + 2} or more (those and a mark), or leave it out."
        )
    fits = {name: id_ for name, id_ in vocabulary.reserved.items() if n is None or id_ < n}
    if config.mark is not None:
        if config.mark not in fits:
            raise ConfigError(
                f"tokenizer.mark is {config.mark!r}, which is not a special token of {config.file!r}"
                f"{'' if n is None else f' below {n}'}. It has: {', '.join(sorted(fits)[:8]) or 'none'}."
            )
        return fits[config.mark], n or vocabulary.highest + 1
    known = next((fits[name] for name in MARKS if name in fits), None)
    if known is not None:
        return known, n or vocabulary.highest + 1
    if n is None:
        return vocabulary.highest + 1, vocabulary.highest + 2
    free = next((id_ for id_ in chain(range(last + 1, n), range(last)) if id_ not in vocabulary.plain), None)
    if free is None:
        raise ConfigError(
            f"tokenizer.n_vocabulary is {n}, and text encoded with {config.file!r} uses all of it: no id is left "
            f"for the mark. Set it to {n + 1} or more."
        )
    return free, n
