"""Sample text, one token at a time, by the very probabilities with which it would be graded."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from livelm.errors import ConfigError
from livelm.learn import listen
from livelm.memory import CountMemory
from livelm.tokenize.decoder import Decoder
from livelm.types import Tokenizer


def generate(
    model: Any,
    tokenizer: Tokenizer,
    prompt: bytes,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    memory: CountMemory | None = None,
) -> Iterator[bytes]:
    """Continue a document that begins with `prompt`: yield what each token completes, until its end.

    `model` is a `types.Model`; with a `memory`, what both say together is sampled (over bytes or bits; else it has no
    part), and without a model (None) what the memory says. The memory reads on in its first lane and learns nothing.
    The document ends where another one is said to begin. At temperature 0 the most probable token is taken. Raises
    ConfigError for a negative temperature.
    """
    if not temperature >= 0:
        raise ConfigError(f"--temperature is {temperature}; it must be 0 (most probable) or more. Try 1.")
    random = torch.Generator().manual_seed(seed)
    ids: Sequence[int] = [tokenizer.mark, *tokenizer.encode(prompt).ids.tolist()]
    listener, decoder = listen(model, memory, tokenizer), Decoder(tokenizer)
    while True:
        with torch.no_grad():  # not around the yield: the caller may learn meanwhile
            token = _sample(listener.hear(ids), temperature, random)
        if token == tokenizer.mark:
            return
        yield decoder.feed([token])
        ids = [token]


def _sample(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.double() / temperature, -1), 1, generator=random))
