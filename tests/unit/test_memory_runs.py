"""A memory in runs: with a gate, growth, policies, forks, bits and comparisons."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import Said

from livelm.compare.arms import make_arms
from livelm.config import load_recipe
from livelm.errors import ConfigError
from livelm.learn import MemoryLearner, MixedBitLearner, MixedLearner
from livelm.run import fork, load, resume, run_session, start
from livelm.session import Stop

PROSE = b"".join(b"%d. The wind was calm; the sea, it said, was not calm at all.\n" % (i % 13) for i in range(40))
MEMORY = ["memory.name=counts", "memory.budget_mib=64", "memory.history_mib=1"]
NETWORK = [
    *("run.threads=1", "model.name=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2"),
    *("model.context=16", "model.ngrams=[]", "feed.update_tokens=40", "checkpoint.every_s=1e9"),
    "learn.average_updates=0",  # what is compared are the last weights
]
BITS = [
    *("run.threads=1", "tokenizer.name=bits", "model.name=bit", "model.d_model=16", "model.n_heads=2"),
    *("model.n_layers=1", "model.context=8", "feed.update_tokens=180", "schedule.warmup=0"),
]
PAST = ("ring", "summary", "matches", "places")


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(PROSE)
    return path


def learned(text: Path, name: str, *settings: str) -> Path:
    out = text.parent / name
    recipe = load_recipe(None, "tiny", [*settings, f"source.uris={json.dumps([str(text)])}"])
    run_session(start(recipe, out, Stop()), [])
    return out


def records(run: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines()]
    return [record for record in found if record["kind"] in kinds]


def total(run: Path, name: str = "bits") -> float:
    return sum(record[name] for record in records(run, "scored"))


def counts(state: dict[str, Any]) -> dict[str, Any]:
    """Everything in a memory's state but its past."""
    tables = {name: entry for name, entry in state.items() if isinstance(entry, dict) and not name.startswith(PAST)}
    return {f"{name}.{part}": value for name, entry in tables.items() for part, value in entry.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one
    )


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ([], MixedLearner),
        (["model.name=none"], MemoryLearner),
        (["tokenizer.name=bits", "model.ngrams=[]"], MixedBitLearner),
    ],
)
def test_a_run_has_both_unless_told_otherwise(text: Path, settings: list[str], kind: type) -> None:
    run = learned(text, "run", *settings, "run.budget=300B", *MEMORY[1:])
    _, learner = load(run)
    assert type(learner) is kind
    assert all("counts_bits" in r for r in records(run, "scored")) == (kind is not MemoryLearner)
    assert records(run, "run")[0]["memory_bytes"] == pytest.approx(64 << 20, rel=0.2)


def test_counts_cost_beside_a_network_what_they_cost_alone(text: Path) -> None:
    both, bits = learned(text, "both", *NETWORK, *MEMORY), learned(text, "bits", *BITS, *MEMORY)
    alone = learned(text, "alone", "model.name=none", *MEMORY)
    network = learned(text, "network", *NETWORK, "memory.name=none")
    assert total(both, "counts_bits") == pytest.approx(total(alone), rel=1e-9)
    assert total(bits, "counts_bits") == pytest.approx(total(alone), rel=1e-9)
    assert total(both, "network_bits") == pytest.approx(total(network), rel=1e-5)
    assert total(both) < 1.03 * total(alone)
    for run in (both, bits, alone, network):
        assert sum(r["n_bytes"] for r in records(run, "scored")) == len(PROSE)


# ------------------------------------------------------------------------------------------------------------- gate

GATE = ["signals.window_bytes=128", "signals.burn_in=1", "signals.gate=complexity"]


