"""The verbs together: score first, eval, fork, compare, resume; and that every --json is JSON."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from livelm.config import load_recipe
from livelm.errors import StorageError
from livelm.learn import list_checkpoints, load_checkpoint
from livelm.run import fork, load, resume, run_session, start
from livelm.session import Session, Stop

TEXT = b"".join(b"the %d. line of a text with much to learn from\n" % i for i in range(40))
OPTIONS = [
    "run.threads=1",
    "memory.name=none",
    "model.name=transformer",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=32",
    "model.ngrams=[2, 3]",
    "model.ngram_rows=64",
    "feed.update_tokens=32",
]
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Baselines have their own tests; here each would cost a process."""
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


def learned(folder: Path, text: bytes, name: str, *more: str) -> Path:
    path = folder / f"{name}.txt"
    path.write_bytes(text)
    settings = [*OPTIONS, f"source.uris={json.dumps([str(path)])}", *more]
    run_session(start(load_recipe(None, "tiny", settings), folder / name, Stop()), [])
    return folder / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("run"), TEXT, "done")


def records(run: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines()]
    return [record for record in found if record["kind"] in kinds]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_grading_and_writing_take_the_average_and_learning_on_does_not(tmp_path: Path) -> None:
    run = learned(tmp_path, TEXT, "averaged", "learn.average_updates=16")
    tree = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])["learner"]
    parts, _ = load(run)
    held = dict(parts.model.named_parameters())  # type: ignore[union-attr]
    means = iter(tree["average"]["means"])
    for group in parts.optimizer.param_groups:  # type: ignore[union-attr]
        if group["kind"] != "rows":
            assert all(torch.equal(parameter, next(means)) for parameter in group["params"])
    assert torch.equal(held["ngrams.table"], tree["model"]["ngrams.table"])
    session = fork(run, [str(tmp_path / "averaged.txt")], tmp_path / "forked", "", Stop())
    forked = session.learner.state_dict()["model"]
    session.close()
    assert all(torch.equal(value, tree["model"][name]) for name, value in forked.items())


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_later_byte_never_changes_an_earlier_score(lanes: int, tmp_path: Path) -> None:
    at = 1500
    other = TEXT[:at] + bytes([TEXT[at] ^ 1]) + TEXT[at + 1 :]
    # with several lanes each file of a kilobyte is one document; here one lane gets the text, the others wait
    runs = [learned(tmp_path, text, name, f"feed.lanes={lanes}") for name, text in (("one", TEXT), ("two", other))]
    one, two = (records(run, "scored", "update") for run in runs)
    first = (at + 1) // 32  # the mark is the first token
    batch = [(a["batch"], a == b) for a, b in zip(one, two, strict=True)]
    assert all(same for index, same in batch if index < first)
    assert not all(same for index, same in batch if index == first), "the changed byte must cost something else"
    assert not all(same for index, same in batch if index > first), "and teach something else"


