"""What is kept of a stream is a uniform sample of all of it, never takes more than its budget, and survives a save."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livelm.errors import CheckpointError, ConfigError
from livelm.learn import load_checkpoint, save_checkpoint
from livelm.memory.drawing import chances, draw, importance
from livelm.memory.reservoir import Reservoir, Slice

N_CONTEXT, N_TOKENS = 3, 5


def piece(number: int, cost: float = 1.0) -> Slice:
    tokens = np.full(N_CONTEXT + N_TOKENS, number % 200)
    return Slice(tokens, np.ones(N_TOKENS, np.bool_), begin=0, n_bytes=N_TOKENS, at=number, cost=cost)


def reservoir(n_slices: int, n_vocabulary: int = 257) -> Reservoir:
    one = Reservoir(1 << 20, N_CONTEXT, N_TOKENS, n_vocabulary).slice_bytes
    return Reservoir(n_slices * one + one - 1, N_CONTEXT, N_TOKENS, n_vocabulary)


def held_bytes(kept: Reservoir) -> int:
    names = ("tokens", "wanted", "begin", "n_bytes", "at", "first", "surprise")
    return sum(kept.column(name).nbytes for name in names)


@pytest.mark.parametrize("n_vocabulary", [3, 257, 70_000])
def test_the_byte_budget_is_never_exceeded_and_not_wasted(n_vocabulary: int) -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"buffer_bytes is 40, but one slice of 3 \+ 5 tokens takes"):
        Reservoir(40, N_CONTEXT, N_TOKENS, n_vocabulary)
    for budget in (75, 300, 1000, 5001):
        kept = Reservoir(budget, N_CONTEXT, N_TOKENS, n_vocabulary)
        for number in range(300):
            kept.offer(piece(number), generator)
            assert held_bytes(kept) <= budget
        assert held_bytes(kept) > budget - kept.slice_bytes
        assert sum(column.nbytes for column in kept._columns.values()) <= budget, "reserved memory counts too"


def test_ids_of_every_vocabulary_come_back() -> None:
    for n_vocabulary in (3, 256, 257, 32_768, 32_769, 1 << 20):
        kept = reservoir(2, n_vocabulary)
        tokens = np.array([0, 1, 2, n_vocabulary - 1] * 2)
        kept.offer(Slice(tokens, np.ones(N_TOKENS, np.bool_), 0, 1, 0, 1.0), np.random.default_rng(0))
        assert kept.column("tokens")[0].tolist() == tokens.tolist()


def test_every_slice_is_as_likely_to_be_kept_as_any_other() -> None:
    n_slices, n_offers, n_trials = 8, 40, 4000
    counts = np.zeros(n_offers)
    for trial in range(n_trials):
        kept, generator = reservoir(n_slices), np.random.default_rng(trial)
        for number in range(n_offers):
            kept.offer(piece(number), generator)
        counts[kept.column("at")] += 1
        assert len(set(kept.column("at"))) == n_slices
    p = n_slices / n_offers
    deviations = (counts - n_trials * p) / math.sqrt(n_trials * p * (1 - p))
    assert abs(deviations).max() < 4  # of 40 normal ones: 0.3 % of all seeds
    assert abs((deviations**2).mean() - 1) < 0.8


@given(
    st.lists(st.floats(-1, 100) | st.sampled_from([math.nan, math.inf, 0.0]), min_size=1, max_size=30),
    st.floats(0, 4),
    st.floats(0.01, 1),
)
def test_chances_sum_to_one_and_each_has_its_uniform_share(surprise: list[float], alpha: float, share: float) -> None:
    chance = chances(np.array(surprise), alpha, share)
    assert chance.sum() == pytest.approx(1)
    assert (chance >= share / len(surprise) - 1e-12).all()
    assert (importance(chance, len(chance), 1.0) <= 1 / share + 1e-6).all()


def test_the_surprising_are_drawn_in_proportion() -> None:
    chance = chances(np.array([1.0, 2.0, 5.0]), 1.0, 0.01)
    assert chance == pytest.approx([0.01 / 3 + 0.99 * p / 8 for p in (1, 2, 5)])
    assert chances(np.array([1.0, 2.0, 5.0]), 2.0, 0.01)[2] == pytest.approx(0.01 / 3 + 0.99 * 25 / 30)
    assert chances(np.array([1.0, 2.0, 5.0]), 1.0, 1.0) == pytest.approx([1 / 3] * 3)
    assert chances(np.array([1.0, 2.0, 5.0]), 0.0, 0.5) == pytest.approx([1 / 3] * 3)


def test_draws_have_these_chances() -> None:
    chance = np.array([0.5, 0.0, 0.3, 0.2])
    rows = draw(chance, 40_000, np.random.default_rng(0))
    assert np.bincount(rows, minlength=4) / 40_000 == pytest.approx(chance, abs=0.012)
    assert (rows != 1).all()


def test_with_beta_one_the_weighted_mean_has_the_expectation_of_the_plain_mean() -> None:
    values, surprise = np.array([3.0, -1.0, 7.0, 0.5, 2.0]), np.array([0.1, 4.0, 1.0, 0.0, 9.0])
    chance = chances(surprise, 1.5, 0.1)
    expectation = {beta: float((chance * importance(chance, 5, beta) * values).sum()) for beta in (0.0, 0.5, 1.0)}
    assert expectation[1.0] == pytest.approx(values.mean())  # summed over all draws there are
    assert expectation[0.0] == pytest.approx(float((chance * values).sum()))
    assert abs(expectation[0.5] - values.mean()) > 0.1, "only beta 1 is free of bias"
    rows = draw(chance, 200_000, np.random.default_rng(1))
    assert (importance(chance[rows], 5, 1.0) * values[rows]).mean() == pytest.approx(values.mean(), abs=0.05)


def test_what_a_slice_costs_now_replaces_what_it_cost_unless_it_is_not_finite() -> None:
    kept, generator = reservoir(3), np.random.default_rng(0)
    for number in range(3):
        kept.offer(piece(number, cost=10.0 * (number + 1)), generator)
    assert kept.column("surprise").tolist() == [2, 4, 6]  # nats per token
    kept.refresh(np.array([0, 2]), np.array([0.5, math.nan]))
    assert kept.column("surprise").tolist() == [0.5, 4, 6]
    assert kept.column("first").tolist() == [2, 4, 6]


def test_a_saved_reservoir_goes_on_exactly(tmp_path: Path) -> None:
    whole, generator = reservoir(6), np.random.default_rng(3)
    for number in range(25):
        whole.offer(piece(number, cost=number), generator)
    path = save_checkpoint(tmp_path, 1, {"kept": whole.state_dict(), "random": generator.bit_generator.state}, keep=1)
    tree = load_checkpoint(path)
    again, twin = reservoir(6), np.random.default_rng(99)
    again.load_state_dict(tree["kept"])
    twin.bit_generator.state = tree["random"]
    for number in range(25, 60):
        assert whole.offer(piece(number), generator) == again.offer(piece(number), twin)
    for name in ("tokens", "wanted", "begin", "n_bytes", "at", "first", "surprise"):
        assert np.array_equal(whole.column(name), again.column(name))


def test_slices_of_another_form_or_too_many_are_refused() -> None:
    kept, generator = reservoir(6), np.random.default_rng(0)
    for number in range(6):
        kept.offer(piece(number), generator)
    for other in (reservoir(5), reservoir(6, 70_000), Reservoir(1 << 20, N_CONTEXT + 1, N_TOKENS, 257)):
        assert not other.fits(kept.state_dict())
        with pytest.raises(CheckpointError, match="another form"):
            other.load_state_dict(kept.state_dict())
    assert reservoir(7).fits(kept.state_dict())
