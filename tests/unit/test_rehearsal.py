"""Rehearsal learns from what was learned before, and from nothing else; grades and lanes stay as they were."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from livelm.config import LearnSettings, RehearsalSettings, load_recipe
from livelm.errors import ConfigError, ContractError
from livelm.learn import Learner, Rehearsal, load_checkpoint, save_checkpoint
from livelm.learn.guard import WARM_UP
from livelm.learn.slices import Slicer, cost, recall
from livelm.memory.drawing import chances, importance
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.parts import build_parts
from livelm.run import resume, run_session, start
from livelm.session import Stop
from livelm.types import Batch, Update

VOCABULARY, MARK = 17, 16
SMALL: dict[str, Any] = {
    "how": "surprise",
    "share": 0.5,
    "slices": 2,
    "slice_tokens": 6,
    "context_tokens": 4,
    "buffer_bytes": 4096,
}


def stream(n_batches: int, lanes: int = 1, n_tokens: int = 8, seed: int = 0) -> list[Batch]:
    """Random tokens; about every twelfth begins a document, about every ninth is only read."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(n_batches):
        tokens = torch.randint(0, MARK, (lanes, n_tokens), generator=generator)
        starts = torch.rand(lanes, n_tokens, generator=generator) < 1 / 12
        tokens[starts] = MARK
        graded = torch.rand(lanes, n_tokens, generator=generator) > 1 / 9
        made.append(
            Batch(
                tokens=tokens,
                starts=starts,
                graded=graded,
                n_bytes=(graded & ~starts).long(),
                index=index,
                spans=(),
                begun=(),
                cursor=None,
            )
        )
    return made


def make_learner(lanes: int = 1, rate: float = 0.01, **settings: Any) -> Learner:
    torch.manual_seed(0)
    kind = MODELS["transformer"]
    model = kind(kind.Config(d_model=16, n_layers=1, n_heads=2, context=64), VOCABULARY)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(rate=rate), model.parameter_kinds())
    return Learner(model, optimizer, lambda n: 1.0, LearnSettings(**settings), (lanes, VOCABULARY, MARK))


def make_rehearsal(learner: Learner, lanes: int = 1, seed: int = 0, **settings: Any) -> Rehearsal:
    return Rehearsal(RehearsalSettings(**SMALL | settings), learner, (lanes, VOCABULARY, MARK), seed)


def learn(learner: Learner, rehearsal: Rehearsal, batches: list[Batch]) -> list[Any]:
    """Everything that was graded, learned and rehearsed."""
    told: list[Any] = []
    for batch in batches:
        scored = learner.score(batch)
        update = learner.update(scored)
        told += [scored.bits, update, rehearsal.take(scored, update)]
    return told


def weights(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("sizes", [[8] * 9, [1] * 40, [3, 50, 7, 1, 20]], ids=["8", "1", "odd"])
def test_slices_tile_every_lane_in_order_with_what_was_before_them(lanes: int, sizes: list[int]) -> None:
    slicer = Slicer(lanes, MARK, n_context=4, n_tokens=6, grain=1)
    found, tokens, wanted, nats, n_bytes = [], [], [], [], []
    for number, size in enumerate(sizes):
        batch = stream(1, lanes, size, seed=number)[0]
        costs = torch.rand(lanes, size, dtype=torch.float64)
        found += list(slicer.cut(batch, batch.graded, costs))
        for column, value in ((tokens, batch.tokens), (wanted, batch.graded), (nats, costs), (n_bytes, batch.n_bytes)):
            column.append(value)
    rows = [torch.cat(column, dim=1).numpy() for column in (tokens, wanted, nats, n_bytes)]
    expected = []
    for lane in range(lanes):
        before = np.concatenate([[MARK] * 4, rows[0][lane]])
        for at in range(0, rows[0].shape[1] - 5, 6):
            keep = rows[1][lane, at : at + 6]
            if keep.any():
                bits = rows[2][lane, at : at + 6][keep].sum()
                own = (tuple(before[at : at + 10]), tuple(keep), bits, rows[3][lane, at : at + 6][keep].sum())
                expected.append(own)
    assert sorted((tuple(s.tokens), tuple(s.wanted), s.cost, s.n_bytes) for s in found) == sorted(expected)
    assert {s.begin for s in found} == {0}


@pytest.mark.parametrize("grain", [2, 3, 8])
def test_reading_begins_where_the_roles_of_tokens_begin_anew(grain: int) -> None:
    slicer = Slicer(1, MARK, n_context=11, n_tokens=6, grain=grain)
    batches = stream(60, n_tokens=7, seed=grain)
    tokens = torch.cat([b.tokens for b in batches], dim=1)[0].numpy()
    starts = torch.cat([b.starts for b in batches], dim=1)[0].numpy()
    pieces = [p for b in batches for p in slicer.cut(b, torch.ones_like(b.graded), torch.zeros(1, 7))]
    begins = set()
    for number, piece in enumerate(pieces):
        first = 6 * number - 11 + piece.begin  # in the stream
        assert (piece.tokens[: piece.begin] == MARK).all()
        assert 0 <= piece.begin < 11
        if first < 0:
            continue
        assert np.array_equal(piece.tokens[piece.begin :], tokens[first : 6 * number + 6])
        place = next((back for back in range(first + 1) if starts[first - back]), None)
        if place is not None:
            assert place % grain == 0
            begins.add(piece.begin)
    assert len(begins) == grain


def test_what_is_read_again_costs_what_it_cost_where_its_document_is_whole() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner, context_tokens=60, slice_tokens=4, buffer_bytes=1 << 16)
    for batch in stream(7):  # 56 tokens: all that was before is in the context
        scored = learner.score(batch)
        learner.refuse(scored, "nothing changes")
        for piece in rehearsal._slicer.cut(batch, batch.graded, scored.nats):
            rehearsal.kept.offer(piece, np.random.default_rng(0))
    kept = rehearsal.kept
    again = cost(learner.model, recall(kept, np.arange(kept.n_held), MARK)).detach().numpy()
    n_wanted = kept.column("wanted").sum(axis=1)
    np.testing.assert_allclose(again / n_wanted, kept.column("first"), rtol=1e-4, atol=1e-4)
    assert kept.n_held == 14


