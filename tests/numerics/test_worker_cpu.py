"""The worker model as one compiled function is that of torch: costs, state, gradients; and it is used."""

from typing import Any

import pytest
import torch
from tests.small_models import N_VOCABULARY, check_learned_alike, learn, lively, note, read

from livelm.compiled import in_torch
from livelm.models.ops import worker_cpu
from livelm.models.worker import Worker

if torch.cuda.is_available():
    pytest.skip("batches are read on the card here", allow_module_level=True)

SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "context": 40, "stride": 8, "head_scale": 1.0}
VARIANTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "recipe": (1, 128, SMALL | {"n_heads": 2, "context": 256, "ngrams": [2, 3], "ngram_rows": 512}),
    "every token": (2, 37, SMALL | {"stride": 1}),
    "every second": (3, 48, SMALL | {"stride": 2, "ngrams": [2, 4], "ngram_rows": 128}),
    "lanes": (4, 19, SMALL | {"stride": 3, "context": 7}),
    "many lanes": (20, 9, SMALL),
    "one token": (2, 1, SMALL),
    "one token, seldom": (1, 1, SMALL),
    "fewer than a stride": (3, 7, SMALL | {"n_taps": 2}),
    "long": (1, 300, SMALL | {"d_ff": 96, "d_model": 96, "n_heads": 3, "n_taps": 6, "n_layers": 3}),
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that could be compiled, whether it was."""
    return note(monkeypatch, worker_cpu, "plan_for")


def build(options: dict[str, Any]) -> Any:
    return lively(Worker, options)


def compare(batches: list[Any], options: dict[str, Any]) -> None:
    with in_torch():
        wanted = learn(build(options), batches)
    check_learned_alike(learn(build(options), batches), wanted, 2e-5)


@pytest.mark.parametrize("n_batches", [1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_compiled_model_is_that_of_torch(variant: str, n_batches: int, used: list[bool]) -> None:
    n_lanes, n_tokens, options = VARIANTS[variant]
    compare(read(n_tokens, n_batches, n_lanes), options)
    assert used == [True] * n_batches


@pytest.mark.parametrize("phase", range(8))
def test_at_every_phase_of_what_was_carried(phase: int) -> None:
    first, second = (torch.randint(N_VOCABULARY, (2, n)) for n in (phase + 1, 13))
    batches = [(x, torch.zeros_like(x, dtype=torch.bool), x.roll(1)) for x in (first, second)]
    compare(batches, SMALL)


@pytest.mark.parametrize("often", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("n_tokens", [7, 40])
def test_documents_that_begin_anywhere(often: float, n_tokens: int) -> None:
    """With one at every token there is no worker: what only workers have then gets zeros, or no gradient at all."""
    generator = torch.Generator().manual_seed(n_tokens)
    batches = []
    for _ in range(3):
        tokens = torch.randint(N_VOCABULARY, (2, n_tokens), generator=generator)
        starts = torch.rand(tokens.shape, generator=generator) < often
        batches.append((tokens, starts, tokens.roll(1)))
    found = learn(build(SMALL), batches)
    with in_torch():
        wanted = learn(build(SMALL), batches)
    idle = [name for name, gradient in wanted[2].items() if not gradient.any()]
    assert all(not found[2].pop(name).any() and wanted[2].pop(name) is not None for name in idle)
    check_learned_alike(found, wanted, 2e-5)


def test_where_no_worker_could_be_its_weights_have_no_part() -> None:
    model, tokens = build(SMALL), torch.zeros(1, 5, dtype=torch.int64)
    nats, _ = model.nats(tokens, tokens != 0, tokens, model.init_state(1))
    nats.mean().backward()
    assert model.blocks[0].ask.weight.grad is None
    assert model.blocks[0].local.project.weight.grad is not None


def test_what_is_told_costs_what_is_graded() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    with torch.no_grad():
        logits, _ = model(tokens, starts, model.init_state(1))
        nats, log_probs, _ = model.told(tokens, starts, targets, model.init_state(1))
    torch.testing.assert_close(log_probs, logits.log_softmax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nats, -log_probs.gather(-1, targets[..., None])[..., 0], rtol=1e-5, atol=1e-5)


def test_far_along_a_document_ages_still_count() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    state = model.init_state(1)
    state["age"] += 3_000_000_019
    with torch.no_grad():
        found, _ = model.nats(tokens, starts & False, targets, state)
        with in_torch():
            wanted, _ = model.nats(tokens, starts & False, targets, state)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["up", "tell", "ask", "local.project"])
def test_what_is_not_a_number_stays_one_and_spoils_nothing_else(name: str) -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    with torch.no_grad():
        model.blocks[0].get_submodule(name).weight[3, 5] = torch.nan
        found, _ = model.nats(tokens, starts, targets, model.init_state(1))
        with in_torch():
            wanted, _ = model.nats(tokens, starts, targets, model.init_state(1))
    assert found.isnan().any()
    assert torch.equal(found.isnan(), wanted.isnan())


def test_what_lies_before_a_document_may_be_anything() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(16, 1)[0]
    starts[:, 0] = True
    state, spoiled = model.init_state(1), model.init_state(1)
    for name in ("local.0", "local.last", "told.1"):
        spoiled[name] += torch.nan
    with torch.no_grad():
        found, _ = model.nats(tokens, starts, targets, spoiled)
        wanted, _ = model.nats(tokens, starts, targets, state)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("what", ["a weight", "the state"])
def test_what_changes_before_it_is_differentiated_is_noticed(what: str) -> None:
    model, (tokens, starts, targets) = build(SMALL), read(48, 1)[0]
    state = model.init_state(1)
    nats, _ = model.nats(tokens, starts, targets, state)
    with torch.no_grad():
        (model.blocks[0].up.weight if what == "a weight" else state["local.0"]).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nats.mean().backward()


@pytest.mark.parametrize(
    "options", [{"initial_state": "learned"}, {"d_model": 36, "n_heads": 3}, {"d_ff": 43}], ids=str
)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any], used: list[bool]) -> None:
    learn(build(SMALL | options), read(16, 2))
    assert used == [False, False]


def fits(model: Any, n_tokens: int = 8) -> bool:
    tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
    return worker_cpu.plan_for(model, tokens, model.init_state(1)) is not None


def test_many_tokens_and_other_types_are_left_to_torch() -> None:
    assert fits(build(SMALL))
    assert not fits(build(SMALL), worker_cpu.MOST_TOKENS + 1)
    assert not fits(build(SMALL | {"stride": 1}), worker_cpu.MOST_TOKENS)
    assert not fits(build(SMALL).double())


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
