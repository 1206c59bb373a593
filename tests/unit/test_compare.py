"""Architectures are compared as equals: the same stream, clock and grid, and intervals that are right."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.conftest import Said

from livelm.compare import contest as contest_module
from livelm.compare.arms import count_dense, make_arms, sketch, unknown_settings
from livelm.compare.contest import PILOT_SEED, Contest
from livelm.compare.rules import Equal, Rules, parse_rates
from livelm.compare.widths import match_parameters
from livelm.errors import ConfigError, RunError
from livelm.evaluate.baselines import measure
from livelm.evaluate.intervals import interval, t_probability, t_quantile
from livelm.folder import RunFolder
from livelm.run import run_session, start
from livelm.session import Stop
from livelm.telemetry.clock import Clock
from livelm.telemetry.fold import fold_journal

TEXT = "".join(f"{k} bottles of beer on the wall, take one down.\n" for k in range(200))
SMALL = ["model.d_model=16", "model.context=32", "model.ngrams=[]", "model.n_heads=2", "transformer.model.n_layers=1"]
RULES = Rules(equal=Equal.BYTES, budget="900B", seeds=2, rates=(), pilot="")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def arms(text: Path, *models: str, changes: list[str] = SMALL) -> list[Any]:
    return make_arms(models or ("transformer", "worker"), "tiny", [*changes, "run.threads=1"], [str(text)])


# Of which 95 % and 99 % quantiles: any table of Student's t.
@pytest.mark.parametrize(
    ("n", "at_95", "at_99"), [(1, 12.7062, 63.6567), (2, 4.3027, 9.9248), (3, 3.1824, 5.8409), (9, 2.2622, 3.2498)]
)
def test_quantiles_are_those_of_student(n: int, at_95: float, at_99: float) -> None:
    assert t_quantile(0.95, n) == pytest.approx(at_95, abs=1e-4)
    assert t_quantile(0.99, n) == pytest.approx(at_99, abs=1e-4)
    assert t_probability(t_quantile(0.9, n), n) == pytest.approx(0.9)


def test_an_interval_needs_two_values() -> None:
    assert interval([2.0]).half is None
    assert str(interval([2.0])) == "2.000"
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(4.3027 / 3**0.5, abs=1e-3))


def test_a_paused_clock_stands_still_in_all_spans() -> None:
    clock = Clock()
    with clock.span("journal"), clock.paused():
        for _ in range(10**5):
            pass
    report = clock.report()
    assert 0 <= report["journal_s"] <= report["at_s"] + 1e-3
    before = clock.active_s
    with clock.paused():
        began = clock._began
    assert clock._began > began
    assert clock.active_s >= before


@pytest.mark.parametrize(
    ("models", "changes", "said"),
    [
        (["transformr", "worker"], [], "Did you mean 'transformer'"),
        (["worker"], [], "at least two"),
        (["worker", "worker"], [], "two different"),
        (["worker", "looped"], ["model.contxt=3"], "Did you mean 'context'"),
        (["worker", "looped"], ["worker.model.contxt=3"], "Did you mean 'context'"),
        (["worker", "looped"], ["optimizer.rate=1"], "give --rates"),
        (["worker", "looped"], ["looped.run.seed=1"], "--seeds"),
        (["worker", "looped"], ["feed.update_token=1"], "update_tokens"),
    ],
)
def test_what_would_be_wrong_or_unfair_is_refused(models: list[str], changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_arms(models, "tiny", changes, ["a.txt"])


def test_settings_reach_the_models_that_have_them_and_the_others_are_named(text: Path) -> None:
    changes = ["model.ngrams=[]", "rwkv7.model.d_head=16", "feed.update_tokens=40"]
    a, b = arms(text, "looped", "rwkv7", changes=changes)
    assert a.recipe.model.settings()["ngrams"] == []
    assert b.recipe.model.settings()["d_head"] == 16
    assert "ngrams" not in b.recipe.model.settings()
    assert {a.recipe.feed.update_tokens, b.recipe.feed.update_tokens} == {40}
    assert unknown_settings([a, b], changes) == ["model.ngrams: rwkv7 has no such setting and runs without it."]
    assert a.origin == "recipes/looped.toml"


def test_widths_make_parameters_equal(text: Path) -> None:
    matched = match_parameters(arms(text, "transformer", "rwkv7", changes=["model.ngrams=[]"]))
    counts = [count_dense(sketch(arm.recipe)[1]) for arm in matched]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
    assert matched[0].recipe.model.settings()["d_model"] == 64


def test_equal_flops_give_cheap_models_more_bytes(text: Path, tmp_path: Path) -> None:
    contest = Contest(arms(text), replace(RULES, equal=Equal.FLOPS), tmp_path / "out", Stop())
    contest._prepare()
    spent = [
        int(arm.recipe.run.budget.removesuffix("B")) * sketch(arm.recipe)[1].flops_per_token() for arm in contest.arms
    ]
    assert contest.arms[0].recipe.run.budget == "900B"
    assert spent[1] == pytest.approx(spent[0], rel=0.01)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"equal": Equal.TIME, "budget": "5KB"}, "needs a time"),
        ({"equal": Equal.BYTES, "budget": "5s"}, "an amount"),
        ({"equal": Equal.FLOPS, "budget": "5s"}, "first model reads"),
        ({"equal": Equal.PARAMETERS, "budget": ""}, "--for is missing"),
        ({"pilot": "soon"}, "soon"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused(rules: dict[str, Any], said: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Contest(arms(text), replace(RULES, **rules), tmp_path / "out", Stop())._prepare()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["", "fast", "0", "-1e-3", "nan,1e-3"])
def test_a_grid_that_is_none_is_refused(wrong: str) -> None:
    assert parse_rates("4e-3, 1e-3,4e-3") == (1e-3, 4e-3)
    assert parse_rates("recipe") == ()
    with pytest.raises(ConfigError, match="--rates"):
        parse_rates(wrong)


def test_a_stream_that_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    made = make_arms(["transformer", "worker"], "tiny", [], ["-"])
    with pytest.raises(ConfigError, match="Keep it in a file"):
        Contest(made, RULES, tmp_path / "out", Stop())._prepare()


def test_a_folder_that_holds_something_is_not_written_into(text: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not empty"):
        Contest(arms(text), RULES, tmp_path, Stop())._prepare()


class FakeRider:
    """A run of which only the arithmetic is real: it costs |rate - best| bits more."""

    best: ClassVar = {"transformer": 2e-3, "worker": 8e-3}
    made: ClassVar[list["FakeRider"]] = []
    stop_after: ClassVar[tuple[Stop, int] | None] = None
    """A stop, and how many turns later somebody presses Ctrl-C."""

    def __init__(self, label: str, recipe: Any, out: Path) -> None:
        self.label, self.recipe, self.out = label, recipe, out
        self.n_bytes, self.bits, self.active_s = 0, 0.0, 0.0
        self.learned, self.reason, self.ended = False, None, ""
        FakeRider.made.append(self)

    def ready(self) -> None: ...

    @property
    def bits_per_byte(self) -> float:
        return self.bits / max(1, self.n_bytes)

    def go(self, until_s: float, until_bytes: int | None) -> None:
        name = self.label.partition(",")[0]
        self.active_s, self.n_bytes = until_s, self.n_bytes + 100
        self.bits += 100 * (3 + abs(self.recipe.optimizer.settings()["rate"] - self.best[name]))
        self.learned = until_bytes is None and self.n_bytes >= 900
        if FakeRider.stop_after is not None:
            stop, n = FakeRider.stop_after
            FakeRider.stop_after = (stop, n - 1)
            if n == 0:
                stop.request("interrupted")
        if self.learned:
            self.out.mkdir(parents=True)
            (self.out / "graded.bytes").write_bytes(b"x" * 900)

    def close(self, baselines: Any) -> None:
        self.ended, self.reason = "closed", "source ended"

    def stop(self, reason: str) -> None:
        self.ended = self.ended or reason

    def drop(self) -> None:
        self.ended = "dropped"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(contest_module, "Rider", FakeRider)
    FakeRider.made, FakeRider.stop_after = [], None
    yield
    FakeRider.made, FakeRider.stop_after = [], None


def test_the_pilot_takes_the_best_rate_of_the_grid_for_each_model(fakes: None, text: Path, tmp_path: Path) -> None:
    grid = (1e-3, 2e-3, 4e-3)
    contest = Contest(arms(text), replace(RULES, rates=grid, pilot="300B"), tmp_path / "out", Stop())
    said = list(contest.run())
    assert [arm.recipe.optimizer.settings()["rate"] for arm in contest.arms] == [2e-3, 4e-3]
    assert any("worker: the best rate of the pilot, 0.004, is at the edge" in note for note in contest.notes)
    assert not any("transformer: the best" in note for note in contest.notes)
    assert any("pilot cost" in sentence for sentence in said)
    pilots = [rider for rider in FakeRider.made if "pilot" in rider.label]
    assert [(r.recipe.optimizer.settings()["rate"]) for r in pilots] == [rate for rate in grid for _ in range(2)]
    assert {r.n_bytes for r in pilots} == {300}
    assert {(r.recipe.run.seed, r.ended) for r in pilots} == {(PILOT_SEED, "dropped")}
    assert {name: len(paths) for name, paths in contest.runs.items()} == {"transformer": 2, "worker": 2}
    assert any("the stream ended" in note for note in contest.notes)


def test_ctrl_c_keeps_the_seeds_that_are_done(fakes: None, text: Path, tmp_path: Path) -> None:
    stop = Stop()
    FakeRider.stop_after = (stop, 2 * 9 + 3)
    contest = Contest(arms(text), replace(RULES, seeds=3), tmp_path / "out", stop)
    list(contest.run())
    assert {len(paths) for paths in contest.runs.values()} == {1}
    assert [rider.ended for rider in FakeRider.made] == ["closed", "closed", "interrupted", "interrupted"]
    assert contest.notes[-1].startswith("interrupted after 1 of 3 seeds; their runs are saved")
    assert [path.name for path in contest.partial] == ["transformer-1", "worker-1"]


def test_one_seed_is_said_to_have_no_interval(fakes: None, text: Path, tmp_path: Path) -> None:
    contest = Contest(arms(text), replace(RULES, seeds=1), tmp_path / "out", Stop())
    list(contest.run())
    assert any("no interval" in note for note in contest.notes)


@pytest.mark.slow
@pytest.mark.timeout(400)  # processes that start on a busy machine
def test_a_comparison_is_made_of_ordinary_runs(text: Path, tmp_path: Path, livelm_here: Callable[..., Said]) -> None:
    out = tmp_path / "out"
    options = [word for change in SMALL for word in ("--set", change)]
    said = livelm_here(
        *("compare", "--models", "transformer,worker", text, "--for", "900B", "--seeds", "2", "--equal", "bytes"),
        *("--rates", "2e-3", "--out", out, "--json", *options),
    )
    found = json.loads(said.out)
    assert list(found["models"]) == ["transformer", "worker"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = found["models"]["transformer"]
    assert first["n_bytes"]["mean"] >= 900
    assert first["bits_per_byte"]["half_width"] > 0
    assert first["more_bits"]["mean"] == 0
    assert found["models"]["worker"]["more_bits"]["each"] == [
        b - a
        for a, b in zip(first["bits_per_byte"]["each"], found["models"]["worker"]["bits_per_byte"]["each"], strict=True)
    ]
    n = found["n_shared_bytes"]
    assert found["baselines"]["ppmd"] == measure(TEXT.encode()[:n]).ppmd

    # what was led turn by turn is bit for bit what nobody led
    led = RunFolder.open(out / "worker-1")
    again = start(led.recipe(), tmp_path / "again", Stop())
    run_session(again, [])
    assert facts(led) == facts(again.folder)
    assert n in fold_journal(led.journal_path).baselines
    livelm_here("resume", led.path, "--for", "200B")
    assert json.loads(livelm_here("show", led.path, "--json").out)["n_bytes"] >= 1100


def facts(folder: RunFolder) -> list[Any]:
    records = [json.loads(line) for line in folder.journal_path.read_bytes().splitlines()]
    return [record for record in records if "seq" in record and record["kind"] != "run"]


def test_nothing_to_compare_is_no_table(text: Path, tmp_path: Path) -> None:
    contest = Contest(arms(text), RULES, tmp_path / "out", Stop())
    contest.stop.request("interrupted")
    list(contest.run())
    assert contest.folds() == {}
    assert contest.shared_bytes() == 0
