"""Tokens back to bytes while they arrive: what begins a byte that is not all there waits for the rest."""

from collections.abc import Iterable, Sequence

from livelm.types import Divided, Tokenizer


class Decoder:
    """Decodes one stream of tokens in pieces of any size, as `Tokenizer.decode` would the whole of it."""

    def __init__(self, tokenizer: Tokenizer, held: Iterable[int] = ()) -> None:
        """Continue a decoder that held `held`."""
        self._tokenizer = tokenizer
        self._divided = tokenizer if isinstance(tokenizer, Divided) else None
        self.held = list(held)
        """Tokens taken whose byte is not whole yet; a fresh decoder that is given them goes on like this one."""

    def feed(self, ids: Sequence[int]) -> bytes:
        """The bytes that these tokens complete. Raises ContractError for an id outside the vocabulary."""
        if self._divided is None:
            return self._tokenizer.decode(ids)
        ids = [*self.held, *ids]
        n = self._divided.whole(ids)
        self.held = ids[n:]
        return self._tokenizer.decode(ids[:n]) if n else b""
