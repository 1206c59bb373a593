"""What other tools rely on, frozen: changing a set below is a conscious edit and belongs into the CHANGELOG."""

import json
from pathlib import Path

import pytest
import typer.main

import livelm
from livelm import errors
from livelm.cli import app
from livelm.config import Recipe
from livelm.memory import MEMORIES
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS, SCHEDULES
from livelm.sources import SOURCES
from livelm.tokenize import TOKENIZERS

COMMON = {"--set", "--for", "--out", "--seed", "--threads", "--json", "--size"}


def test_public_names() -> None:
    assert livelm.__all__ == sorted(livelm.__all__)
    assert all(hasattr(livelm, name) for name in livelm.__all__)


def test_verbs_and_their_options() -> None:
    group = typer.main.get_command(app)
    found = {
        name: {option for p in verb.params for option in p.opts if option.startswith("--")}
        for name, verb in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == {
        "run": COMMON,
        "resume": {"--for", "--json"},
        "fork": {"--for", "--out", "--json", "--set"},
        "show": {"--png", "--json"},
        "compare": {
            *("--equal", "--for", "--json", "--models", "--out", "--pilot", "--png", "--rates", "--seeds", "--set"),
            *("--size", "--threads"),
        },
        "eval": {"--for", "--threads", "--json"},
        "generate": {"--prompt", "--bytes", "--temperature", "--seed", "--json"},
        "crawl": {"--contact", "--for", "--json", "--out", "--set", "--to"},
        "watch": {
            *("--burn-in", "--by", "--for", "--group-by", "--groups", "--idle", "--json", "--out", "--per-day"),
            *("--rate", "--set", "--webhook"),
        },
        "doctor": {"--json"},
    }


def test_recipe_keys() -> None:
    keys = {}
    for section, field in Recipe.model_fields.items():
        inner = field.annotation
        keys[section] = sorted(inner.model_fields) if hasattr(inner, "model_fields") else []  # type: ignore[union-attr]
    assert keys == {
        "name": [],
        "run": ["budget", "capture", "device", "seed", "threads"],
        "source": [
            *("crawl", "demo", "from_end", "kafka", "mix", "nats", "redis"),
            *("sessions", "sse", "text_field", "uris", "warc", "ws"),
        ],
        "tokenizer": ["name"],
        "feed": ["lanes", "prefetch", "update_tokens"],
        "model": ["name"],
        "memory": ["name"],
        "optimizer": ["name"],
        "schedule": ["name"],
        "learn": ["average_updates", "clip", "explosion", "policy"],
        "grow": ["gain", "rate_factor", "steps", "warmup", "window_bytes"],
        "checkpoint": ["every_s", "keep"],
        "spool": ["max_bytes", "segment_bytes"],
        "signals": [
            *("burn_in", "drift", "gate", "gate_close", "gate_decay", "gate_open"),
            *("spike", "window_bytes"),
        ],
        "rehearsal": [
            *("alpha", "beta", "buffer_bytes", "context_tokens", "how", "share"),
            *("slice_tokens", "slices", "uniform_share"),
        ],
        "holdout": ["buffer_bytes", "context_tokens", "share", "slice_tokens", "stretch_updates"],
    }


def test_registries() -> None:
    for registry in (MEMORIES, MODELS, OPTIMIZERS, SCHEDULES, SOURCES, TOKENIZERS):
        assert list(registry) == sorted(registry)
    assert set(MODELS) == {"bit", "looped", "rwkv7", "transformer", "worker"}
    assert set(MEMORIES) == {"counts"}
    assert set(OPTIMIZERS) == {"adamw", "muon"}
    assert set(SCHEDULES) == {"constant", "cooldown", "inverse_sqrt"}
    assert set(SOURCES) == {
        *("crawl", "demo", "files", "kafka", "mix", "nats", "redis"),
        *("sessions", "sse", "stdin", "tail", "warc", "ws"),
    }
    assert set(TOKENIZERS) == {"bits", "bpe", "bytes", "world"}


def test_exit_codes() -> None:
    codes = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LivelmError)
    }
    assert codes == {
        "LivelmError": 1,
        "ConfigError": 2,
        "SourceError": 3,
        "SpoolError": 3,
        "RunError": 4,
        "CheckpointError": 4,
        "JournalError": 4,
        "StorageError": 5,
        "ContractError": 6,
        "Unavailable": 7,
    }
    assert all(f"{name} " in (errors.__doc__ or "") for name in codes)


FIELDS = {
    "run": {
        "bounded", "commit", "context_reach", "flops_per_token", "kind", "machine", "memory_bytes", "n_parameters",
        "n_trainable",
        "n_vocabulary", "recipe", "replayable", "run", "schema", "seq", "stream", "versions",
    },
    "document": {"at", "id", "kind", "ordinal", "seq", "source", "url"},
    "scored": {"batch", "bits", "documents", "kind", "n_bytes", "n_tokens", "seq"},
    "grown": {"batch", "context_reach", "flops_per_token", "kind", "n_parameters", "seq", "what"},
    "update": {"batch", "gradient_norm", "kind", "rate", "seq", "skipped"},
    "rehearsed": {"batch", "bits", "kind", "n_bytes", "n_skipped", "n_updates", "seq"},
    "held_out": {"batch", "bits", "kind", "n_bytes", "seq"},
    "signals": {
        "batch", "bits_per_byte", "complexity", "disorder", "divergence", "kind", "lane", "n_bytes", "n_tokens",
        "negentropy", "prediction_complexity", "prediction_negentropy", "seq", "symbiosis",
    },
    "alarm": {"alarm", "batch", "before", "direction", "kind", "lane", "n_windows", "now", "seq", "signal"},
    "gate": {"batch", "closed", "kind", "lane", "mean", "seq"},
    "spans": {"at_s", "journal_s", "kind", "save_s", "score_s", "update_s", "wait_s"},
    "memory": {"at_s", "kind", "resident_bytes"},
    "source": {"at_s", "kind", "said"},
    "baseline": {"at_s", "kind", "n_bytes", "ppmd", "uniform", "unigram", "xz"},
    "saved": {"at_s", "batch", "folder", "kind"},
    "resumed": {"at_s", "batch", "kind"},
    "warning": {"at_s", "kind", "message"},
    "stopped": {"at_s", "kind", "reason"},
}  # fmt: skip
ALWAYS = {"run", "document", "scored", "update", "spans", "baseline", "saved", "resumed", "stopped"}


