"""RWKV-7 as one compiled function is that of torch: costs, state, gradients; and it is used."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.small_models import check_learned_alike, learn, lively, note, read

from livelm.compiled import in_torch
from livelm.models.ops import rwkv7_cpu
from livelm.models.ops.rwkv7_cpu.states import WIDTHS
from livelm.models.rwkv7 import RWKV7

if torch.cuda.is_available():
    pytest.skip("batches are read on the card here", allow_module_level=True)

SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 2, "d_head": 32, "head_scale": 1.0}
VARIANTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "recipe": (1, 64, SMALL),
    "lanes": (3, 37, SMALL | {"n_layers": 3}),
    "one token": (2, 1, SMALL),
    "a few": (2, 7, SMALL | {"d_model": 32, "d_head": WIDTHS[0]}),
    "one layer, ranks": (
        1,
        20,
        SMALL | {"n_layers": 1, "decay_rank": 16, "rate_rank": 48, "gate_rank": 64, "d_ff": 96},
    ),
    "whole segments": (1, 32, SMALL | {"d_head": 64, "value_rank": 16}),
    "long": (1, 200, SMALL | {"d_model": 128, "d_head": WIDTHS[-1], "n_layers": 1}),
}


def build(options: dict[str, Any]) -> RWKV7:
    return lively(RWKV7, options)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that could be compiled, whether it was."""
    return note(monkeypatch, rwkv7_cpu, "plan_for")


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_blocks_are_the_blocks_of_torch(variant: str, n_batches: int, used: list[bool]) -> None:
    n_lanes, n_tokens, options = VARIANTS[variant]
    batches = read(n_tokens, n_batches, n_lanes)
    with in_torch():
        wanted = learn(build(options), batches)
    assert not used
    check_learned_alike(learn(build(options), batches), wanted, 2e-5)
    assert used == [True] * n_batches


def test_it_is_as_exact_as_torch() -> None:
    """Both against float64: what they differ by is rounding."""
    batches = read(64, 2)
    with in_torch():
        truth, rough = learn(build(SMALL).double(), batches), learn(build(SMALL), batches)
    found = learn(build(SMALL), batches)
    for name, gradient in truth[2].items():
        errors = [float((of[2][name].double() - gradient).norm() / gradient.norm()) for of in (found, rough)]
        assert errors[0] <= 3 * errors[1] + 1e-6, (name, errors)


@pytest.mark.parametrize("places", [[0], [15], [16], [63], [0, 1, 2], [14, 15, 16, 17], list(range(64))], ids=str)
def test_a_document_may_start_anywhere(places: list[int]) -> None:
    batches = read(64, 2, 2)
    for _, starts, _ in batches:
        starts.zero_()
    batches[-1][1][0, places] = True
    with in_torch():
        wanted = learn(build(SMALL), batches)
    check_learned_alike(learn(build(SMALL), batches), wanted, 2e-5)


def test_steep_logits_of_decays_and_rates_are_those_of_torch() -> None:
    def steep() -> RWKV7:
        model = build(SMALL)
        with torch.no_grad():
            for block in model.blocks:
                for weight in (block.att.w1, block.att.w2, block.att.a2, block.att.g1):  # type: ignore[union-attr]
                    weight.mul_(8)  # type: ignore[operator]
        return model

    batches = read(64, 2)
    with in_torch():
        wanted = learn(steep(), batches)
    check_learned_alike(learn(steep(), batches), wanted, 1e-4)


def test_what_lay_in_memory_before_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = read(37, 2, 3)
    wanted = learn(build(SMALL), batches)
    spoilt = SimpleNamespace(empty=lambda n, kind: np.full(n, np.nan, kind), float32=np.float32)
    monkeypatch.setattr(rwkv7_cpu, "np", spoilt)
    found = learn(build(SMALL), batches)
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(gradient, wanted[2][name]) for name, gradient in found[2].items())


def test_a_batch_in_two_halves_predicts_the_same() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(64, 1)[0]
    with torch.no_grad():
        whole, _ = model.nats(tokens, starts, targets, model.init_state(1))
        first, state = model.nats(tokens[:, :30], starts[:, :30], targets[:, :30], model.init_state(1))
        second, _ = model.nats(tokens[:, 30:], starts[:, 30:], targets[:, 30:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_what_it_says_is_what_it_costs() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(64, 1, 2)[0]
    with torch.no_grad():
        wanted, _ = model.nats(tokens, starts, targets, model.init_state(2))
        nats, log_probs, _ = model.told(tokens, starts, targets, model.init_state(2))
        with in_torch():
            logits, _ = model(tokens, starts, model.init_state(2))
    assert torch.equal(nats, wanted)
    torch.testing.assert_close(log_probs, logits.log_softmax(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ffn.key.weight", "att.w2", "att.x_rwkvag"])
def test_what_is_not_a_number_stays_one(name: str) -> None:
    model, (tokens, starts, targets) = build(SMALL), read(64, 1)[0]
    with torch.no_grad():
        dict(model.blocks[0].named_parameters())[name][3, 5] = torch.nan
    nats, _ = model.nats(tokens, starts, targets, model.init_state(1))
    assert nats.isnan().all()
    nats.mean().backward()
    assert model.emb.weight.grad is not None
    assert model.emb.weight.grad.isnan().any()


def test_a_document_does_not_hear_what_was_not_a_number_before_it() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(64, 1)[0]
    starts[0, 0] = True
    state = {name: tensor * torch.nan for name, tensor in model.init_state(1).items()}
    with torch.no_grad():
        nats, _ = model.nats(tokens, starts, targets, state)
        wanted, _ = model.nats(tokens, starts, targets, model.init_state(1))
    assert torch.equal(nats, wanted)


@pytest.mark.parametrize(
    "options",
    [{"initial_state": "learned"}, {"initial_state": "offset"}, {"d_head": 4}, {"d_ff": 43}, {"gate_rank": 5}],
    ids=str,
)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any], used: list[bool]) -> None:
    learn(build(SMALL | {"d_model": 32, "d_head": 16} | options), read(16, 2))
    assert used == [False, False]


def fits(model: RWKV7, n_tokens: int = 8) -> bool:
    tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
    return rwkv7_cpu.plan_for(model, tokens, model.init_state(1)) is not None


def test_many_tokens_and_other_types_are_left_to_torch() -> None:
    assert fits(build(SMALL))
    assert not fits(build(SMALL), rwkv7_cpu.MOST_TOKENS + 1)
    assert not fits(build(SMALL).double())


def test_a_state_of_other_shapes_is_left_to_torch_to_refuse(used: list[bool]) -> None:
    model, tokens = build(SMALL), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        model(tokens, tokens == 1, model.init_state(3))
    state = model.init_state(2)
    state["matrix.1"] = state["matrix.1"].new_zeros(2, 2, 32, 16)
    with pytest.raises(RuntimeError):
        model(tokens, tokens == 1, state)
    del state["matrix.1"]
    with pytest.raises(KeyError):
        model(tokens, tokens == 1, state)
    assert not any(used)
    with pytest.raises(ValueError, match="starts"):
        model(tokens, (tokens == 1)[:, :5], model.init_state(2))
