"""The type of a large token table fits the machine a run begins on, is written down, and stays the run's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from livelm.config import load_recipe
from livelm.errors import CheckpointError
from livelm.models import transformer
from livelm.models.ops import native
from livelm.parts import build_parts
from livelm.run import resume, run_session, start
from livelm.session import Stop

SETTINGS = [
    "run.threads=1",
    "memory.name=none",
    "model.name=transformer",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=32",
    "model.ngrams=[]",
    "model.tied=true",
    "model.token_table=auto",
    "feed.update_tokens=32",
]


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


def become(monkeypatch: pytest.MonkeyPatch, native_bfloat16: bool | None) -> None:
    """This machine is now one that multiplies bfloat16 natively, or does not, or does not say."""
    for module in (native, transformer):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: native_bfloat16)


def learned(folder: Path, *more: str) -> Path:
    text = folder / "text.txt"
    text.write_bytes(b"much to learn from, here and there and everywhere\n" * 20)
    changes = [*SETTINGS, f"source.uris={json.dumps([str(text)])}", *more]
    run_session(start(load_recipe(None, "tiny", changes), folder / "run", Stop()), [])
    return folder / "run"


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("flags", "native_bfloat16"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16 fma", True),
        ("flags : avx2 amx_bf16 amx_tile", True),
        ("Features : fp asimd bf16 i8mm", True),
        ("flags : fpu avx avx2 fma avx512f", False),
        ("", False),
    ],
)
def test_native_products_are_seen_by_their_flags(
    flags: str, native_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: flags)
    assert native.multiplies_bfloat16.__wrapped__() is native_bfloat16


@pytest.mark.parametrize(
    ("native_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)]
)
def test_auto_becomes_what_the_machine_multiplies_and_is_written_down(
    native_bfloat16: bool | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, native_bfloat16)
    parts = build_parts(load_recipe(None, "tiny", SETTINGS))
    assert parts.model.embed.weight.dtype == dtype  # type: ignore[union-attr]
    assert f"torch.{parts.recipe.model.settings()['token_table']}" == str(dtype)
    assert parts.warnings == ()


def test_a_resumed_run_keeps_the_type_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, False)
    run = learned(tmp_path, "run.budget=320B")
    become(monkeypatch, True)
    session = resume(run, "320B", Stop())
    assert session.learner.model.embed.weight.dtype == torch.float32  # type: ignore[union-attr]
    run_session(session, [])
    assert records(run)[0]["recipe"]["model"]["token_table"] == "float32"
    assert not [r for r in records(run) if r["kind"] == "warning"]


def test_a_run_that_moves_to_a_slow_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, True)
    run = learned(tmp_path, "run.budget=320B")
    become(monkeypatch, False)
    run_session(resume(run, "320B", Stop()), [])
    (warning,) = [r["message"] for r in records(run) if r["kind"] == "warning"]
    assert "token_table is bfloat16" in warning
    assert "many times as long" in warning


def test_weights_of_another_type_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, False)
    run = learned(tmp_path, "run.budget=320B")
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('token_table = "float32"', 'token_table = "bfloat16"'))
    with pytest.raises(CheckpointError, match=r"embed\.weight is torch\.float32, not torch\.bfloat16"):
        resume(run, "320B", Stop())
