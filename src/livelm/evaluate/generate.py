"""Sample text from a model, one token at a time, by the very probabilities that it is graded with."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from livelm.errors import ConfigError
from livelm.learn import hear, read_only
from livelm.memory import CountMemory
from livelm.types import State, Tokenizer


def generate(
    model: Any,
    tokenizer: Tokenizer,
    prompt: bytes,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    memory: CountMemory | None = None,
) -> Iterator[bytes]:
    """Continue a document that begins with `prompt`: yield the bytes of one token after another, until its end.

    `model` is a `types.Model`; with a `memory` (over bytes only), what both say together is sampled, and without a
    model (None) what the memory says. The memory reads on in its first lane and learns nothing. The document ends
    where another one is said to begin. At temperature 0 the most probable token is taken. Raises ConfigError for a
    negative temperature.
    """
    if not temperature >= 0:
        raise ConfigError(f"--temperature is {temperature}; it must be 0 (most probable) or more. Try 1.")
    random = torch.Generator().manual_seed(seed)
    ids: Sequence[int] = [tokenizer.mark, *tokenizer.encode(prompt).ids.tolist()]
    state, start = model.init_state(1) if model is not None else {}, True
    while True:
        with torch.no_grad():  # not around the yield: the caller may learn meanwhile
            logits, state = _listen(model, memory, ids, start, state)
            token = _sample(logits, temperature, random)
        if token == tokenizer.mark:
            return
        yield tokenizer.decode([token])
        ids, start = [token], False


def _listen(
    model: Any, memory: CountMemory | None, ids: Sequence[int], start: bool, state: State
) -> tuple[Tensor, State]:
    """(V,) logits of the token after `ids`, which open a document if `start`, and the model's state after them."""
    if model is None:
        if memory is None:
            raise ConfigError("there is neither a model nor a memory to generate from.")
        read_only(memory, ids)
        return torch.from_numpy(memory.distribution()), state
    if memory is not None:
        return hear(model, memory, ids, start, state)
    tokens = torch.tensor([ids])
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, 0] = start
    logits, state = model.forward(tokens, starts, state)
    return logits[0, -1], state


def _sample(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.double() / temperature, -1), 1, generator=random))
