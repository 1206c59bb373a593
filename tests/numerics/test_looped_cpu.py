"""Compiled blocks in loops are the blocks of torch: costs, state, gradients of what is shared; and they are used."""

from typing import Any

import pytest
import torch
from tests.small_models import check_learned_alike, learn, lively, note, read
from torch import Tensor, nn

from livelm.compiled import in_torch
from livelm.models import looped_compiled
from livelm.models.looped import Looped

SMALL: dict[str, Any] = {"d_model": 64, "n_heads": 4, "context": 40, "head_scale": 1.0}
VARIANTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "plain": (1, 48, SMALL),
    "shared keys": (1, 48, SMALL | {"d_model": 96, "n_kv_heads": 2, "ngrams": [2, 3], "ngram_rows": 512}),
    "lanes": (3, 21, SMALL | {"n_loops": 3, "n_after": 0, "loop_embedding": True}),
    "other ends": (1, 16, SMALL | {"tied": True, "logit_cap": 20.0, "smear": "token", "bigram_rows": 64}),
}


def build(options: dict[str, Any]) -> Any:
    return lively(Looped, options)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that could be compiled, whether it was."""
    return note(monkeypatch, looped_compiled, "through")


@pytest.mark.parametrize("n_batches", [1, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_layers_are_the_layers_of_torch(variant: str, n_batches: int, used: list[bool]) -> None:
    n_lanes, n_tokens, options = VARIANTS[variant]
    batches = read(n_tokens, n_batches, n_lanes)
    with in_torch():
        wanted = learn(build(options), batches)
    assert not used
    check_learned_alike(learn(build(options), batches), wanted, 4e-5)
    assert used == [True] * n_batches


@pytest.mark.parametrize(
    "options",
    [
        {"residual_mix": True},
        {"branch_gain": True},
        {"query_gain": 1.5},
        {"n_valued": 2, "d_valued": 8},
        {"n_exclusive": 1},
        {"initial_state": "learned"},
        {"d_model": 36, "n_heads": 3},
    ],
    ids=str,
)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any], used: list[bool]) -> None:
    learn(build(SMALL | options), read(16, 2))
    assert used == [False, False]


def test_adapters_and_other_types_are_left_to_torch() -> None:
    def compiles(model: Looped) -> bool:
        tokens = torch.zeros(1, 8, dtype=torch.int64)
        return looped_compiled.through(model, tokens, tokens == 1, model.init_state(1)) is not None

    class Adapter(nn.Linear):
        pass

    assert compiles(build(SMALL))
    assert not compiles(build(SMALL).double())
    model = build(SMALL)
    model.blocks[1].up = Adapter(64, 256, bias=False)  # type: ignore[union-attr]
    assert not compiles(model)


def test_log_probabilities_are_those_of_the_logits() -> None:
    tokens, starts, targets = read(48, 1)[0]
    for options in (SMALL, SMALL | {"logit_cap": 20.0}):
        model = build(options)
        with torch.no_grad():
            nats, log_probs, _ = model.told(tokens, starts, targets, model.init_state(1))
            wanted: Tensor = torch.log_softmax(model(tokens, starts, model.init_state(1))[0], -1)
        torch.testing.assert_close(log_probs, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(nats, -wanted.gather(-1, targets[..., None])[..., 0], rtol=1e-4, atol=1e-5)