# ---------------------------------------------------------------------------------------------------- rehearsal


@pytest.mark.parametrize(("share", "each"), [(0.5, 1.0), (0.2, 0.25), (0.75, 3.0), (0.9, 9.0), (0.4, 2 / 3)])
def test_the_share_is_of_all_updates(share: float, each: float) -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner, share=share)
    told = learn(learner, rehearsal, stream(120))[2::3]
    n_updates = sum(record["n_updates"] for record in told if record)
    assert n_updates == pytest.approx(each * 120, abs=each + 1)
    assert all(
        record["bits"] > 0 and record["n_bytes"] > 0 and record["kind"] == "rehearsed" for record in told if record
    )


def test_rehearsing_moves_weights_and_nothing_that_is_graded_next_begins_with() -> None:
    plain, rehearsing = make_learner(), make_learner()
    rehearsal = make_rehearsal(rehearsing)
    batches = stream(6)
    for batch in batches:
        plain.update(plain.score(batch))
    learn(rehearsing, rehearsal, batches)
    assert not same(weights(plain), weights(rehearsing))
    assert rehearsing.n_updates == plain.n_updates, "schedules follow what is new"
    before = {name: tensor.clone() for name, tensor in rehearsing.lanes.items()}
    rows, w = rehearsal.draw()
    rehearsing.rehearse(recall(rehearsal.kept, rows, MARK), torch.from_numpy(w), rehearsal._guard)
    assert same(before, rehearsing.lanes)


def test_rehearsing_makes_what_is_rehearsed_cheaper() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner, share=0.9)
    batches = stream(12)
    learn(learner, rehearsal, batches * 10)
    assert rehearsal.kept.column("surprise").mean() < 0.7 * rehearsal.kept.column("first").mean()


def test_the_expected_gradient_is_that_of_the_mean_over_everything_kept() -> None:
    """Over all draws there are, each with its chance: the gradient of surprise-driven rehearsal is the uniform one."""
    learner = make_learner()
    rehearsal = make_rehearsal(learner, how="surprise", uniform_share=0.1, alpha=2.0)
    learn(learner, rehearsal, stream(30))
    kept, n = rehearsal.kept, rehearsal.kept.n_held
    chance = chances(kept.column("surprise"), 2.0, 0.1)
    assert chance.max() > 1.3 * chance.min()

    def gradient(rows: np.ndarray, w: np.ndarray) -> Tensor:
        recalled = recall(kept, rows, MARK)
        learner.optimizer.zero_grad()
        nats = cost(learner.model, recalled)
        ((nats * torch.from_numpy(w).to(nats.dtype)).mean() / recalled.wanted.shape[1]).backward()
        return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])

    uniform = gradient(np.arange(n), np.ones(n))
    each = [gradient(np.array([i]), importance(chance[[i]], n, 1.0)) for i in range(n)]
    expected = sum(c * g for c, g in zip(chance, each, strict=True))
    torch.testing.assert_close(expected.to(uniform.dtype), uniform, rtol=1e-3, atol=1e-5)
    biased = sum(c * gradient(np.array([i]), np.ones(1)) for i, c in enumerate(chance))
    assert not torch.allclose(biased.to(uniform.dtype), uniform, rtol=1e-3, atol=1e-5)


