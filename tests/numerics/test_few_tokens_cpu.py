"""Blocks as one compiled function are the blocks of torch: costs, windows, state, gradients; and they are used."""

from typing import Any

import pytest
import torch
from tests.small_models import build, check_learned_alike, learn, note, read

from livelm.compiled import in_torch
from livelm.models.ops import few_tokens_cpu
from livelm.models.ops.few_tokens_cpu import limits
from livelm.models.transformer import Transformer

if torch.cuda.is_available():
    pytest.skip("models are built on the card here", allow_module_level=True)

SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "context": 40, "head_scale": 1.0}
VARIANTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "plain": (1, 48, SMALL),
    "tiny": (1, 48, SMALL | {"norm": "layer", "n_heads": 2, "context": 128, "ngrams": [2, 3], "ngram_rows": 512}),
    "lanes, shared keys, biases": (3, 37, SMALL | {"n_kv_heads": 2, "mlp_bias": True}),
    # few, because a number that rounding carries over the corner at zero has another gradient
    "corners": (2, 3, SMALL | {"activation": "relu", "mlp_bias": True}),
    "one token": (2, 1, SMALL | {"qk_norm": False}),
    "long": (1, 200, SMALL | {"d_ff": 96, "d_model": 96, "n_heads": 3}),
    "no vectors' multiple of keys": (1, 7, SMALL | {"context": 5, "n_layers": 1}),
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that could be compiled, whether it was."""
    return note(monkeypatch, few_tokens_cpu, "plan_for")


@pytest.mark.parametrize("n_batches", [1, 2, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_blocks_are_the_blocks_of_torch(variant: str, n_batches: int, used: list[bool]) -> None:
    n_lanes, n_tokens, options = VARIANTS[variant]
    batches = read(n_tokens, n_batches, n_lanes)
    with in_torch():
        wanted = learn(build(options), batches)
    assert not used
    check_learned_alike(learn(build(options), batches), wanted, 2e-5)
    assert used == [True] * n_batches


def test_a_batch_in_two_halves_predicts_the_same() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(64, 1)[0]
    with torch.no_grad():
        whole, _ = model.nats(tokens, starts, targets, model.init_state(1))
        first, state = model.nats(tokens[:, :30], starts[:, :30], targets[:, :30], model.init_state(1))
        second, _ = model.nats(tokens[:, 30:], starts[:, 30:], targets[:, 30:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_far_along_a_stream_positions_still_count() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    state = model.init_state(1)
    state["position"] += 3_000_000_019
    with torch.no_grad():
        found, _ = model.nats(tokens, starts, targets, state)
        with in_torch():
            wanted, _ = model.nats(tokens, starts, targets, state)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_stays_one() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[3, 5] = torch.nan
        nats, _ = model.nats(tokens, starts, targets, model.init_state(1))
    assert nats.isnan().all()


@pytest.mark.parametrize(
    "options",
    [{"gate": True}, {"rank": 8}, {"initial_state": "learned"}, {"d_model": 36, "n_heads": 3}, {"d_ff": 40 + 3}],
    ids=str,
)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any], used: list[bool]) -> None:
    learn(build(SMALL | options), read(16, 2))
    assert used == [False, False]


def fits(model: Transformer, n_tokens: int = 8) -> bool:
    tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
    return few_tokens_cpu.plan_for(model, tokens, model.init_state(1)) is not None


def test_many_tokens_and_other_types_are_left_to_torch() -> None:
    assert fits(build(SMALL))
    assert not fits(build(SMALL), limits.MOST_TOKENS + 1)
    assert not fits(build(SMALL).double())
    assert not fits(build(SMALL | {"tied": True, "token_table": "float32"}))


def test_a_state_of_other_shapes_is_left_to_torch_to_refuse() -> None:
    model, tokens = build(SMALL), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens, tokens == 1, model.init_state(1))
    state = model.init_state(2)
    state["keys.1"] = state["keys.1"].new_zeros(2, 3, 4, 16)
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens, tokens == 1, state)
    with pytest.raises(ValueError, match="starts"):
        model(tokens, (tokens == 1)[:, :5], model.init_state(2))
