"""The World tokenizer of RWKV: the longest token that matches comes next, over bytes, by a trie."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from livelm.config import Settings
from livelm.errors import ConfigError, ContractError
from livelm.types import Tokens

MARK = 0
"""End of text in RWKV's models, which also begin a text with it; no line of the file may define it."""
MAX_TOKEN_BYTES = 1024
"""Bounds what an encoder holds back; the longest token of the published file has 128 bytes."""
MAX_ID = (1 << 20) - 1  # a damaged file must not ask for a table of terabytes
MAX_FILE_BYTES = 64 << 20


class WorldConfig(Settings):
    """Which vocabulary, and how many rows the model's table has."""

    file: str
    """Path of rwkv_vocab_v20230424.txt or another file of that form: lines of id, Python literal, length in bytes."""
    n_vocabulary: Annotated[int, Field(ge=2, le=MAX_ID + 1)] = 65_536
    """Rows of the table: above the highest id; published models have 65,536."""


class World:
    """Greedy longest match; every byte is a token too, so any input is encoded and comes back exactly."""

    Config = WorldConfig
    adaptive = False
    mark = MARK

    def __init__(self, config: WorldConfig) -> None:
        """Load the file; raises ConfigError naming the line that is unfit, or what is missing."""
        self.config = config
        self.n_vocabulary = config.n_vocabulary
        tokens = _read_vocabulary(config.file, config.n_vocabulary)
        self._bytes = [tokens.get(id_, b"") for id_ in range(self.n_vocabulary)]
        self._n_bytes = np.array([len(text) for text in self._bytes], dtype=np.int32)
        self._trie = _Trie(tokens)

    def encoder(self) -> "WorldEncoder":
        """A fresh encoder for one document."""
        return WorldEncoder(self)

    def encode(self, text: bytes) -> Tokens:
        """Encode a whole document at once, without the mark; the same tokens as in pieces."""
        ids, _ = self._trie.match(text, final=True)
        return self._tokens(ids)

    def encode_certain(self, text: bytes) -> tuple[Tokens, bytes]:
        """The tokens of `text` that no later byte can change, and the bytes after them."""
        ids, stop = self._trie.match(text, final=False)
        return self._tokens(ids), text[stop:]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes these tokens stand for; the mark and ids that the file leaves out stand for none.

        Raises ContractError for an id outside the vocabulary.
        """
        values: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.n_vocabulary:
            raise ContractError(
                f"decode got ids from {values.min()} to {values.max()}; the vocabulary is 0 to {self.n_vocabulary - 1}."
            )
        return b"".join(map(self._bytes.__getitem__, values.tolist()))

    def _tokens(self, ids: list[int]) -> Tokens:
        numbers = np.array(ids, dtype=np.int32)
        return Tokens(numbers, self._n_bytes[numbers])


class WorldEncoder:
    """Holds back the bytes that may yet be the beginning of a longer token: fewer than the longest token has."""

    def __init__(self, tokenizer: World) -> None:
        self._tokenizer = tokenizer
        self._held = b""

    @property
    def held(self) -> bytes:
        """Bytes taken but not yet returned as tokens; they begin at a token, so feeding them restores this encoder."""
        return self._held

    def feed(self, piece: bytes) -> Tokens:
        """Take the next piece; return the tokens that no later byte can change."""
        tokens, self._held = self._tokenizer.encode_certain(self._held + piece)
        return tokens

    def finish(self) -> Tokens:
        """Return what was held back at the end of the document; the encoder is then fresh again."""
        held, self._held = self._held, b""
        return self._tokenizer.encode(held)


class _Trie:
    """Nodes are numbers: 0 is the root, each has its children by byte, and the id of the token that ends there."""

    def __init__(self, tokens: dict[int, bytes]) -> None:
        leaf: dict[int, int] = {}  # shared by the many nodes without children: never written to
        self._children = [{}]
        self._ids = [-1]
        for id_, text in tokens.items():
            node = 0
            for byte in text:
                if self._children[node] is leaf:
                    self._children[node] = {}
                child = self._children[node].get(byte)
                if child is None:
                    child = self._children[node][byte] = len(self._ids)
                    self._children.append(leaf)
                    self._ids.append(-1)
                node = child
            self._ids[node] = id_

    def match(self, text: bytes, *, final: bool) -> tuple[list[int], int]:
        """Ids of the longest matches one after another, and where they stop.

        Unless `final`, they stop before the first one that bytes after `text` could make longer.
        """
        children, ids = self._children, self._ids
        found: list[int] = []
        start, n = 0, len(text)
        while start < n:
            node, at, best, stop = 0, start, -1, start
            while at < n and (child := children[node].get(text[at])) is not None:
                node, at = child, at + 1
                if ids[node] >= 0:
                    best, stop = ids[node], at
            if at == n and children[node] and not final:
                break
            found.append(best)  # there always is one: single bytes are tokens
            start = stop
        return found, start


def _read_vocabulary(file: str, n_vocabulary: int) -> dict[int, bytes]:
    """The bytes of each id. Raises ConfigError."""
    tokens: dict[int, bytes] = {}
    for number, line in _lines(file):
        id_, text = _parse_line(line, f"tokenizer.file {file!r}, line {number}")
        if not MARK < id_ < n_vocabulary or id_ in tokens:
            why = "is defined twice" if id_ in tokens else f"is not between 1 and {n_vocabulary - 1}"
            raise ConfigError(
                f"tokenizer.file {file!r}, line {number}: id {id_} {why}. Is it a World vocabulary, and is "
                f"tokenizer.n_vocabulary = {n_vocabulary} above its highest id?"
            )
        tokens[id_] = text
    known = set(tokens.values())
    absent = [value for value in range(256) if bytes([value]) not in known]
    if absent:
        raise ConfigError(
            f"tokenizer.file {file!r} has tokens for {256 - len(absent)} of the 256 byte values "
            f"(0x{absent[0]:02x} is missing), so it cannot encode every input. Is the file complete?"
        )
    if len(known) < len(tokens):
        raise ConfigError(f"tokenizer.file {file!r} gives two ids to the same bytes, so encoding is not unique.")
    return tokens


def _lines(file: str) -> Iterator[tuple[int, str]]:
    path = Path(file).expanduser()
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"tokenizer.file {file!r} has {size:,} bytes; a vocabulary has at most {MAX_FILE_BYTES:,}."
            )
        text = path.read_bytes().decode()  # `read_text` would change a bare carriage return in a literal
    except OSError as error:
        raise ConfigError(
            f"tokenizer.file {file!r} cannot be read: {error.strerror}. Name RWKV's rwkv_vocab_v20230424.txt."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"tokenizer.file {file!r} is not UTF-8 text: {error}. Is it a World vocabulary?") from None
    # split at newlines only: literals hold characters that `splitlines` takes for the end of a line
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _parse_line(line: str, where: str) -> tuple[int, bytes]:
    """The id and the bytes of a line such as `257 '\\t\\t' 2`."""
    try:
        id_, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        if len(literal) > 8 * MAX_TOKEN_BYTES:
            raise ValueError("the literal is too long")
        value = ast.literal_eval(literal)
        text = value.encode() if isinstance(value, str) else value
        if not isinstance(text, bytes) or len(text) != int(length) or not 0 < len(text) <= MAX_TOKEN_BYTES:
            raise ValueError("the literal and its length do not agree")
        return int(id_), text
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ConfigError(
            f"{where} is {line[:60]!r}: {error}. A line is an id, a Python literal of 1 to {MAX_TOKEN_BYTES} bytes, "
            "and its length."
        ) from None