@pytest.mark.parametrize("settings", [NETWORK, ["model.name=none", "feed.update_tokens=40"]])
def test_counts_learn_nothing_while_the_gate_was_closed_before(
    text: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, noise = PROSE[:1000], random.Random(0).randbytes(1000)
    text.write_bytes(calm + noise + calm)
    before: list[Any] = []
    after: list[tuple[str | None, bool]] = []
    for kind in (MixedLearner, MemoryLearner):

        def watch(self: Any, batch: Any, refusal: str | None = None, score: Any = kind.score) -> Any:
            before.append(counts(self.memory.state_dict()))
            scored = score(self, batch, refusal)
            after.append((refusal, same(before.pop(), counts(self.memory.state_dict()))))
            assert scored.taught == (refusal is None)
            return scored

        monkeypatch.setattr(kind, "score", watch)
    run = learned(text, "run", *settings, *MEMORY, *GATE)
    updates = records(run, "update")
    assert len(updates) == len(after) == len(records(run, "scored"))
    assert sum(r["n_bytes"] for r in records(run, "scored")) == 2 * len(calm) + len(noise)
    refused = [r["skipped"] for r in updates]
    assert 15 <= sum("gate is closed" in (reason or "") for reason in refused) <= 30
    # the counts heed what was known before the batch: they follow the gate one batch later than the network
    assert [reason for reason, _ in after[1:]] == refused[:-1]
    assert all(unchanged == (reason is not None) for reason, unchanged in after)


# ------------------------------------------------------------------------------------------------- growth, policies


def test_a_network_grows_by_its_own_plateaus_beside_counts(text: Path) -> None:
    grow = ['grow.steps=["width", "depth"]', "grow.window_bytes=128", "grow.gain=8.0", "grow.warmup=3"]
    both = learned(text, "both", *BITS, *grow, *MEMORY)
    network = learned(text, "network", *BITS, *grow, "memory.name=none")
    grown = [(r["batch"], r["what"]) for r in records(both, "grown")]
    assert [what for _, what in grown] == ["width", "depth"]
    assert grown == [(r["batch"], r["what"]) for r in records(network, "grown")]
    _, learner = load(both)
    assert isinstance(learner, MixedBitLearner)
    assert learner.model.config.n_layers == 2
    whole = records(both, "scored", "grown")
    halves = learned(text, "halves", *BITS, *grow, *MEMORY, "run.budget=430B")
    run_session(resume(halves, "1MB", Stop()), [])
    assert records(halves, "scored", "grown") == whole


@pytest.mark.parametrize("setting", ['grow.steps=["depth"]', "learn.policy=head"])
def test_what_only_a_network_can_do_is_refused_without_one(text: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.name is 'none'"):
        learned(text, "run", "model.name=none", *MEMORY, setting)


def test_a_policy_trains_the_network_and_the_counts_learn_all_the_same(text: Path) -> None:
    run = learned(text, "run", *NETWORK, *MEMORY)
    session = fork(run, [str(text)], text.parent / "fork", "", Stop(), ["learn.policy=lora:2"])
    run_session(session, [])
    before, after = load(run), load(text.parent / "fork")
    kept, own = before[0].model.state_dict(), after[0].model.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    assert not same(counts(before[1].state_dict()["memory"]), counts(after[1].state_dict()["memory"]))
    assert total(text.parent / "fork") < 0.5 * total(run)


# ------------------------------------------------------------------------------------------------------------ forks


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([], "both"),
        (["optimizer.rate=0.0001"], "both"),
        (["model.name=none"], "memory"),
        (["memory.name=none"], "network"),
        (["learn.policy=head"], "both"),
    ],
)
def test_a_fork_takes_what_both_have(text: Path, changes: list[str], parts: str) -> None:
    run, out = learned(text, "run", *NETWORK, *MEMORY), text.parent / "fork"
    session = fork(run, [str(text)], out, "", Stop(), changes)
    before = load(run)[1].state_dict()
    now = session.learner.state_dict()
    assert ("memory" in now) == (parts != "network")
    assert ("model" in now) == (parts != "memory")
    if "memory" in now:
        assert same(counts(before["memory"]), counts(now["memory"]))
    if "model" in now:
        assert same(before["model"], now["model"])
    run_session(session, [])
    first = records(out, "scored")[0]
    cost = "network_bits" if parts == "network" else "bits"
    assert first["bits"] < records(run, "scored")[0][cost]
    assert ("counts_bits" in first) == (parts == "both")