def test_rehearse_takes_the_step_of_the_weighted_loss() -> None:
    learner, twin = make_learner(), make_learner()
    rehearsal = make_rehearsal(learner)
    batches = stream(8)
    told = [learner.update(learner.score(b)) for b in batches], [twin.update(twin.score(b)) for b in batches]
    assert told[0] == told[1]
    for batch in batches:
        for piece in rehearsal._slicer.cut(batch, batch.graded, torch.zeros(1, 8, dtype=torch.float64)):
            rehearsal.kept.offer(piece, np.random.default_rng(0))
    recalled, w = recall(rehearsal.kept, np.array([0, 3, 3]), MARK), torch.tensor([0.5, 2.0, 1.0])
    learner.rehearse(recalled, w, rehearsal._guard)
    twin.optimizer.zero_grad()
    nats = twin.model.nats(recalled.inputs, recalled.starts, recalled.targets, twin.model.init_state(3))[0][:, -6:]
    loss = sum(w[i] * nats[i][recalled.wanted[i]].sum() for i in range(3)) / 18
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(twin.model.parameters()), 1.0)
    twin.optimizer.step()
    for name, tensor in weights(twin).items():
        torch.testing.assert_close(weights(learner)[name], tensor)


def test_priorities_are_those_of_the_last_look() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner)
    learn(learner, rehearsal, stream(20))
    before = rehearsal.kept.column("surprise").copy()
    rehearsal._generator = np.random.default_rng(5)
    state = copy.deepcopy(rehearsal._generator.bit_generator.state)
    rows, _ = rehearsal.draw()
    expected = cost(learner.model, recall(rehearsal.kept, rows, MARK)).detach().double().numpy()
    rehearsal._generator.bit_generator.state = state
    rehearsal._rehearse()
    n_wanted = rehearsal.kept.column("wanted").sum(axis=1)
    assert rehearsal.kept.column("surprise")[rows] == pytest.approx(expected / n_wanted[rows])
    others = np.setdiff1d(np.arange(rehearsal.kept.n_held), rows)
    assert np.array_equal(rehearsal.kept.column("surprise")[others], before[others])


def test_only_what_this_learner_learned_is_rehearsed() -> None:
    learner, other = make_learner(), make_learner()
    rehearsal = make_rehearsal(learner)
    batch = stream(1)[0]
    foreign = other.score(batch)
    with pytest.raises(ContractError, match="was not learned by this learner"):
        rehearsal.take(foreign, other.update(foreign))
    scored = learner.score(batch)
    with pytest.raises(ContractError, match="was not learned"):
        rehearsal.take(scored, Update(batch.index, 0.0, 0.0, None))
    with pytest.raises(ContractError, match="does not rehearse"):
        learner.rehearse(recall(rehearsal.kept, np.zeros(0, np.int64), MARK), torch.ones(0), rehearsal._guard)


def test_what_was_refused_or_skipped_is_read_but_never_rehearsed() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner, buffer_bytes=1 << 16)
    learned = []
    for batch in stream(40):
        scored = learner.score(batch)
        update = learner.refuse(scored, "gate") if batch.index % 3 == 1 else learner.update(scored)
        record = rehearsal.take(scored, update)
        assert record is None or batch.index % 3 != 1
        learned.append(batch.graded & (batch.index % 3 != 1))
    wanted = torch.cat(learned, dim=1)[0].numpy()
    kept = rehearsal.kept
    assert kept.column("wanted").sum() == wanted[: 320 // 6 * 6].sum()


def test_a_frozen_learner_rehearses_nothing() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner)
    learn(learner, rehearsal, stream(5))
    learner.freeze()
    rows, w = rehearsal.draw()
    with pytest.raises(ContractError, match="frozen"):
        learner.rehearse(recall(rehearsal.kept, rows, MARK), torch.from_numpy(w), rehearsal._guard)


def test_the_guard_judges_rehearsal_by_its_own_usual_length_and_what_it_refuses_changes_nothing() -> None:
    learner = make_learner(explosion=3.0)
    rehearsal = make_rehearsal(learner)
    learn(learner, rehearsal, stream(WARM_UP + 30))
    rows, w = rehearsal.draw()
    recalled, before = recall(rehearsal.kept, rows, MARK), weights(learner)
    _, skipped = learner.rehearse(recalled, torch.from_numpy(1000 * w), rehearsal._guard)
    assert "usual length" in (skipped or "")
    assert same(before, weights(learner))
    seen = learner._guard.state_dict()
    assert learner.rehearse(recalled, torch.from_numpy(w), rehearsal._guard)[1] is None
    assert not same(before, weights(learner))
    assert learner._guard.state_dict() == seen


