"""A memory and a network learn together: graded first, exactly resumable, never by what was dropped."""

import itertools
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from livelm.config import LearnSettings, load_recipe
from livelm.errors import CheckpointError, ConfigError, ContractError
from livelm.evaluate.generate import generate
from livelm.evaluate.grade import grade
from livelm.learn import (
    BesideLearner,
    MemoryLearner,
    MixedBitLearner,
    MixedLearner,
    listen,
    load_checkpoint,
    save_checkpoint,
)
from livelm.learn.bytes_of_bits import BIT_MARK
from livelm.learn.mixed import modes_of
from livelm.memory import MARK, CountMemory, CountMemorySettings
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.parts import build_parts
from livelm.tokenize import TOKENIZERS, Bits
from livelm.tokenize.bits import BitsConfig
from livelm.types import LN_2, Batch, Scored

SETTINGS = CountMemorySettings(budget_mib=64, history_mib=1)
TEXT = b"The wind was calm; the sea, it said, was not calm at all.\n" * 8
SMALL: dict[str, dict[str, Any]] = {
    "bit": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16},
    "looped": {"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "context": 16},
    "rwkv7": {"d_model": 16, "n_layers": 1, "d_head": 8},
    "transformer": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16},
    "worker": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16},
}


def batch_of(text: bytes, index: int = 0, ungraded: slice = slice(0, 0), *, opens: bool = False) -> Batch:
    tokens = torch.tensor([[*([MARK] if opens else []), *text]])
    graded = torch.ones_like(tokens, dtype=torch.bool)
    graded[0, ungraded] = False
    starts = torch.zeros_like(graded)
    starts[0, 0] = opens
    n_bytes = (graded & (tokens != MARK)).long()
    return Batch(
        tokens=tokens, starts=starts, graded=graded, n_bytes=n_bytes, index=index, spans=(), begun=(), cursor=None
    )


def make_learner(name: str = "transformer", memory: CountMemory | None = None) -> MixedLearner:
    torch.manual_seed(0)
    kind = MODELS[name]
    model = kind(kind.Config(**SMALL[name]), MARK + 1)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(rate=0.01), model.parameter_kinds())
    shape = (1, MARK + 1, MARK)
    return MixedLearner(memory or CountMemory(SETTINGS), model, optimizer, lambda n: 1.0, LearnSettings(), shape)


def learn(learner: Any, text: bytes, size: int = 40) -> list[float]:
    costs = []
    for index, at in enumerate(range(0, len(text), size)):
        scored = learner.score(batch_of(text[at : at + size], index))
        costs.append(scored.bits)
        learner.update(scored)
    return costs


@pytest.fixture(scope="module")
def memory() -> CountMemory:
    return CountMemory(SETTINGS)


@pytest.fixture(params=sorted(SMALL))
def learner(request: pytest.FixtureRequest, memory: CountMemory) -> MixedLearner:
    memory.reset()
    return make_learner(request.param, memory)


def test_what_is_graded_is_the_mixture_of_257_outcomes_that_sum_to_one(learner: MixedLearner) -> None:
    learn(learner, TEXT[:160])
    learner.freeze()
    for text, opens in ((b"T", False), (b"\xff", False), (b"", True), (b"x", False)):
        asked = _asked(learner)
        assert float(asked.exp().sum()) == pytest.approx(1, abs=1e-6)
        scored = learner.score(batch_of(text, opens=opens))
        learner.drop(scored)
        token = MARK if opens else text[0]
        assert scored.bits == pytest.approx(-float(asked[token]) / LN_2, rel=1e-4)


def _asked(learner: MixedLearner) -> Tensor:
    """(257,) the mixture's log probabilities of the next token, without moving anything on."""
    with torch.no_grad():
        logits, _ = learner.model.forward(learner._last, learner._last_starts, learner.lanes)  # type: ignore[operator]
        log_probs = torch.log_softmax(logits[0, -1].float(), -1)
    return torch.from_numpy(learner.memory.distribution(log_probs=log_probs.numpy()))


def test_the_network_learns_the_counts_cost_what_they_cost_alone(learner: MixedLearner, memory: CountMemory) -> None:
    before = [p.detach().clone() for p in learner.model.parameters()]
    counts = 0.0
    for index, at in enumerate(range(0, 200, 40)):
        scored = learner.score(batch_of(TEXT[at : at + 40], index))
        counts += scored.alone["counts_bits"]
        assert scored.alone["network_bits"] > 0
        assert scored.bits == pytest.approx(float(scored.nats.sum()) / LN_2)
        learner.update(scored)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
    memory.reset()
    alone = MemoryLearner(memory, 1)
    assert counts == pytest.approx(sum(learn(alone, TEXT[:200])), rel=1e-12)