def test_the_order_of_records_is_score_first(done: Path) -> None:
    kinds = [record["kind"] for record in records(done, "scored", "update")]
    assert kinds == ["scored", "update"] * (len(kinds) // 2)


def test_each_byte_is_graded_once(done: Path) -> None:
    assert (done / "graded.bytes").read_bytes() == TEXT
    assert sum(record["n_bytes"] for record in records(done, "scored")) == len(TEXT)


def test_eval_grades_each_byte_once_and_leaves_the_run_as_it_was(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    (tmp_path / "other.txt").write_bytes(TEXT[:777])
    before = contents(done)
    results = [json.loads(livelm_here("eval", done, tmp_path / "other.txt", "--json").out) for _ in range(2)]
    assert contents(done) == before
    assert results[0] == results[1]
    assert results[0]["n_bytes"] == 777
    assert results[0]["bits_per_byte"] == pytest.approx(results[0]["bits"] / 777)
    assert results[0]["bits_per_byte"] < records(done, "scored")[0]["bits"] / 31, "it must use what was learned"


def test_eval_of_a_stream_that_never_ends_stops_in_time(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    (tmp_path / "app.log").write_bytes(TEXT)
    said = livelm_here("eval", done, f"tail:{tmp_path / 'app.log'}", "--for", "1s", "--json")
    assert len(TEXT) - 32 <= json.loads(said.out)["n_bytes"] <= len(TEXT)


def test_eval_stops_after_the_bytes_it_was_given(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    (tmp_path / "other.txt").write_bytes(TEXT)
    found = json.loads(livelm_here("eval", done, tmp_path / "other.txt", "--for", "100B", "--json").out)["n_bytes"]
    assert 100 <= found < 100 + 32


def test_show_and_generate_leave_the_checkpoints_and_the_journal_alone(done: Path, livelm_here: Call) -> None:
    before = contents(done)
    livelm_here("show", done)
    livelm_here("show", done, "--json")
    livelm_here("generate", done, "--bytes", "3")
    after = contents(done)
    assert {path: after[path] for path in before} == before
    assert {Path(path).name for path in after.keys() - before.keys()} <= {"curve.png"}


def test_fork_begins_with_what_was_learned_and_a_journal_of_its_own(
    done: Path, tmp_path: Path, livelm_here: Call
) -> None:
    (tmp_path / "next.txt").write_bytes(TEXT[:500])
    before = contents(done)
    livelm_here("fork", done, tmp_path / "next.txt", "--out", tmp_path / "forked")
    fresh = learned(tmp_path, TEXT[:500], "fresh")
    assert records(tmp_path / "forked", "scored")[0]["bits"] < 0.9 * records(fresh, "scored")[0]["bits"]
    first, origin = records(tmp_path / "forked", "run")[0], records(done, "run")[0]
    assert first["forked_from"] == origin["run"] != first["run"]
    assert first["seq"] == 0
    assert (tmp_path / "forked" / "graded.bytes").read_bytes() == TEXT[:500]
    assert contents(done) == before


def test_a_fork_can_be_resumed(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    (tmp_path / "next.txt").write_bytes(TEXT)
    livelm_here("fork", done, tmp_path / "next.txt", "--out", tmp_path / "halves", "--for", "700B")
    livelm_here("resume", tmp_path / "halves", "--for", "1MB")
    livelm_here("fork", done, tmp_path / "next.txt", "--out", tmp_path / "whole")
    one, two = (records(tmp_path / name, "document", "scored", "update") for name in ("halves", "whole"))
    assert one == two


def test_compare_takes_equal_prefixes(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    other = learned(tmp_path, TEXT[:1000], "other")
    compared = json.loads(livelm_here("compare", done, other, "--json").out)
    assert compared["n_bytes"] == 1000
    assert set(compared["runs"]) == {str(done), str(other)}
    assert compared["same_stream"] in (True, False, None)
    assert "bits per byte over the first 1.00 KB" in livelm_here("compare", done, other).out


@pytest.mark.parametrize("verb", ["show", "doctor", "generate", "eval", "compare"])
def test_every_json_output_is_one_document(verb: str, done: Path, livelm_here: Call) -> None:
    text = done.with_suffix(".txt")
    arguments = {"show": [done], "doctor": [], "generate": [done, "--bytes", "9"], "eval": [done, text]}
    said = livelm_here(verb, *arguments.get(verb, [done, done]), "--json")
    json.loads(said.out)
    assert said.out.isascii()


def test_a_resumed_run_keeps_its_time_and_its_speed(done: Path, tmp_path: Path, livelm_here: Call) -> None:
    run = tmp_path / "copy"
    shutil.copytree(done, run)
    before = json.loads(livelm_here("show", run, "--json").out)
    livelm_here("resume", run)
    after = json.loads(livelm_here("show", run, "--json").out)
    assert after["spans"]["score_s"] >= before["spans"]["score_s"] > 0
    assert after["bytes_per_s"] <= before["bytes_per_s"] * 1.01


def test_a_budget_is_kept_and_resume_adds_to_it(tmp_path: Path) -> None:
    run = learned(tmp_path, TEXT, "run", 'run.budget="300B"')
    assert records(run, "stopped")[-1]["reason"] == "budget spent"
    counts = [sum(record["n_bytes"] for record in records(run, "scored"))]
    run_session(resume(run, "300B", Stop()), [])
    counts.append(sum(record["n_bytes"] for record in records(run, "scored")))
    assert 300 <= counts[0] < 332
    assert 300 <= counts[1] - counts[0] < 332


def test_eval_obeys_threads(done: Path, livelm_here: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", given.append)
    livelm_here("eval", done, done.with_suffix(".txt"), "--threads", "2", "--json")
    assert given == [2]


def test_a_name_that_is_not_utf8_makes_a_journal_that_everybody_can_read(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "na\udcffme.txt").write_bytes(TEXT[:200])
    settings = [*OPTIONS, f"source.uris={json.dumps([str(tmp_path / 'texts')])}"]
    run_session(start(load_recipe(None, "tiny", settings), tmp_path / "run", Stop()), [])
    for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines():
        json.loads(line.decode("utf-8"))
    assert records(tmp_path / "run", "document")[0]["id"] == "na\udcffme.txt"


def test_a_run_that_fails_to_open_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr("livelm.run.Journal", refuse)
    with pytest.raises(StorageError):
        learned(tmp_path, TEXT, "run")
    assert not (tmp_path / "run").exists()


def test_the_last_checkpoint_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Session.save

    def counted(session: Session) -> Any:
        saved.append(session.n_batches)
        return save(session)

    monkeypatch.setattr(Session, "save", counted)
    learned(tmp_path, TEXT[:200], "run", "checkpoint.every_s=0.0")
    assert len(saved) == len(set(saved)), "while a checkpoint is replaced, a kill could find none"