WATCHED = {
    "surprise": {
        "bits", "bits_per_byte", "cost", "document", "excess", "id", "kind", "line", "missing", "n_bytes", "rare",
        "rarity", "score", "spans", "surprise", "text", "threshold",
    },
    "group": {
        "bits", "bits_per_byte", "closed", "cost", "document", "excess", "group", "kind", "lines", "missing", "n_bytes",
        "n_lines", "rarity", "score", "surprise", "threshold",
    },
    "drift": {"before", "direction", "document", "kind", "n_windows", "now", "signal"},
    "watched": {
        "bits_per_byte", "documents", "held_back", "kind", "n_bytes", "open_groups", "reason", "surprises", "threshold",
    },
}  # fmt: skip


def test_watch_records(tmp_path: Path, livelm_here: "Command") -> None:
    noise = "".join(f"{i * i % 9973:x} {i * 7919 % 104729:x}\n" for i in range(2000))
    (tmp_path / "a.log").write_text("job=1 began\njob=2 began\nno key\n" * 1200 + noise)
    out = livelm_here("watch", tmp_path / "a.log", "--json", "--rate", "1", "--group-by", "job=.").out
    found: dict[str, set[str]] = {}
    for record in map(json.loads, out.splitlines()):
        found.setdefault("group" if "group" in record else record["kind"], set()).update(record)
    assert found == WATCHED


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, livelm_here: "Command", livelm_command: "Command") -> Path:
    folder = tmp_path_factory.mktemp("surface")
    (folder / "text.txt").write_text("to be or not to be\n" * 60)
    run = folder / "run"
    livelm_here("run", folder / "text.txt", "--out", run, "--for", "800B", *livelm_command.tiny)
    livelm_here("resume", run, "--for", "1MB")
    return run


def test_a_run_directory_holds_its_recipe_journal_and_checkpoints(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} >= {"recipe.toml", "journal.jsonl", "checkpoints"}


def test_journal_fields(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "journal.jsonl").read_bytes().splitlines()]
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["kind"], set()).update(record)
    assert found.keys() >= ALWAYS
    assert {kind: FIELDS[kind] for kind in found} == found
    facts = [r["seq"] for r in records if "seq" in r]
    assert facts == list(range(len(facts)))
    assert records[0]["kind"] == "run"


def test_a_mixture_also_says_what_its_parts_would_have_cost(
    tmp_path: Path, livelm_here: "Command", livelm_command: "Command"
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 20)
    small = ["--set", "memory.name=counts", "--set", "memory.budget_mib=64", "--set", "memory.history_mib=1"]
    livelm_here("run", tmp_path / "text.txt", "--out", tmp_path / "run", *livelm_command.tiny, *small)
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    scored = [r for r in records if r["kind"] == "scored"]
    assert all(set(r) == FIELDS["scored"] | {"counts_bits", "network_bits"} for r in scored)
    summary = json.loads(livelm_here("show", tmp_path / "run", "--json").out)
    for part in ("counts", "network"):
        whole = sum(r[f"{part}_bits"] for r in scored) / summary["n_bytes"]
        assert summary[f"{part}_bits_per_byte"] == pytest.approx(whole)
    assert "counts alone" in livelm_here("show", tmp_path / "run").out


def test_rehearsing_and_holding_out_add_their_records(
    tmp_path: Path, livelm_here: "Command", livelm_command: "Command"
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    more = ["--set", "rehearsal.share=0.5", "--set", "rehearsal.slice_tokens=16"]
    more += ["--set", "holdout.share=0.5", "--set", "holdout.slice_tokens=8", "--set", "holdout.stretch_updates=2"]
    livelm_here("run", tmp_path / "text.txt", "--out", tmp_path / "run", *livelm_command.tiny, *more)
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    for kind in ("rehearsed", "held_out"):
        assert all(set(r) == FIELDS[kind] for r in records if r["kind"] == kind)
        assert any(r["kind"] == kind for r in records)
    assert [r["seq"] for r in records if "seq" in r] == list(range(sum("seq" in r for r in records)))


def test_what_show_prints_as_json(finished: Path, livelm_here: "Command") -> None:
    summary = json.loads(livelm_here("show", finished, "--json").out)
    wanted = {"bits_per_byte", "n_bytes", "n_documents", "bytes_per_s", "n_parameters", "baselines", "spans"}
    assert summary.keys() >= wanted
    assert summary["baselines"].keys() == {"uniform", "unigram", "xz", "ppmd"}
    assert summary["n_bytes"] == 19 * 60
    assert summary["baselines_n_bytes"] == 19 * 60
