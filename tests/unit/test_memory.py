"""The count memory is causal, normalised, deterministic, of constant size, and goes on where it stopped."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from livelm import compiled
from livelm.errors import CheckpointError, ConfigError, ContractError
from livelm.memory import GRADE, LEARN, MARK, MARKS, Costs, CountMemory, CountMemorySettings

TEXT = (b"To be, or not to be, that is the question:\n" * 4 + b'{"level": "info", "took": 17}\n' * 6) * 2
SMALL = CountMemorySettings(budget_mib=64, history_mib=1)
LN_2 = float(np.log(2))


@pytest.fixture
def memory() -> CountMemory:
    return CountMemory(SMALL)


def flat(n: int) -> NDArray[np.float32]:
    return np.full((n, 257), -np.log(257), np.float32)


def pointing(text: bytes, p: float) -> NDArray[np.float32]:
    """A network that gives each byte that comes the probability `p`."""
    log_probs = np.full((len(text), 257), np.log((1 - p) / 256), np.float32)
    log_probs[np.arange(len(text)), np.frombuffer(text, np.uint8)] = np.log(p)
    return log_probs


def mix(memory: CountMemory, text: bytes, log_probs: NDArray[np.float32], mode: int = GRADE | LEARN) -> Costs:
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    modes = np.full(len(tokens), mode, np.int64)
    return memory.mix_bytes(memory.read(tokens, modes), tokens, modes, log_probs)


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Its arrays by name."""
    named = {f"{n}.{k}": v for n, entry in state.items() if isinstance(entry, dict) for k, v in entry.items()}
    return {name: value.numpy() for name, value in named.items() if isinstance(value, torch.Tensor)}


def test_a_later_byte_never_changes_an_earlier_cost(memory: CountMemory) -> None:
    changed = TEXT[:200] + b"\xff" + TEXT[201:]
    before = memory.score(TEXT)
    memory.reset()
    after = memory.score(changed)
    assert np.array_equal(before[:200], after[:200])
    assert before[200] != after[200]


def test_pieces_cost_what_the_whole_costs(memory: CountMemory) -> None:
    whole = memory.score(TEXT)
    memory.reset()
    pieces = [memory.score(TEXT[i : i + 7]) for i in range(0, len(TEXT), 7)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_a_distribution_sums_to_one_and_is_what_is_graded(memory: CountMemory) -> None:
    for i in range(0, 120, 3):
        log_probs = memory.distribution()
        assert log_probs.shape == (257,)
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-9)
        tokens = np.array([MARK] if i == 60 else list(TEXT[i : i + 3]))
        costs = memory.read(tokens, np.full(len(tokens), GRADE | LEARN | MARKS)).bits
        assert costs[0] == pytest.approx(-log_probs[tokens[0]] / LN_2, rel=1e-9)


def test_asking_changes_nothing(memory: CountMemory) -> None:
    memory.score(TEXT[:300])
    once = memory.distribution()
    assert np.array_equal(once, memory.distribution())
    costs = memory.score(TEXT[300:])
    memory.reset()
    memory.score(TEXT[:300])
    assert np.array_equal(costs, memory.score(TEXT[300:]))


def test_the_mixtures_distribution_sums_to_one_and_is_what_is_graded(memory: CountMemory) -> None:
    log_probs = pointing(TEXT, 0.6)
    every = GRADE | LEARN | MARKS
    mix(memory, TEXT[:200], log_probs[:200], every)
    for i in range(200, 220):
        expected = memory.distribution(log_probs=log_probs[i])
        assert np.exp(expected).sum() == pytest.approx(1, abs=1e-9)
        token = np.array([MARK if i == 210 else TEXT[i]])
        modes = np.array([every])
        cost = memory.mix_bytes(memory.read(token, modes), token, modes, log_probs[i : i + 1]).mixture[0]
        assert cost == pytest.approx(-expected[token[0]] / LN_2, rel=1e-6)


def test_the_counts_alone_cost_the_same_beside_a_network(memory: CountMemory) -> None:
    alone = memory.score(TEXT)
    memory.reset()
    assert np.array_equal(alone, mix(memory, TEXT, pointing(TEXT, 0.3)).counts)


def test_ends_of_documents_become_cheap_and_a_document_without_end_pays_next_to_nothing(memory: CountMemory) -> None:
    every = GRADE | LEARN | MARKS
    line = np.array([*b"level=info took=17\n", MARK])
    costs = [memory.read(line, np.full(len(line), every)).bits[-1] for _ in range(30)]
    assert costs[0] > 8
    assert costs[-1] < 0.3
    memory.reset()
    text = np.frombuffer(TEXT * 10, np.uint8).astype(np.int64)
    with_news = memory.read(text, np.full(len(text), every)).bits.sum()
    memory.reset()
    assert with_news - memory.read(text, np.full(len(text), GRADE | LEARN)).bits.sum() < 8


def test_what_is_only_read_counts_nowhere_but_is_the_past(memory: CountMemory) -> None:
    text = np.frombuffer(TEXT, np.uint8).astype(np.int64)
    memory.score(TEXT[:200])
    before = tensors(memory.state_dict())
    memory.read(text, np.zeros(len(text), np.int64))
    frozen = memory.read(text, np.full(len(text), GRADE | MARKS)).bits
    after = tensors(memory.state_dict())
    past = ("ring", "summary", "matches", "places")
    changed = {n.split(".")[0] for n in before if not np.array_equal(before[n], after[n])}
    assert changed == set(past)
    assert frozen[100:].mean() < 2.0  # the matches find what was read