def test_a_loss_that_is_not_finite_is_skipped_and_leaves_priorities_alone() -> None:
    learner = make_learner()
    rehearsal = make_rehearsal(learner)
    learn(learner, rehearsal, stream(10))
    before = rehearsal.kept.column("surprise").copy()
    with torch.no_grad():
        next(learner.model.parameters()).fill_(math.nan)
    n_bytes, bits, skipped = rehearsal._rehearse()
    assert (n_bytes, bits, skipped) == (0, 0.0, "the loss is not finite")
    assert np.array_equal(rehearsal.kept.column("surprise"), before)


@pytest.mark.parametrize("how", ["uniform", "surprise"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_saved_rehearsal_goes_on_bit_for_bit(how: str, lanes: int, tmp_path: Path) -> None:
    settings = {"how": how, "buffer_bytes": 1024, "share": 0.4}
    learner = make_learner(lanes)
    rehearsal = make_rehearsal(learner, lanes, **settings)
    batches = stream(60, lanes)
    learn(learner, rehearsal, batches[:41])
    assert rehearsal.kept.n_held == rehearsal.kept.capacity
    tree = {"learner": learner.state_dict(), "rehearsal": rehearsal.state_dict()}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, tree, keep=1))
    expected = learn(learner, rehearsal, batches[41:])
    other = make_learner(lanes)
    again = make_rehearsal(other, lanes, seed=8, **settings)
    other.load_state_dict(loaded["learner"])
    again.load_state_dict(loaded["rehearsal"])
    assert learn(other, again, batches[41:]) == expected
    assert same(weights(other), weights(learner))


def test_seeds_draw_differently_and_the_same_seed_the_same() -> None:
    told = []
    for seed in (0, 0, 1):
        learner = make_learner()
        told.append(learn(learner, make_rehearsal(learner, seed=seed), stream(25)))
    assert told[0] == told[1]
    assert told[0] != told[2]


def test_surprise_changes_what_is_rehearsed() -> None:
    told = []
    for settings in ({"how": "uniform"}, {}, {"alpha": 4.0}, {"beta": 0.0}, {"uniform_share": 1.0}):
        learner = make_learner()
        told.append(learn(learner, make_rehearsal(learner, **settings), stream(25)))
    assert told[0] == told[4], "all draws uniform is uniform"
    assert all(told[a] != told[b] for a, b in ((0, 1), (1, 2), (1, 3)))


@pytest.mark.parametrize("what", ["rehearsal", "holdout"])
def test_a_memory_alone_neither_rehearses_nor_forgets_and_says_so(what: str) -> None:
    changes = ["model.name=none", "memory.name=counts", f"{what}.share=0.2"]
    with pytest.raises(ConfigError, match=rf"{what}.share is 0.2, but model.name is 'none': only a network rehearses"):
        build_parts(load_recipe(None, "tiny", changes))


def test_a_budget_that_holds_no_slice_is_refused() -> None:
    with pytest.raises(ConfigError, match="one slice of 4 \\+ 4096 tokens takes 8,228"):
        make_rehearsal(make_learner(), buffer_bytes=1024, slice_tokens=4096)


GROWS = ["model.name=none", "model.name=bit", "grow.steps=['width']", "grow.window_bytes=256", "grow.gain=9.0"]
PARTLY = ["optimizer.name=muon", "learn.policy=lora:2"]


@pytest.mark.parametrize("more", [GROWS, PARTLY], ids=["grows", "partly"])
def test_a_network_that_grows_or_learns_in_parts_rehearses_and_resumes_exactly(more: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"".join(b"line %d of a text with much to learn\n" % i for i in range(40)))
    uris = f"source.uris={json.dumps([str(tmp_path / 'text.txt')])}"
    sizes = ["model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.context=16", "feed.update_tokens=32"]
    small = ["rehearsal.share=0.5", "rehearsal.slice_tokens=16", "rehearsal.buffer_bytes=2048", "run.threads=1"]
    changes = ["memory.name=none", *more, *sizes, *small, uris]
    for name, budget in (("whole", "1MB"), ("halves", "700B")):
        run_session(start(load_recipe(None, "tiny", [*changes, f"run.budget={budget}"]), tmp_path / name, Stop()), [])
    run_session(resume(tmp_path / "halves", "1MB", Stop()), [])
    facts = []
    for name in ("whole", "halves"):
        lines = map(json.loads, (tmp_path / name / "journal.jsonl").read_bytes().splitlines())
        facts.append([line for line in lines if "seq" in line and line["kind"] != "run"])
    assert facts[0] == facts[1]
    kinds = {line["kind"] for line in facts[0]}
    assert ("grown" in kinds) == (more is GROWS)
    assert "rehearsed" in kinds