@pytest.mark.parametrize(
    ("had", "gets"),
    [
        ([*NETWORK, "memory.name=none"], MEMORY),
        (["model.name=none", *MEMORY], [s for s in NETWORK if s.startswith("model.")]),
    ],
)
def test_a_fork_adds_what_the_run_did_not_have(text: Path, had: list[str], gets: list[str]) -> None:
    run, out = learned(text, "run", *had), text.parent / "fork"
    run_session(fork(run, [str(text)], out, "", Stop(), gets), [])
    assert type(load(out)[1]) is MixedLearner
    kept = "counts_bits" if "model.name=none" in had else "network_bits"
    assert total(out, kept) < 0.8 * total(run)


@pytest.mark.parametrize("change", ["memory.budget_mib=80", "memory.salt=5", "feed.lanes=2"])
def test_a_fork_into_another_memory_is_refused(text: Path, change: str) -> None:
    run = learned(text, "run", "model.name=none", *MEMORY, "run.budget=200B")
    with pytest.raises(ConfigError, match="fits only the settings it learned with"):
        fork(run, [str(text)], text.parent / "fork", "", Stop(), [change])
    assert not (text.parent / "fork").exists()


# --------------------------------------------------------------------------------------------- other words, commands


def test_a_run_over_bits_resumes_in_the_middle_of_a_byte(text: Path) -> None:
    whole = learned(text, "whole", *BITS, *MEMORY, "feed.update_tokens=13", "run.budget=300B")
    run = learned(text, "halves", *BITS, *MEMORY, "feed.update_tokens=13", "run.budget=30B")
    run_session(resume(run, "270B", Stop()), [])
    assert records(run, "scored", "update") == records(whole, "scored", "update")


@pytest.mark.parametrize("settings", [NETWORK, BITS, ["model.name=none"]])
def test_eval_and_generate_use_the_mixture(
    text: Path, settings: list[str], livelm_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = learned(text, "run", *settings, *MEMORY)
    graded = json.loads(livelm_here("eval", run, text, "--json").out)
    assert graded["bits_per_byte"] < 0.5
    said: Said = livelm_here("generate", run, "--prompt", "3. The wind was ", "--bytes", "5", "--temperature", "0")
    assert said.out.strip() == "calm;"


def test_networks_are_compared_alone_unless_told_otherwise(text: Path, tmp_path: Path) -> None:
    def memories(models: list[str], *changes: str) -> list[str]:
        return [arm.recipe.memory.name for arm in make_arms(models, "tiny", changes, [str(text)])]

    own = tmp_path / "own.toml"
    own.write_text('name = "own"\n[memory]\nname = "counts"\n')
    silent = tmp_path / "silent.toml"
    silent.write_text('name = "silent"\n')
    assert memories(["transformer", "worker", "bit", "rwkv7", "looped"]) == ["none"] * 5
    assert memories([str(own), str(silent)]) == ["counts", "none"]
    assert memories(["transformer", "worker"], "memory.name=counts", "memory.budget_mib=64") == ["counts"] * 2
    assert memories(["transformer", "worker"], "worker.memory.name=counts") == ["none", "counts"]
    with pytest.raises(ConfigError, match="Did you mean 'budget_mib'"):
        memories(["transformer", "worker"], "memory.budget_mb=64")
    alone = tmp_path / "alone.toml"
    alone.write_text('name = "alone"\n[model]\nname = "none"\n[memory]\nname = "counts"\n')
    with pytest.raises(ConfigError, match="has no network"):
        memories(["transformer", str(alone)])