def test_lanes_share_what_they_learn_and_not_their_past() -> None:
    memory = CountMemory(SMALL, n_lanes=2)
    tokens = np.frombuffer(TEXT, np.uint8).astype(np.int64)
    modes = np.full(len(tokens), GRADE | LEARN)
    memory.read(tokens, modes, 0)
    memory.begin_document(0)
    assert np.array_equal(memory.distribution(1), memory.distribution(0))
    memory.read(tokens[:50], modes[:50], 0)
    one = memory.distribution(1)
    assert not np.array_equal(one, memory.distribution(0))
    assert memory.read(tokens, modes, 1).bits.mean() < 1
    assert memory.bytes_of_state <= 64 << 20


def test_a_network_that_knows_helps_and_one_that_does_not_hardly_harms(memory: CountMemory) -> None:
    noise = random.Random(1).randbytes(3000)
    knowing = mix(memory, noise, pointing(noise, 0.9))
    assert knowing.mixture[1000:].mean() < 0.3 * knowing.counts[1000:].mean()
    memory.reset()
    ignorant = mix(memory, TEXT * 4, flat(len(TEXT) * 4))
    assert ignorant.mixture.mean() < 1.1 * ignorant.counts.mean()


def test_what_a_network_says_wrongly_is_survived(memory: CountMemory) -> None:
    log_probs = flat(len(TEXT))
    log_probs[::3] = np.nan
    log_probs[1::3] = -np.inf
    log_probs[2::3] = np.inf
    assert np.isfinite(mix(memory, TEXT, log_probs).mixture).all()


def test_a_wrong_shape_is_refused(memory: CountMemory) -> None:
    with pytest.raises(ContractError, match="257"):
        mix(memory, b"ab", flat(3))


def test_a_restored_memory_goes_on_exactly(memory: CountMemory) -> None:
    mix(memory, TEXT[:333], pointing(TEXT[:333], 0.5))
    state = memory.state_dict()
    assert sum(v.nbytes for v in tensors(state).values()) < memory.bytes_of_state / 2
    expected = mix(memory, TEXT[333:], pointing(TEXT[333:], 0.5))
    other = CountMemory(SMALL)
    other.score(TEXT[::-1])
    other.load_state_dict(state)
    found = mix(other, TEXT[333:], pointing(TEXT[333:], 0.5))
    assert np.array_equal(expected.mixture, found.mixture)
    ours, theirs = tensors(memory.state_dict()), tensors(other.state_dict())
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_other_settings_is_refused_and_changes_nothing(memory: CountMemory) -> None:
    before = memory.score(TEXT)
    memory.reset()
    with pytest.raises(CheckpointError, match="other settings"):
        memory.load_state_dict(CountMemory(CountMemorySettings(budget_mib=80, history_mib=1)).state_dict())
    assert np.array_equal(before, memory.score(TEXT))


def test_the_state_has_the_size_that_was_asked_for_and_keeps_it() -> None:
    memory = CountMemory(CountMemorySettings(budget_mib=128))
    size = memory.bytes_of_state
    assert 0.8 * (128 << 20) < size <= 128 << 20
    memory.score(random.Random(2).randbytes(50_000))
    assert memory.bytes_of_state == size


def test_a_history_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        CountMemory(CountMemorySettings(history_mib=3))
    with pytest.raises(ConfigError, match="sixteenth"):
        CountMemory(CountMemorySettings(history_mib=64))


def test_a_document_begins_without_what_came_before_but_with_what_was_learned(memory: CountMemory) -> None:
    memory.score(TEXT)
    memory.begin_document()
    one = memory.distribution()
    memory.begin_document()
    assert np.array_equal(one, memory.distribution())
    first = memory.score(TEXT).mean()
    memory.begin_document()
    assert memory.score(TEXT).mean() < first


@pytest.mark.parametrize("text", [b"", b"\0" * 3000, b"\n" * 3000, b'"' * 3000, bytes(range(256)) * 12, b"a{[(<" * 500])
def test_any_bytes_are_learned(memory: CountMemory, text: bytes) -> None:
    costs = memory.score(text)
    assert costs.shape == (len(text),)
    assert np.isfinite(costs).all()
    assert (costs >= 0).all()
    if text:
        assert costs[-500:].mean() < 0.2


def test_noise_costs_little_more_than_eight_bits(memory: CountMemory) -> None:
    assert memory.score(random.Random(3).randbytes(60_000)).mean() < 8 * 1.01


def test_tables_that_overflow_lose_little_and_break_nothing() -> None:
    memory = CountMemory(CountMemorySettings(budget_mib=64, history_mib=1))
    memory.score(random.Random(4).randbytes(60_000))
    memory.begin_document()
    assert memory.score(TEXT * 5)[-500:].mean() < 0.2


def test_machine_code_that_can_be_kept_nowhere_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(compiled, "_PackageCache", refuse)
    assert compiled.compiled(lambda x: x + 1)(2) == 3
