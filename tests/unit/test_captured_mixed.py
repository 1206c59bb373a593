"""A captured network with counts mixed in, or beside it: the same grades as op by op; a stand-in repeats the work."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.batches import batch_of
from tests.unit.test_captured import again
from tests.unit.test_mixed import TEXT, Pairs
from torch import Tensor

from livelm.config import LearnSettings, load_recipe
from livelm.learn import CAPTURED, BesideLearner, Learner, MixedBitLearner, MixedLearner
from livelm.memory import CountMemory, CountMemorySettings
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.parts import build_parts
from livelm.tokenize import Bits
from livelm.tokenize.bits import BitsConfig
from livelm.types import Batch, Scored, Update

N_TOKENS = 16
KINDS = {"bytes": MixedLearner, "bits": MixedBitLearner, "pairs": BesideLearner}


def build(symbols: str, *, captured: bool, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    n_vocabulary, mark = {"bytes": (257, 256), "bits": (3, 2), "pairs": (258, 256)}[symbols]
    transformer = MODELS["transformer"]
    options = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 32}
    model = transformer(transformer.Config.model_validate(options), n_vocabulary).to(device)
    adamw = OPTIMIZERS["adamw"]
    optimizer = adamw(adamw.Config(rate=0.01), model.parameter_kinds())
    own = (model, optimizer, lambda n: 1.0, LearnSettings(average_updates=8), (1, n_vocabulary, mark))
    before: Any = {"bytes": (), "bits": (Bits(BitsConfig()),), "pairs": (Pairs(),)}[symbols]
    memory = CountMemory(CountMemorySettings(budget_mib=64, history_mib=1))
    kind = KINDS[symbols]
    if not captured:
        return kind(*before, memory, *own)
    learner: Any = CAPTURED[kind](*before, memory, N_TOKENS, *own)
    if device == "cpu":
        learner.capture = again
    return learner


def batches(symbols: str, n: int) -> list[Batch]:
    if symbols == "bits":
        ids = torch.from_numpy(Bits(BitsConfig()).encode(TEXT).ids).long()
    elif symbols == "pairs":
        ids = torch.tensor([i for word in TEXT.split(b"th") for i in (257, *word)])
    else:
        ids = torch.tensor([*TEXT])
    parts = ids[: n * N_TOKENS].split(N_TOKENS)
    graded = [torch.ones(1, N_TOKENS, dtype=torch.bool) for _ in parts]
    graded[n - 2][0, :8] = False  # the first byte of the bits
    return [batch_of(part[None], i, graded[i]) for i, part in enumerate(parts)]


def learn(learner: Any, read: list[Batch]) -> tuple[list[Scored], list[Update]]:
    scored, updates = [], []
    for batch in read:
        scored.append(learner.score(batch))
        updates.append(learner.update(scored[-1]))
    return scored, updates


@pytest.mark.parametrize("symbols", KINDS)
def test_captured_updates_are_plain_ones(symbols: str) -> None:
    read = batches(symbols, 14)
    read.insert(9, batch_of(read[9].tokens[:, :8], 99))  # a form that does not come again
    plain, captured = (build(symbols, captured=captured) for captured in (False, True))
    (wanted, updates), (found, made) = learn(plain, read), learn(captured, read)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other.nats, one.nats, rtol=1e-5, atol=1e-5)
        assert other.alone == pytest.approx(one.alone, rel=1e-5)
        assert (other.taught, other.loss) == (one.taught, None)
    for one, other in zip(updates, made, strict=True):
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
        assert other.skipped == one.skipped
    assert captured._captured is not None
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("symbols", KINDS)
@pytest.mark.parametrize("at", [1, 8])
def test_a_resumed_learner_takes_the_same_path(symbols: str, at: int) -> None:
    read = batches(symbols, 12)
    expected, _ = learn(build(symbols, captured=True), read)
    first, second = (build(symbols, captured=True) for _ in range(2))
    learn(first, read[:at])
    second.load_state_dict(first.state_dict())
    found, _ = learn(second, read[at:])
    for one, other in zip(expected[at:], found, strict=True):
        assert torch.equal(one.nats, other.nats)
        assert one.alone == other.alone


@pytest.mark.parametrize("symbols", ["bytes", "bits"])
def test_a_network_that_breaks_is_survived(symbols: str) -> None:
    read = batches(symbols, 12)
    learner = build(symbols, captured=True)
    learn(learner, read[:6])
    weight: Tensor = learner.model.blocks[0].mlp.up.weight
    healthy = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = math.nan
    scored = learner.score(read[6])
    assert math.isfinite(scored.bits)
    assert learner.update(scored).skipped == "the loss is not finite"
    with torch.no_grad():
        weight.copy_(healthy)
    found, updates = learn(learner, read[7:])
    assert all(scored.nats.isfinite().all() for scored in found)
    assert updates[-1].skipped is None
    assert learner._captured is not None


def test_what_is_refused_teaches_neither() -> None:
    read = batches("bytes", 12)
    learner = build("bytes", captured=True)
    learn(learner, read[:6])
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.refuse(learner.score(read[6], "held out"), "held out")
    learner.refuse(learner.score(read[7]), "the gate closed on it")
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())
    learn(learner, read[8:9])
    assert not all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (["memory.budget_mib=96"], MixedLearner),
        (["memory.budget_mib=96", "tokenizer.name=bits"], MixedBitLearner),
        (["memory.name=none"], Learner),
    ],
)
def test_a_run_on_a_card_takes_the_captured_kind(settings: list[str], kind: Any) -> None:
    recipe = load_recipe(None, "tiny", [*settings, "model.ngrams=[]"])
    parts = build_parts(recipe)
    for device, capture, expected in (("cpu", True, kind), ("cuda", True, CAPTURED[kind]), ("cuda", False, kind)):
        run = recipe.run.model_copy(update={"device": device, "capture": capture})
        there = replace(parts, recipe=recipe.model_copy(update={"run": run}))
        assert type(there.learner(lambda: 0.0)) is expected