def test_generation_equals_teacher_forcing_and_learns_nothing(learner: MixedLearner) -> None:
    learn(learner, TEXT[:200])
    learner.reset_lanes(1)
    tokenizer = TOKENIZERS["bytes"](TOKENIZERS["bytes"].Config())  # type: ignore[attr-defined]
    before = _counts(learner.memory)
    pieces = generate(learner.model, tokenizer, b"The wi", temperature=0, memory=learner.memory)
    text = b"".join(piece for piece, _ in zip(pieces, range(10), strict=False))
    assert all(np.array_equal(before[name], after) for name, after in _counts(learner.memory).items())
    learner.reset_lanes(1)
    listener, ids = listen(learner.model, learner.memory, tokenizer), [MARK, *b"The wi"]
    for token in text:
        with torch.no_grad():
            assert int(listener.hear(ids).argmax()) == token
        ids = [token]
    learner.reset_lanes(1)
    learner.freeze()
    scored = learner.score(batch_of(b"The wi" + text, ungraded=slice(0, 7), opens=True))
    assert scored.n_bytes == len(text)
    sampled = generate(learner.model, tokenizer, b"The wi" + text[:-1], temperature=0, memory=_fresh(learner))
    assert next(sampled) == text[-1:]


def _fresh(learner: MixedLearner) -> CountMemory:
    learner.memory.begin_document()
    return learner.memory


def _counts(memory: CountMemory) -> dict[str, Any]:
    past = ("ring", "summary", "matches", "places")
    kept = {k: v for k, v in memory.state_dict().items() if isinstance(v, dict) and not k.startswith(past)}
    return {
        f"{name}.{part}": np.asarray(getattr(value, "numpy", lambda v=value: v)())
        for name, entry in kept.items()
        for part, value in entry.items()
    }


def test_grading_without_learning_changes_no_count_and_no_weight() -> None:
    learner = make_learner()
    learn(learner, TEXT[:120])
    before, weights = _counts(learner.memory), [p.detach().clone() for p in learner.model.parameters()]
    graded = list(grade(learner, iter([batch_of(TEXT[120:160]), batch_of(TEXT[160:200], 1)])))
    assert all(math.isfinite(scored.bits) for scored in graded)
    assert all(np.array_equal(before[name], after) for name, after in _counts(learner.memory).items())
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.model.parameters(), strict=True))
    scored = learner.score(batch_of(b"more"))
    with pytest.raises(ContractError, match="frozen"):
        learner.update(scored)


def test_what_was_learned_byte_by_byte_cannot_be_dropped() -> None:
    for learner in (make_learner(), MemoryLearner(CountMemory(SETTINGS), 1)):
        scored = learner.score(batch_of(TEXT[:20]))
        with pytest.raises(ContractError, match="freeze"):
            learner.drop(scored)
        learner.update(scored)
        with pytest.raises(ContractError, match="already"):
            learner.update(scored)


def test_a_checkpoint_restores_both_to_equal_bits(tmp_path: Any) -> None:
    learner = make_learner()
    learn(learner, TEXT[:200])
    path = save_checkpoint(tmp_path, 5, learner.state_dict(), keep=2)
    expected = learn(learner, TEXT[200:320])
    other = make_learner()
    other.load_state_dict(load_checkpoint(path))
    assert learn(other, TEXT[200:320]) == expected
    tree = load_checkpoint(path)
    del tree["memory"]
    with pytest.raises(CheckpointError, match="memory"):
        other.load_state_dict(tree)


def test_a_network_that_breaks_is_survived() -> None:
    learner = make_learner()
    learn(learner, TEXT[:80])
    with torch.no_grad():
        next(learner.model.parameters()).fill_(math.nan)
    scored = learner.score(batch_of(TEXT[80:120]))
    assert math.isfinite(scored.bits)
    assert learner.update(scored).skipped == "the loss is not finite"


class Pairs:
    """A tokenizer of bytes and one pair of them."""

    mark = MARK

    def decode(self, ids: list[int]) -> bytes:
        return b"".join(b"" if i == MARK else b"th" if i > MARK else bytes([i]) for i in ids)


