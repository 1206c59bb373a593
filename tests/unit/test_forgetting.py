"""Forgetting is what the same held-out bytes cost later less what they cost earlier; holding out teaches nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_rehearsal import MARK, VOCABULARY, make_learner, stream

from livelm.config import HoldoutSettings
from livelm.errors import ContractError
from livelm.evaluate.forgetting import backward_transfer, by_parts, forgetting, summed
from livelm.learn import Holdout, Learner, load_checkpoint, save_checkpoint
from livelm.learn.holdout import REASON
from livelm.types import LN_2, Batch

SMALL: dict[str, Any] = {"share": 0.3, "stretch_updates": 2, "slice_tokens": 8, "context_tokens": 4}
COSTS = [[2.0, 5.0, 6.0], [2.6, 3.0, 6.0], [2.5, 3.5, 1.0]]


def make_holdout(learner: Learner, lanes: int = 1, seed: int = 0, **settings: Any) -> Holdout:
    return Holdout(HoldoutSettings(**SMALL | settings), learner, (lanes, VOCABULARY, MARK), seed)


def pass_over(learner: Learner, holdout: Holdout, batches: list[Batch]) -> tuple[list[Any], list[int]]:
    """Everything recorded, and which batches were held out."""
    told, held = [], []
    for batch in batches:
        refusal = holdout.refusal
        scored = learner.score(batch, refusal)
        update = learner.update(scored) if refusal is None else learner.refuse(scored, refusal)
        held += [batch.index] if refusal else []
        told += [scored.bits, update.skipped, *holdout.take(scored)]
    return told, held


def test_forgetting_and_backward_transfer_of_a_matrix() -> None:
    assert forgetting(COSTS) == pytest.approx([0.5, 0.5])
    assert backward_transfer(COSTS) == pytest.approx(-0.5)
    assert backward_transfer([[2.0, 5.0], [1.5, 1.0]]) == pytest.approx(0.5), "cheaper at the end: it helped"
    assert (forgetting([[1.0]]), backward_transfer([[1.0]])) == ([], 0.0)


@pytest.mark.parametrize("costs", [[], [[1.0, 2.0]], [[1.0], [2.0]]])
def test_what_is_no_square_matrix_is_refused(costs: list[list[float]]) -> None:
    with pytest.raises(ContractError, match="square matrix"):
        forgetting(costs)


def test_parts_cover_every_slice_once_and_add_up() -> None:
    n = 21
    generator = np.random.default_rng(0)
    graded = {"at": np.arange(n) * 100, "n_bytes": generator.integers(1, 9, n)}
    graded |= {"first_bits": generator.random(n), "now_bits": generator.random(n)}
    rows, whole = by_parts(graded, 8), summed(graded)
    assert [row["from_byte"] for row in rows] == sorted(row["from_byte"] for row in rows)
    assert sum(row["n_slices"] for row in rows) == n
    assert max(row["n_slices"] for row in rows) - min(row["n_slices"] for row in rows) <= 1
    for name in ("first", "now", "backward_transfer"):
        assert sum(row[name] * row["n_bytes"] for row in rows) == pytest.approx(whole[name] * whole["n_bytes"])
    assert whole["backward_transfer"] == pytest.approx(whole["first"] - whole["now"])
    assert len(by_parts({name: column[:3] for name, column in graded.items()}, 8)) == 3
    with pytest.raises(ContractError, match="no slice was held out"):
        summed({name: column[:0] for name, column in graded.items()})


def test_what_is_held_out_teaches_nothing_and_the_rest_teaches_as_ever() -> None:
    learner, plain = make_learner(), make_learner()
    holdout = make_holdout(learner)
    batches = stream(40)
    before: dict[str, Any] = {}
    for batch in batches:
        refusal = holdout.refusal
        scored, same = learner.score(batch, refusal), plain.score(batch)
        assert scored.bits == same.bits, "held-out bytes are graded like any other"
        if refusal:
            before = copy.deepcopy(learner.model.state_dict())
            assert learner.refuse(scored, refusal).skipped == plain.refuse(same, "x").skipped.replace("x", REASON)  # type: ignore[union-attr]
            after = learner.model.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
        else:
            assert learner.update(scored) == plain.update(same), "grading held-out slices leaves no trace"
        list(holdout.take(scored))
    assert before


def test_stretches_are_held_out_whole_and_as_often_as_the_share_says() -> None:
    learner = make_learner()
    held: set[int] = set()
    batches = stream(600, n_tokens=1)
    for seed in range(3):
        holdout = make_holdout(learner, seed=seed, share=0.3, stretch_updates=2)
        own = set()
        for batch in batches:
            own |= {batch.index} if holdout.refusal else set()
            holdout._decide()
        assert all((index ^ 1) in own for index in own)
        assert len(own) / 600 == pytest.approx(0.3, abs=0.09)  # 3 sd of 300 decisions
        held ^= own
    assert held, "seeds differ"


def test_kept_slices_are_those_that_were_held_out_and_cost_what_they_cost_until_something_is_learned() -> None:
    learner = make_learner()
    holdout = make_holdout(learner, stretch_updates=4)
    batches = stream(80)
    told, held = pass_over(learner, holdout, batches)
    graded = np.concatenate([b.graded[0].numpy() & (b.index in held) for b in batches])
    assert holdout.kept.column("wanted").sum() == graded.sum()
    records = [record for record in told if isinstance(record, dict)]
    assert len(records) == holdout.kept.n_held > 5
    again = holdout.grade_again()
    assert again["first_bits"] == pytest.approx([record["bits"] for record in records])
    assert not np.allclose(again["first_bits"], again["now_bits"])
    assert list(again["at"]) == sorted(again["at"])
    fresh = make_holdout(learner, share=0.5)
    for batch in stream(40, seed=3):  # nothing is learned any more
        scored = learner.score(batch)
        learner.refuse(scored, "stop")
        list(fresh.take(scored))
    same = fresh.grade_again()
    assert len(same["at"])
    assert same["now_bits"] == pytest.approx(same["first_bits"], rel=1e-5)


def test_slices_read_again_cost_what_they_cost_in_nats_too() -> None:
    learner = make_learner()
    holdout = make_holdout(learner, share=0.5, context_tokens=400)
    for batch in stream(30):
        scored = learner.score(batch)
        learner.refuse(scored, "stop")
        if holdout.refusal:
            expected = scored.sum_bits if hasattr(scored, "sum_bits") else scored.bits
            told = list(holdout.take(scored))
            assert sum(record["bits"] for record in told) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        else:
            list(holdout.take(scored))
    assert holdout.kept.column("first").max() < 3 * np.log(VOCABULARY) / LN_2


def test_a_saved_holdout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    learner = make_learner(2)
    holdout = make_holdout(learner, 2, buffer_bytes=1024)
    batches = stream(150, lanes=2)
    pass_over(learner, holdout, batches[:111])
    assert holdout.kept.n_held == holdout.kept.capacity
    tree = {"learner": learner.state_dict(), "holdout": holdout.state_dict()}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, tree, keep=1))
    expected = pass_over(learner, holdout, batches[111:])
    other = make_learner(2)
    again = make_holdout(other, 2, seed=4, buffer_bytes=1024)
    other.load_state_dict(loaded["learner"])
    again.load_state_dict(loaded["holdout"])
    assert pass_over(other, again, batches[111:]) == expected
    assert all(np.array_equal(a, b) for a, b in zip(*(h.grade_again().values() for h in (holdout, again)), strict=True))


# ------------------------------------------------------------------------------------------------- whole runs

TINY = ["--threads", "1", "--set", "model.d_model=16", "--set", "model.n_layers=1", "--set", "model.n_heads=2"]
TINY += ["--set", "model.ngrams=[]", "--set", "model.context=32", "--set", "feed.update_tokens=32"]
HELD = ["--set", "holdout.share=0.2", "--set", "holdout.slice_tokens=16", "--set", "holdout.stretch_updates=4"]
REHEARSED = ["--set", "rehearsal.share=0.5", "--set", "rehearsal.slice_tokens=16", "--set", "rehearsal.slices=2"]
NETWORK = ["--set", "memory.name=none"]
BOTH = ["--set", "memory.budget_mib=64", "--set", "memory.history_mib=1"]


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (run / "journal.jsonl").read_bytes().splitlines()) if r["kind"] == kind]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"line %d of a text with much to learn from\n" % (i * i) for i in range(120)))
    return path


@pytest.mark.parametrize("memory", [NETWORK, BOTH], ids=["network", "both"])
def test_eval_without_a_source_grades_again_what_was_held_out(
    memory: list[str], text: Path, tmp_path: Path, livelm_here: Any
) -> None:
    run = tmp_path / "run"
    livelm_here("run", text, "--out", run, *TINY, *memory, *HELD)
    found = json.loads(livelm_here("eval", run, "--json").out)
    told = records(run, "held_out")
    assert found["n_slices"] == len(told) == len(found["slices"])
    assert [s["first_bits"] for s in found["slices"]] == pytest.approx([r["bits"] for r in told])
    assert found["first"] == pytest.approx(sum(r["bits"] for r in told) / sum(r["n_bytes"] for r in told))
    assert found["backward_transfer"] == pytest.approx(found["first"] - found["now"])
    assert found["backward_transfer"] > 0.3, "a network that was just begun knows the beginning better at the end"
    assert len(found["parts"]) == min(8, found["n_slices"])
    skipped = [r for r in records(run, "update") if r["skipped"] == REASON]
    assert len(skipped) * 32 >= found["n_bytes"]
    table = livelm_here("eval", run).out
    assert "backward transfer" in table
    assert f"{found['backward_transfer']:+.3f}" in table


def test_a_run_that_held_nothing_out_says_so(text: Path, tmp_path: Path, livelm_here: Any) -> None:
    livelm_here("run", text, "--out", tmp_path / "run", "--for", "500B", *TINY, *NETWORK)
    said = livelm_here("eval", tmp_path / "run", code=4)
    assert "held nothing out" in said.err
    assert "--set holdout.share=0.02" in said.err


def test_a_run_rehearses_and_says_how_much(text: Path, tmp_path: Path, livelm_here: Any) -> None:
    run = tmp_path / "run"
    livelm_here("run", text, "--out", run, *TINY, *NETWORK, *REHEARSED)
    told = records(run, "rehearsed")
    summary = json.loads(livelm_here("show", run, "--json").out)
    assert summary["n_rehearsals"] == sum(r["n_updates"] for r in told) > 0.9 * summary["n_batches"]
    expected = sum(r["bits"] for r in told) / sum(r["n_bytes"] for r in told)
    assert summary["rehearsed_bits_per_byte"] == pytest.approx(expected)
    assert summary["n_bytes"] == text.stat().st_size, "what is rehearsed is not graded again"
    assert "more by what was learned before" in livelm_here("show", run).out


def test_a_fork_rehearses_and_grades_what_its_run_read(text: Path, tmp_path: Path, livelm_here: Any) -> None:
    run, other = tmp_path / "run", tmp_path / "other.txt"
    livelm_here("run", text, "--out", run, *TINY, *NETWORK, *HELD, *REHEARSED)
    other.write_bytes(bytes(range(32, 120)) * 12)
    livelm_here("fork", run, other, "--out", tmp_path / "fork")
    before, after = (json.loads(livelm_here("eval", path, "--json").out) for path in (run, tmp_path / "fork"))
    old = [s["first_bits"] for s in before["slices"]]
    assert [s["first_bits"] for s in after["slices"]][: len(old)] == pytest.approx(old)
    assert after["n_slices"] > len(old)
    first = records(tmp_path / "fork", "rehearsed")[0]
    assert first["batch"] == 0 or first["batch"] < 5, "there is something to rehearse from the first update on"
    assert first["bits"] / first["n_bytes"] < records(tmp_path / "fork", "scored")[1]["bits"] / 32
    livelm_here("fork", run, other, "--out", tmp_path / "anew", "--set", "rehearsal.slice_tokens=17")
    anew = tree_of(tmp_path / "anew")
    assert anew["rehearsal"]["kept"]["n_offered"] * 17 <= other.stat().st_size


def tree_of(run: Path) -> dict[str, Any]:
    return load_checkpoint(sorted((run / "checkpoints").glob("[0-9]*"))[-1])
