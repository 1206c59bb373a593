"""Sample text from a model, one token at a time, by the very probabilities that it is graded with."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from livelm.errors import ConfigError
from livelm.tokenize.decoder import Decoder
from livelm.types import Tokenizer


def generate(
    model: Any, tokenizer: Tokenizer, prompt: bytes, *, temperature: float = 1.0, seed: int = 0
) -> Iterator[bytes]:
    """Continue a document that begins with `prompt`: yield what each token completes, until its end.

    `model` is a `types.Model`. The document ends where the model says that another one begins. At temperature 0 the
    most probable token is taken. Raises ConfigError for a negative temperature.
    """
    if not temperature >= 0:
        raise ConfigError(f"--temperature is {temperature}; it must be 0 (most probable) or more. Try 1.")
    random = torch.Generator().manual_seed(seed)
    ids: Sequence[int] = [tokenizer.mark, *tokenizer.encode(prompt).ids.tolist()]
    state, start, decoder = model.init_state(1), True, Decoder(tokenizer)
    with torch.no_grad():
        while True:
            tokens = torch.tensor([ids])
            starts = torch.zeros_like(tokens, dtype=torch.bool)
            starts[0, 0] = start
            logits, state = model.forward(tokens, starts, state)
            token = _sample(logits[0, -1], temperature, random)
            if token == tokenizer.mark:
                return
            yield decoder.feed([token])
            ids, start = [token], False


def _sample(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.double() / temperature, -1), 1, generator=random))