def test_beside_other_tokens_the_counts_read_the_same_bytes(memory: CountMemory) -> None:
    memory.reset()
    torch.manual_seed(0)
    kind = MODELS["transformer"]
    model = kind(kind.Config(**SMALL["transformer"]), MARK + 2)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), model.parameter_kinds())
    shape = (1, MARK + 2, MARK)
    beside = BesideLearner(Pairs(), memory, model, optimizer, lambda n: 1.0, LearnSettings(), shape)  # type: ignore[arg-type]
    ids = [MARK, MARK + 1, *b"e ", MARK + 1, *b"en"] * 5
    tokens = torch.tensor([ids])
    graded = torch.ones_like(tokens, dtype=torch.bool)
    n_bytes = torch.tensor([[len(Pairs().decode([i])) for i in ids]])
    batch = Batch(
        tokens=tokens, starts=tokens == MARK, graded=graded, n_bytes=n_bytes, index=0, spans=(), begun=(), cursor=None
    )
    scored = beside.score(batch)
    assert scored.bits == pytest.approx(len(ids) * math.log2(MARK + 2), rel=0.05)  # the network's, which is new
    beside.update(scored)
    memory.reset()
    same = np.array([MARK, *b"the then"] * 5)
    alone = memory.cost(same, modes_of(torch.ones(len(same), dtype=torch.bool), learns=True)).sum()
    assert scored.alone == {"counts_bits": pytest.approx(alone)}


def test_what_is_read_only_changes_no_count(memory: CountMemory) -> None:
    memory.reset()
    learner = MemoryLearner(memory, 1)
    learn(learner, TEXT[:100])
    before = _counts(memory)
    scored = learner.score(batch_of(b"context that is not graded", ungraded=slice(0, None)))
    assert (scored.bits, scored.n_bytes) == (0.0, 0)
    learner.update(scored)
    assert all(np.array_equal(before[name], after) for name, after in _counts(memory).items())


def test_noise_costs_a_mixture_hardly_more_than_the_counts(memory: CountMemory) -> None:
    memory.reset()
    noise = np.random.default_rng(0).bytes(20_000)
    costs = learn(make_learner("transformer", memory), noise, 400)
    assert sum(costs) / len(noise) < 8 * 1.01


SMALL_RUN = ["memory.budget_mib=64", "memory.history_mib=1", "model.d_model=16", "model.n_layers=1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.name=none", "memory.name=none"], "nothing would learn"),
        (["memory.name=none", "memory.budget_mib=64"], "memory.budget_mib means nothing"),
        (["memory.name=count"], "'counts'"),
        (["model.token_table=float32", "model.tied=true"], "token_table"),
        (["memory.history_mib=3"], "power of two"),
        (["feed.lanes=1024"], "1024 lanes"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_parts(load_recipe(None, "tiny", [*SMALL_RUN, "model.ngrams=[]", *settings]))


def test_every_setting_of_the_memory_changes_what_it_says() -> None:
    """Richer contexts say something else; less budget forgets; a shorter history finds less."""
    text = np.random.default_rng(1).integers(97, 123, 40_000).astype(np.uint8).tobytes()
    text += text[:2000]

    def late(**settings: Any) -> float:
        settings = {"budget_mib": 80, "history_mib": 1, **settings}
        return float(CountMemory(CountMemorySettings(**settings), n_lanes).score(text)[-1900:].mean())

    n_lanes = 1
    plain = late()
    assert late(contexts="rich") != plain
    assert late(budget_mib=128) != plain
    n_lanes = 32  # 32 KiB of history each
    assert late() > 3 * plain


# ------------------------------------------------------------------------------------------------------------- bits


def make_bits(memory: CountMemory, parity: Literal["none", "even"] = "none") -> tuple[MixedBitLearner, Bits]:
    torch.manual_seed(0)
    kind = MODELS["bit"]
    model = kind(kind.Config(**SMALL["bit"], parity=parity == "even"), 3)
    tokenizer = Bits(BitsConfig(parity=parity))
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(rate=0.01), model.parameter_kinds())
    shape = (1, 3, tokenizer.mark)
    return MixedBitLearner(tokenizer, memory, model, optimizer, lambda n: 1.0, LearnSettings(), shape), tokenizer


