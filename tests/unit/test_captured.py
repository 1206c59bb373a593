"""Captured updates: the same numbers as plain ones, for forms that come again; a stand-in repeats the work on a CPU."""

import math
from typing import Any

import pytest
import torch
from tests.batches import batch_of
from torch import Tensor

from livelm.config import LearnSettings
from livelm.errors import ConfigError
from livelm.kernels import kernels, kernels_of
from livelm.learn import CapturedLearner, Learner
from livelm.learn.captured import Work, same
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.optim.deferred import _take_rows, _take_rows_on_cuda
from livelm.optim.rows import RowAdagrad
from livelm.types import Batch

VOCABULARY, MARK, N_TOKENS = 67, 66, 8
SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "factored": SMALL | {"tied": True, "token_table": "float32"},
    "ngrams": SMALL | {"ngrams": [2, 4], "ngram_rows": 101},
}


def again(work: Work, n_warm_up: int) -> Work:
    for _ in range(n_warm_up):
        work()
    return work


def random_batch(index: int, *, n_tokens: int = N_TOKENS, graded: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(MARK, (1, n_tokens), generator=generator)
    starts = torch.rand(1, n_tokens, generator=generator) < 1 / 12
    return batch_of(torch.where(starts, MARK, tokens), index, graded, starts=starts)


def build(kind: Any, variant: str = "plain") -> Any:
    torch.manual_seed(0)
    transformer = MODELS["transformer"]
    model = transformer(transformer.Config.model_validate(VARIANTS[variant]), VOCABULARY)
    adamw = OPTIMIZERS["adamw"]
    optimizer = adamw(adamw.Config(rate=0.01, deferred_every=4), model.parameter_kinds())
    shape = (1, VOCABULARY, MARK)
    own = (model, optimizer, lambda n: min(1.0, n / 8), LearnSettings(average_updates=8), shape)
    return kind(*own) if kind is Learner else kind(N_TOKENS, *own, capture=again)


def learn(learner: Learner, batches: list[Batch]) -> list[Tensor]:
    scores = []
    for batch in batches:
        scored = learner.score(batch)
        scores.append(scored.nats.clone())
        learner.update(scored)
    return scores


@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_updates_are_plain_ones(variant: str) -> None:
    batches = [random_batch(i, graded=None if i % 3 else torch.arange(N_TOKENS)[None] > 2) for i in range(14)]
    batches.insert(9, random_batch(99, n_tokens=5))  # a form that does not come again
    batches.insert(10, random_batch(98, graded=torch.zeros(1, N_TOKENS, dtype=torch.bool)))
    plain, captured = build(Learner, variant), build(CapturedLearner, variant)
    for one, other in zip(learn(plain, batches), learn(captured, batches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert captured._captured is not None
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert captured.n_updates == plain.n_updates


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("at", [1, 5, 10])
def test_a_resumed_learner_takes_the_same_path(variant: str, at: int) -> None:
    batches = [random_batch(i) for i in range(14)]
    whole = build(CapturedLearner, variant)
    expected = learn(whole, batches)
    first, second = (build(CapturedLearner, variant) for _ in range(2))
    learn(first, batches[:at])
    second.load_state_dict(first.state_dict())
    for one, other in zip(learn(second, batches[at:]), expected[at:], strict=True):
        assert torch.equal(one, other)


def test_what_is_held_out_or_dropped_teaches_nothing() -> None:
    learner = build(CapturedLearner)
    learn(learner, [random_batch(i) for i in range(8)])
    assert learner._captured is not None
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.refuse(learner.score(random_batch(8), "held out"), "held out")
    learner.refuse(learner.score(random_batch(9)), "the gate closed on it")
    learner.drop(learner.score(random_batch(10)))
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())
    learn(learner, [random_batch(11)])
    assert not all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_a_broken_prediction_is_graded_as_none_and_forgotten() -> None:
    learner = build(CapturedLearner)
    learn(learner, [random_batch(i) for i in range(8)])
    healthy = learner.model.blocks[0].mlp.up.weight.detach().clone()
    with torch.no_grad():
        learner.model.blocks[0].mlp.up.weight[0, 0] = math.nan
    scored = learner.score(random_batch(8))
    assert scored.bits == pytest.approx(N_TOKENS * math.log2(VOCABULARY))
    update = learner.update(scored)
    assert update.skipped == "the loss is not finite"
    with torch.no_grad():
        learner.model.blocks[0].mlp.up.weight.copy_(healthy)
    scores = learn(learner, [random_batch(i) for i in range(9, 16)])
    assert all(nats.isfinite().all() for nats in scores)
    assert learner._captured is not None


def test_an_exploding_gradient_is_refused() -> None:
    learner = build(CapturedLearner)
    learn(learner, [random_batch(i) for i in range(60)])
    learner._guard._log_norm -= math.log(1e6)
    before = learner.model.head.weight.detach().clone()
    update = learner.update(learner.score(random_batch(60)))
    assert "usual length" in (update.skipped or "")
    assert torch.equal(before, learner.model.head.weight)


def test_what_cannot_be_captured_is_an_error_that_says_what_to_do() -> None:
    learner = build(CapturedLearner)

    def fails(work: Work, n_warm_up: int) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for it.")

    learner.capture = fails
    with pytest.raises(ConfigError, match=r"cannot be captured.*is capturing\. Take run\.capture=false"):
        learn(learner, [random_batch(i) for i in range(8)])
    assert learner.n_updates > 0  # windows fill up before anything is captured


@pytest.mark.parametrize("n_pieces", [1, 3])
def test_rows_that_may_repeat_learn_what_distinct_rows_do(n_pieces: int) -> None:
    torch.manual_seed(0)
    named = [(torch.randint(5, (6,)), torch.randn(6, 4)) for _ in range(n_pieces)]
    products = [(torch.rand(6, 20), torch.randn(6, 4)) for _ in range(n_pieces)]
    twins = [(left.clone(), right.clone()) for left, right in products]
    rows, gradient = _take_rows(named, products)
    repeated, gradients = _take_rows_on_cuda(named, twins)
    assert torch.equal(repeated.unique(), rows)
    for row, found in zip(repeated, gradients, strict=True):
        torch.testing.assert_close(found, gradient[rows == row][0])
    for (left, _), (twin, _) in zip(products, twins, strict=True):
        assert torch.equal(left, twin)


def test_ngram_rows_learn_the_same_without_coalescing() -> None:
    torch.manual_seed(0)
    tables = [torch.nn.Parameter(torch.ones(7, 3)) for _ in range(2)]
    optimizers = [RowAdagrad([{"params": [table], "lr": 0.1}]) for table in tables]
    for _ in range(3):
        rows, values = torch.randint(7, (1, 9)), torch.randn(9, 3)
        for table in tables:
            table.grad = torch.sparse_coo_tensor(rows, values.clone(), table.shape)
        optimizers[0].step()
        with torch.no_grad():
            state = optimizers[1].state[tables[1]]
            state.setdefault("sum", torch.zeros(7, 3))
            optimizers[1]._step_rows(tables[1], state["sum"], tables[1].grad, optimizers[1].param_groups[0])  # type: ignore[arg-type]
        torch.testing.assert_close(tables[1], tables[0])


def by_kernels(found: float, message: str = "") -> Any:
    """Work that finds 1 and 2 without kernels, and something else with them."""

    def work() -> list[list[Tensor]]:
        if kernels_of("math") is None:
            return [[torch.tensor([1.0]), torch.tensor([2.0])]]
        if message:
            raise RuntimeError(message)
        return [[torch.tensor([1.0]), torch.tensor([found])]]

    return work


def test_kernels_that_agree_with_torch_are_used() -> None:
    assert same(by_kernels(2.01), "scoring")


@pytest.mark.parametrize("found", [2.5, math.nan, math.inf])
def test_kernels_that_err_on_this_card_are_not_used_and_a_warning_says_so(found: float) -> None:
    with pytest.warns(UserWarning, match="kernels for scoring err here"):
        assert not same(by_kernels(found), "scoring")


def test_kernels_that_do_not_compile_are_not_used_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="kernels for the step do not work here.*no compiler"):
        assert not same(by_kernels(2.0, "no compiler"), "the step")


def test_kernels_are_used_where_that_was_asked_for_and_nowhere_else() -> None:
    assert kernels_of("math") is None
    with kernels(True):
        assert kernels_of("math") is math
        assert kernels_of("no.such.module") is None
        with kernels(False):
            assert kernels_of("math") is None
        assert kernels_of("math") is math
    assert kernels_of("math") is None
