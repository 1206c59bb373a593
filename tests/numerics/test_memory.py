"""The compiled count memory says what its slow twin says."""

import random

import numpy as np
import pytest

from livelm.memory import GRADE, LEARN, MARK, MARKS, CountMemory, CountMemorySettings
from livelm.memory.contexts import INDEX
from livelm.memory.histories import build_histories
from livelm.memory.join import Heard, build_heard, hear, join_reference, logits_of_marks
from livelm.memory.presets import PRESETS
from livelm.memory.reference import score_reference
from livelm.memory.slots import COUNT_LIMIT, COUNTED_UP_TO, build_rates, update_counter

PROSE = b"The sea was calm. The sea was not calm; the wind, it said, was calm.\n" * 3
LOG = b"".join(b'2026-01-0%d 12:0%d:11 node-%d {"key": [%d, "v"]}\n' % (i, i, i % 3, i * 7) for i in range(6))
NOISE = random.Random(0).randbytes(300)


@pytest.mark.parametrize(
    "text", [PROSE, LOG, NOISE, bytes(300), b"ab" * 150], ids=["prose", "log", "noise", "nul", "ab"]
)
def test_the_kernel_equals_its_slow_twin(text: bytes) -> None:
    costs = CountMemory(CountMemorySettings()).score(text)
    expected = score_reference([INDEX[name] for name in PRESETS["fast"]], text)
    np.testing.assert_allclose(costs, expected, atol=2e-2)  # a map's cell may round to the next of 4096 steps
    assert abs(costs.mean() - np.mean(expected)) < 1e-3


def test_every_context_equals_its_slow_twin() -> None:
    costs = CountMemory(CountMemorySettings(contexts="rich")).score(PROSE[:120])
    np.testing.assert_allclose(
        costs, score_reference([INDEX[name] for name in PRESETS["rich"]], PROSE[:120]), atol=2e-2
    )


def test_a_counter_counts_on_slowly_and_moves_less_the_more_it_has_seen() -> None:
    after, rates = build_histories()[0], build_rates()
    word, uses, chooser = 0, 0, random.Random(5)
    while word >> 18 & 63 < COUNT_LIMIT:
        word = int(update_counter.py_func(word, int(chooser.random() < 0.3), after, rates))
        uses += 1
        assert uses == word >> 18 & 63 or uses > COUNTED_UP_TO
    assert 100 < uses < 800
    assert (np.diff(rates) < 0).all()
    assert word & 0x3FFFF == pytest.approx(0.3 * 0x3FFFF, rel=0.3)


def test_every_history_leads_to_a_history_and_opposite_bits_mirror() -> None:
    after, guess = build_histories()
    reachable = {0}
    queue = [0]
    for state in queue:
        for following in after[state].tolist():
            if following not in reachable:
                reachable.add(following)
                queue.append(following)
    assert reachable == set(range(len(reachable)))
    zeros = ones = 0
    for _ in range(60):
        zeros, ones = int(after[zeros, 0]), int(after[ones, 1])
        assert guess[zeros] == pytest.approx(1 - guess[ones], rel=1e-5)
        assert guess[ones] > 0.5


def heard_of(log_probs: np.ndarray, tokens: np.ndarray, modes: np.ndarray) -> Heard:
    heard = build_heard(len(tokens))
    for array in (*heard[:3], *heard.expected):
        array.fill(99)  # whatever was in memory
    hear(log_probs.astype(np.float32), tokens, modes, np.full(512, np.nan), heard)
    return heard


def test_what_is_heard_of_a_network_equals_plain_sums() -> None:
    drawn = np.random.default_rng(0)
    log_probs = drawn.normal(0, 6, (200, MARK + 1))
    log_probs = (log_probs - np.log(np.exp(log_probs).sum(1, keepdims=True))).astype(np.float32)
    log_probs[0, :MARK] = log_probs[0, 0]  # all are as probable: the first counts
    tokens, modes = drawn.integers(0, MARK + 1, 200), drawn.choice([0, MARKS, GRADE, GRADE | LEARN | MARKS], 200)
    tokens[5] = tokens[17] = MARK
    heard = heard_of(log_probs, tokens, modes)
    p = np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(heard.flag_logits, logits_of_marks(log_probs[:, MARK]), rtol=1e-12)
    np.testing.assert_allclose(heard.bits, np.where(modes & GRADE, -np.log2(p[np.arange(200), tokens]), 0.0), atol=1e-9)
    assert np.array_equal(heard.expected.top, p[:, :MARK].argmax(1))
    assert np.array_equal(heard.expected.sure, np.minimum(7, p[:, :MARK].max(1) * 8).astype(int))
    leaves = np.maximum(p[:, :MARK], 1e-7)
    for at in np.flatnonzero(tokens < MARK):
        for b in range(8):
            middle, width = ((int(tokens[at]) >> 8 - b << 1) + 1) << 7 - b, 1 << 7 - b
            ones, zeros = leaves[at, middle : middle + width].sum(), leaves[at, middle - width : middle].sum()
            assert heard.bit_logits[at, b] == pytest.approx(np.log(ones / zeros), abs=1e-9)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_a_network_says_wrongly_is_heard_as_numbers(wrong: float) -> None:
    tokens, modes = np.array([0, 255, 7, MARK]), np.full(4, GRADE | MARKS)
    log_probs = np.full((4, MARK + 1), -np.log(MARK + 1))
    log_probs[np.arange(3), tokens[:3]] = log_probs[3] = wrong
    heard = heard_of(log_probs, tokens, modes)
    assert np.array_equal(heard.bits, np.full(4, 8.0))
    assert np.isfinite(heard.bit_logits).all()
    assert np.isfinite(heard.flag_logits).all()
    assert heard.expected.top.min() >= 0
    assert heard.expected.top.max() < MARK
    assert heard.expected.sure.min() >= 0
    assert heard.expected.sure.max() <= 7


def test_joining_a_network_equals_its_slow_twin() -> None:
    tokens = np.array([*LOG[:150], MARK, *PROSE[:150], MARK, *NOISE[:60]])
    modes = np.full(len(tokens), GRADE | LEARN | MARKS)
    modes[200:210] = 0
    modes[-20:] = GRADE | MARKS
    network = np.random.default_rng(0).normal(0, 3, (len(tokens), MARK + 1))
    network[np.arange(len(tokens)), tokens] += 6
    network = (network - np.log(np.exp(network).sum(1, keepdims=True))).astype(np.float32)
    memory = CountMemory(CountMemorySettings(budget_mib=64, history_mib=1))
    said = memory.read(tokens, modes)
    costs = memory.mix_bytes(said, tokens, modes, network)
    expected = join_reference(tokens, modes, network, said)
    np.testing.assert_allclose(costs.mixture, expected, atol=5e-3)
    assert abs(costs.mixture.mean() - expected.mean()) < 1e-4
    assert costs.mixture.mean() < costs.counts.mean()