def bits_of(tokenizer: Bits, documents: list[bytes], context: slice = slice(0, 0)) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) tokens of documents one after another, whether graded (bytes of `context` of the first are not), bytes."""
    ids, sizes, graded = [], [], []
    for number, text in enumerate(documents):
        tokens = tokenizer.encode(text)
        read = np.ones(len(text), bool)
        read[context if number == 0 else slice(0, 0)] = False
        ids += [tokenizer.mark, *tokens.ids.tolist()]
        graded += [True, *np.repeat(read, tokenizer.n_symbols).tolist()]
        sizes += [0, *tokens.n_bytes.tolist()]
    return torch.tensor(ids), torch.tensor(graded), torch.tensor(sizes)


def score_bits(learner: MixedBitLearner, stream: tuple[Tensor, Tensor, Tensor], size: int) -> list[Scored]:
    """Everything that was scored, in batches of `size` tokens; nothing is learned by the network."""
    ids, graded, sizes = stream
    found = []
    for index, at in enumerate(range(0, len(ids), size)):
        part = slice(at, at + size)
        batch = Batch(
            tokens=ids[None, part],
            starts=(ids == BIT_MARK)[None, part],
            graded=graded[None, part],
            n_bytes=(sizes * graded)[None, part],
            index=index,
            spans=(),
            begun=(),
            cursor=None,
        )
        found.append(learner.score(batch))
        learner.refuse(found[-1], "the network is to stay as it is")
    return found


@pytest.mark.parametrize("parity", ["none", "even"])
@pytest.mark.parametrize("size", [1, 7, 13, 64])
def test_bits_cost_the_same_wherever_batches_end(
    memory: CountMemory, size: int, parity: Literal["none", "even"]
) -> None:
    memory.reset()
    learner, tokenizer = make_bits(memory, parity)
    stream = bits_of(tokenizer, [TEXT[:90], b"", TEXT[40:110]], slice(10, 25))
    whole = score_bits(learner, stream, len(stream[0]))[0]
    memory.reset()
    learner.reset_lanes(1)
    parts = score_bits(learner, stream, size)
    nats = torch.cat([scored.nats for scored in parts], dim=1)
    torch.testing.assert_close(nats, whole.nats, rtol=1e-4, atol=1e-5)
    assert sum(s.n_bytes for s in parts) == whole.n_bytes == 145
    assert (nats[0][~stream[1]] == 0).all()
    for name in ("counts_bits", "network_bits"):
        assert sum(s.alone[name] for s in parts) == pytest.approx(whole.alone[name], rel=1e-4)


def test_the_counts_beside_bits_cost_what_they_cost_alone(memory: CountMemory) -> None:
    memory.reset()
    learner, tokenizer = make_bits(memory)
    scored = score_bits(learner, bits_of(tokenizer, [TEXT[:90], TEXT[40:110]]), 29)
    memory.reset()
    tokens = np.array([MARK, *TEXT[:90], MARK, *TEXT[40:110]])
    alone = memory.cost(tokens, modes_of(torch.ones(len(tokens), dtype=torch.bool), learns=True)).sum()
    assert sum(s.alone["counts_bits"] for s in scored) == pytest.approx(alone, rel=1e-9)
    assert sum(s.bits for s in scored) < 1.02 * alone  # a network that knows nothing hardly harms


@pytest.mark.parametrize("parity", ["none", "even"])
def test_what_is_heard_of_bits_is_what_would_be_graded_and_sums_to_one(
    memory: CountMemory, parity: Literal["none", "even"]
) -> None:
    memory.reset()
    learner, tokenizer = make_bits(memory, parity)
    score_bits(learner, bits_of(tokenizer, [TEXT[:150]]), 40)
    learner.reset_lanes(1)
    learner.freeze()
    before, past = _counts(memory), memory.state_dict()
    ids, graded, sizes = bits_of(tokenizer, [b"The sea", b"T"])
    scored = learner.score(
        Batch(
            tokens=ids[None],
            starts=(ids == BIT_MARK)[None],
            graded=graded[None],
            n_bytes=sizes[None],
            index=0,
            spans=(),
            begun=(),
            cursor=None,
        )
    )
    memory.load_state_dict(past)
    listener, n = listen(learner.model, memory, tokenizer), tokenizer.n_symbols
    with torch.no_grad():
        heard = [listener.hear([token]) for token in ids.tolist()]
    for i, said in enumerate(heard[:-1]):
        assert float(said.exp().sum()) == pytest.approx(1, abs=1e-6)
        cost = float(scored.nats[0, i + 1])
        if (i - (i > 7 * n)) % n == 8:  # parity costs nothing; there is a mark after seven bytes
            assert cost == 0
        else:
            assert -float(said[ids[i + 1]]) == pytest.approx(cost, rel=1e-3, abs=1e-5)
    assert all(np.array_equal(before[name], after) for name, after in _counts(memory).items())
    pieces = generate(learner.model, tokenizer, b"The wind was ca", temperature=0, memory=memory)
    assert b"".join(itertools.islice(pieces, n)) == b"l"


def test_a_document_that_ends_inside_a_byte_is_refused(memory: CountMemory) -> None:
    learner, _ = make_bits(memory)
    ids = torch.tensor([BIT_MARK, 0, 1, 0, BIT_MARK])
    with pytest.raises(ContractError, match="after 3 of the 8 tokens"):
        score_bits(learner, (ids, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.long)), 5)
