"""What rehearsal promises for every architecture: slices are read as the stream was, and learned from again."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.test_models import N_VOCABULARY, build, every, lively

from livelm.config import LearnSettings, RehearsalSettings
from livelm.learn import Learner, Rehearsal
from livelm.learn.slices import cost, recall
from livelm.optim import OPTIMIZERS
from livelm.types import Batch, Grained

MARK, N_CONTEXT, N_TOKENS = N_VOCABULARY - 1, 12, 10
SETTINGS = RehearsalSettings(
    how="surprise", share=0.6, slices=3, slice_tokens=N_TOKENS, context_tokens=N_CONTEXT, buffer_bytes=3000, alpha=2.0
)


def stream(n_batches: int, n_tokens: int) -> list[Batch]:
    """Two lanes of a text with a pattern, a document every so often."""
    generator, made = torch.Generator().manual_seed(3), []
    for index in range(n_batches):
        tokens = torch.randint(0, 9, (2, n_tokens), generator=generator).cumsum(1) % MARK
        starts = torch.rand(2, n_tokens, generator=generator) < 1 / 20
        tokens[starts] = MARK
        ones = torch.ones_like(starts)
        batch = {"tokens": tokens, "starts": starts, "graded": ones, "n_bytes": ones.long(), "index": index}
        made.append(Batch(**batch, spans=(), begun=(), cursor=None))
    return made


def make(model: Any) -> tuple[Learner, Rehearsal]:
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(rate=3e-3), model.parameter_kinds())
    learner = Learner(model, optimizer, lambda n: 1.0, LearnSettings(), (2, N_VOCABULARY, MARK))
    return learner, Rehearsal(SETTINGS, learner, (2, N_VOCABULARY, MARK), 0)


def learn(learner: Learner, rehearsal: Rehearsal, batches: list[Batch]) -> list[Any]:
    told: list[Any] = []
    for batch in batches:
        scored = learner.score(batch)
        update = learner.update(scored)
        told += [scored.bits, update, rehearsal.take(scored, update)]
    return told


@every
def test_a_slice_is_read_as_the_stream_would_be_that_began_there(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    _, rehearsal = make(model)
    batches = stream(20, 9)  # so that no batch completes two slices of a lane
    for batch in batches:
        for piece in rehearsal._slicer.cut(batch, batch.graded, torch.zeros(batch.tokens.shape)):
            rehearsal.kept.offer(piece, np.random.default_rng(0))
    kept = rehearsal.kept
    found = cost(model, recall(kept, np.arange(kept.n_held), MARK))
    tokens, starts = (torch.cat([getattr(b, part) for b in batches], dim=1) for part in ("tokens", "starts"))
    n_context = kept.n_context
    grain = model.grain if isinstance(model, Grained) else 1
    expected = []
    for number in range(kept.n_held):
        lane, at = number % 2, N_TOKENS * (number // 2)  # both lanes complete a slice at the same tokens
        first = at - n_context + int(kept.column("begin")[number])
        if first < 0:  # before the stream there is a mark
            inputs = torch.cat([torch.tensor([MARK]), tokens[lane, : at + N_TOKENS - 1]])[None]
            begins = torch.cat([torch.tensor([True]), starts[lane, : at + N_TOKENS - 1]])[None]
        else:
            inputs, begins = tokens[lane : lane + 1, first : at + N_TOKENS - 1], starts[lane : lane + 1].clone()
            begins[0, first] = True
            begins = begins[:, first : at + N_TOKENS - 1]
            known = torch.nonzero(starts[lane, : first + 1])
            assert not len(known) or (first - int(known[-1, 0])) % grain == 0
        targets = tokens[lane : lane + 1, at + N_TOKENS - inputs.shape[1] : at + N_TOKENS]
        nats, _ = model.nats(inputs, begins, targets, model.init_state(1))
        expected.append(nats[0, -N_TOKENS:].sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-3)


@every
def test_rehearsing_teaches_what_is_kept_and_goes_on_exactly_after_a_save(name: str, options: dict[str, Any]) -> None:
    learner, rehearsal = make(build(name, options))
    batches = stream(45, 16)
    told = learn(learner, rehearsal, batches[:30])
    rehearsed = [record for record in told[2::3] if record]
    assert sum(record["n_updates"] for record in rehearsed) == pytest.approx(1.5 * 30, abs=3)
    assert not any(record["n_skipped"] for record in rehearsed)
    state = copy.deepcopy((learner.state_dict(), rehearsal.state_dict()))
    rows = np.arange(rehearsal.kept.n_held)
    with torch.no_grad():
        before = cost(learner.model, recall(rehearsal.kept, rows, MARK)).sum()
    for _ in range(20):
        rehearsal._rehearse()
    with torch.no_grad():
        assert cost(learner.model, recall(rehearsal.kept, rows, MARK)).sum() < 0.995 * before
    told = []
    for seed in (1, 2):
        learner, rehearsal = make(build(name, options, seed=seed))
        learner.load_state_dict(copy.deepcopy(state[0]))
        rehearsal.load_state_dict(copy.deepcopy(state[1]))
        told.append(learn(learner, rehearsal, batches[30:]))
    assert told[0] == told[1]
