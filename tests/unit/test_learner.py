"""Score first: only what was graded may teach, each thing once, and a broken update changes nothing."""

import copy
import math
from typing import Any

import pytest
import torch
from tests.batches import batch_of
from torch import Tensor, nn

from livelm.config import LearnSettings
from livelm.errors import CheckpointError, ContractError
from livelm.learn import Guard, Learner, load_checkpoint, save_checkpoint
from livelm.learn.average import EVERY, Average
from livelm.learn.guard import WARM_UP
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.types import Batch, Scored

VOCABULARY, MARK = 17, 16


def random_batch(index: int, n_tokens: int = 8, lanes: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(index)
    return batch_of(torch.randint(0, MARK, (lanes, n_tokens), generator=generator), index)


def make_learner(lanes: int = 1, **settings: Any) -> Learner:
    torch.manual_seed(0)
    kind = MODELS["transformer"]
    model = kind(kind.Config(d_model=16, n_layers=1, n_heads=2, context=16), VOCABULARY)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(rate=0.01), model.parameter_kinds())
    return Learner(model, optimizer, lambda n: 1.0, LearnSettings(**settings), (lanes, VOCABULARY, MARK))


def weights(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.model.state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_scoring_changes_no_weight_and_updating_does() -> None:
    learner = make_learner()
    before = weights(learner)
    scored = learner.score(random_batch(0))
    assert equal(weights(learner), before)
    learner.update(scored)
    assert not equal(weights(learner), before)


def test_the_first_score_is_a_uniform_guess() -> None:
    scored = make_learner().score(random_batch(0, 64))
    assert scored.bits / scored.n_tokens == pytest.approx(math.log2(VOCABULARY), abs=0.1)


def test_what_was_not_scored_here_teaches_nothing() -> None:
    learner, other = make_learner(), make_learner()
    foreign = other.score(random_batch(0))
    forged = Scored(seal=object(), batch=random_batch(0), nats=torch.zeros(1, 8), sum_nats=0.0, loss=torch.zeros(()))
    before = weights(learner)
    for wrong in (foreign, forged, random_batch(0)):
        with pytest.raises(ContractError, match="takes what this learner scored"):
            learner.update(wrong)  # type: ignore[arg-type]
    assert equal(weights(learner), before)


def test_a_batch_teaches_once() -> None:
    learner = make_learner()
    scored = learner.score(random_batch(0))
    learner.update(scored)
    with pytest.raises(ContractError, match="teaches once"):
        learner.update(scored)


def test_no_batch_is_scored_before_the_last_was_learned() -> None:
    learner = make_learner()
    learner.score(random_batch(0))
    with pytest.raises(ContractError, match="before batch 0 was learned"):
        learner.score(random_batch(1))


def test_a_later_token_never_changes_an_earlier_score() -> None:
    one, two = random_batch(3, 12), random_batch(3, 12)
    two.tokens[0, 7] = (two.tokens[0, 7] + 1) % MARK
    a, b = make_learner(), make_learner()
    for learner in (a, b):
        learner.update(learner.score(random_batch(1)))
    assert torch.equal(a.score(one).nats[:, :7], b.score(two).nats[:, :7])


def test_what_is_not_graded_costs_nothing_and_teaches_nothing() -> None:
    tokens = random_batch(5).tokens
    graded = torch.tensor([[True] * 4 + [False] * 4])
    learner, twin = make_learner(), make_learner()
    scored = learner.score(batch_of(tokens, graded=graded))
    assert float(scored.nats[0, 4:].sum()) == 0
    learner.update(scored)
    twin.update(twin.score(batch_of(tokens[:, :4])))
    for name, value in weights(learner).items():
        torch.testing.assert_close(value, weights(twin)[name], atol=1e-4, rtol=1e-3)


def test_a_batch_without_anything_graded_changes_no_weight() -> None:
    learner = make_learner()
    before = weights(learner)
    nothing = batch_of(random_batch(0).tokens, graded=torch.zeros(1, 8, dtype=torch.bool))
    scored = learner.score(nothing)
    learner.update(scored)
    assert scored.bits == 0
    assert equal(weights(learner), before)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    tokens = random_batch(0).tokens
    tokens[0, 3] = wrong
    with pytest.raises(ContractError, match="vocabulary ends at 16"):
        make_learner().score(batch_of(tokens))


def test_another_number_of_lanes_is_refused() -> None:
    with pytest.raises(ContractError, match="3 lanes"):
        make_learner(lanes=2).score(random_batch(0, lanes=3))


class Broken(nn.Module):
    """Predicts NaN, with a state of NaN, whenever token 3 was read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def init_state(self, n_lanes: int) -> dict[str, Tensor]:
        return {"seen": torch.zeros(n_lanes)}

    def nats(self, tokens: Tensor, starts: Tensor, targets: Tensor, state: dict[str, Tensor]) -> Any:
        seen = state["seen"] + torch.where(tokens == 3, math.nan, 0.0).sum(1)
        return self.w + torch.ones(tokens.shape) + seen[:, None], {"seen": seen}


def broken_learner() -> Learner:
    model = Broken()
    optimizer = torch.optim.SGD([{"params": [model.w], "base_rate": 0.1}], lr=0.1)
    return Learner(model, optimizer, lambda n: 1.0, LearnSettings(), (1, VOCABULARY, MARK))


def test_a_prediction_that_is_not_finite_is_graded_as_uniform_skipped_and_forgotten() -> None:
    learner = broken_learner()
    scored = learner.score(batch_of(torch.tensor([[1, 3, 1, 1]])))
    assert scored.bits == pytest.approx(4 * math.log2(VOCABULARY))
    update = learner.update(scored)
    assert update.skipped == "the loss is not finite"
    assert float(learner.model.w) == 0.0  # type: ignore[arg-type]
    after = learner.score(batch_of(torch.tensor([[1, 1, 1, 1]]), 1))
    assert after.bits == pytest.approx(4 / math.log(2))
    assert learner.update(after).skipped is None


def test_the_guard_refuses_an_explosion_and_lets_a_changed_stream_in() -> None:
    guard = Guard(LearnSettings(explosion=10))
    assert all(guard.judge(1.0) is None for _ in range(WARM_UP + 10))
    assert "usual length" in (guard.judge(1000.0) or "")
    assert guard.judge(1.0) is None
    verdicts = [guard.judge(1000.0) for _ in range(400)]
    assert verdicts[0] is not None
    assert verdicts[-1] is None


def test_rates_follow_the_schedule() -> None:
    learner = make_learner()
    learner._rate_factor = lambda n: 0.5 / (n + 1)
    rates = [learner.update(learner.score(random_batch(i))).rate for i in range(2)]
    assert rates == pytest.approx([0.005, 0.0025])


def test_a_checkpoint_restores_the_learner_to_equal_bits(tmp_path: Any) -> None:
    learner = make_learner()
    for i in range(5):
        learner.update(learner.score(random_batch(i)))
    path = save_checkpoint(tmp_path, 5, learner.state_dict(), keep=2)
    expected = [learner.update(learner.score(random_batch(i))) for i in range(5, 9)]
    other = make_learner()
    other.load_state_dict(load_checkpoint(path))
    assert [other.update(other.score(random_batch(i))) for i in range(5, 9)] == expected
    assert equal(weights(other), weights(learner))


def test_an_average_changes_no_score_and_no_weight() -> None:
    learner, other = make_learner(average_updates=20), make_learner()
    for i in range(30):
        assert learner.update(learner.score(random_batch(i))) == other.update(other.score(random_batch(i)))
    assert equal(weights(learner), weights(other))


def test_the_average_is_the_written_formula() -> None:
    learner = make_learner(average_updates=64)
    expected = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    for i in range(1, 20 * EVERY + 1):
        learner.update(learner.score(random_batch(i)))
        if i % EVERY == 0:
            share = min(1.0, max(EVERY / 64, 4 * EVERY / i))  # first over the last quarter of what was seen
            expected = {n: (1 - share) * expected[n] + share * p.detach() for n, p in learner.model.named_parameters()}
    last = weights(learner)
    learner.settle(learner.state_dict())
    assert not equal(weights(learner), last)
    for name, value in expected.items():
        torch.testing.assert_close(weights(learner)[name], value)


def test_an_average_goes_on_from_a_checkpoint_to_equal_bits(tmp_path: Any) -> None:
    learner = make_learner(average_updates=50)
    for i in range(EVERY + 3):
        learner.update(learner.score(random_batch(i)))
    state = load_checkpoint(save_checkpoint(tmp_path, 1, learner.state_dict(), keep=2))
    other = make_learner(average_updates=50)
    other.load_state_dict(state)
    for each in (learner, other):
        for i in range(EVERY + 3, 9 * EVERY):
            each.update(each.score(random_batch(i)))
        each.settle(each.state_dict())
    assert equal(weights(other), weights(learner))


@pytest.mark.parametrize(("settings", "n"), [({}, 3 * EVERY), ({"average_updates": 20}, EVERY - 1)])
def test_without_an_average_the_last_weights_are_taken(settings: dict[str, Any], n: int) -> None:
    learner = make_learner(**settings)
    for i in range(n):
        learner.update(learner.score(random_batch(i)))
    last = weights(learner)
    learner.settle(learner.state_dict())
    assert equal(weights(learner), last)


def test_tables_that_are_changed_by_the_row_are_not_averaged() -> None:
    table, matrix = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    average = Average([{"kind": "rows", "params": [table]}, {"kind": "matrix", "params": [matrix]}], 100)
    for _ in range(EVERY):
        with torch.no_grad():
            table.add_(1)
            matrix.add_(1)
        average.take()
    with torch.no_grad():
        matrix.add_(1)
    average.put()
    assert torch.equal(table, torch.full((4,), float(EVERY)))
    assert torch.equal(matrix, torch.full((4,), float(EVERY)))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Any) -> None:
    for i in range(5):
        save_checkpoint(tmp_path, i, {"a": torch.ones(2)}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_in_a_checkpoint_is_found_and_named(tmp_path: Any, name: str) -> None:
    path = save_checkpoint(tmp_path, 1, {"a": torch.arange(100.0), "b": [1, {"c": 2.5}]}, keep=2)
    data = bytearray((path / name).read_bytes())
    for at in range(0, len(data), 7):
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        (path / name).write_bytes(spoiled)
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path)
    (path / name).write_bytes(data)
    assert load_checkpoint(path)["b"] == [1, {"c": 2.5}]


@pytest.mark.parametrize(("schema", "said"), [(99, "schema 99.*Upgrade livelm"), (1, "schema 1 .*earlier livelm")])
def test_a_checkpoint_of_another_schema_is_refused(tmp_path: Any, schema: int, said: str) -> None:
    path = save_checkpoint(tmp_path, 1, {"a": 1}, keep=2)
    manifest = (path / "manifest.json").read_text().replace('"schema": 2', f'"schema": {schema}')
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_named() -> None:
    learner = make_learner()
    state = learner.state_dict()
    some = next(iter(state["model"]))
    state["model"]["extra"] = torch.ones(1)
    state["model"][some] = torch.ones(3)
    with pytest.raises(CheckpointError, match="extra is unknown"):
        learner.load_weights(state)
    with pytest.raises(CheckpointError, match=r"is \(3,\)"):
        learner.load_weights(state)
