"""Tables compare runs only over equal prefixes, and say which."""

import io
import json
import math

import pytest
from rich.console import Console, RenderableType

from livelm.evaluate.report import compare_json, compare_table, same_stream, shared_bytes, show_table
from livelm.telemetry.fold import Fold

HOSTILE = "evil\x1b[31m[red]x[/]\u202e"


def run(n_batches: int, cost: float, marks: tuple[int, ...] = (), baselines: dict[int, float] | None = None) -> Fold:
    """A run of 1000-byte batches; its n-th batch costs cost + 1/n bits per byte."""
    fold = Fold(marks)
    recipe = {"name": HOSTILE, "model": {"name": HOSTILE}}
    fold.take({"kind": "run", "schema": 1, "recipe": recipe, "n_parameters": 1000, "stream": HOSTILE})
    fold.take({"kind": "document", "ordinal": 0, "id": HOSTILE})
    for i in range(n_batches):
        bits = 1000 * (cost + 1 / (i + 1))
        fold.take({"kind": "scored", "bits": bits, "n_bytes": 1000, "n_tokens": 1000, "documents": [[0, bits, 1000]]})
    fold.take({"kind": "spans", "at_s": 10.0, "score_s": 4.0, "update_s": 6.0})
    for size, xz in (baselines or {}).items():
        fold.take(
            {"kind": "baseline", "at_s": 10.0, "n_bytes": size, "uniform": 8.0, "unigram": 5.0, "xz": xz, "ppmd": 2.0}
        )
    fold.take({"kind": "warning", "at_s": 10.0, "message": HOSTILE})
    return fold


def overall(n_batches: int, cost: float) -> float:
    return cost + sum(1 / (i + 1) for i in range(n_batches)) / n_batches


def printed(what: RenderableType, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def test_runs_that_read_different_amounts_are_compared_over_what_both_read() -> None:
    folds = {"long": run(5000, 2.0, marks=(1_234_000,)), "short": run(1234, 3.0)}
    found = compare_json(folds)
    assert found["n_bytes"] == shared_bytes(folds) == 1_234_000
    assert {r["n_bytes"] for r in found["runs"].values()} == {1_234_000}
    assert found["runs"]["long"]["bits_per_byte"] == pytest.approx(overall(1234, 2.0), rel=1e-12)
    assert found["runs"]["short"]["ratio_to_first"] == pytest.approx(overall(1234, 3.0) / overall(1234, 2.0), rel=1e-12)
    assert found["runs"]["long"]["n_bytes_read"] == 5_000_000


def test_without_a_mark_the_nearest_boundary_before_is_taken_and_named() -> None:
    row = compare_json({"long": run(5000, 2.0), "short": run(1234, 3.0)})["runs"]["long"]
    assert 1_234_000 * (1 - 1 / 32) <= row["n_bytes"] <= 1_234_000
    assert row["bits_per_byte"] == pytest.approx(overall(row["n_bytes"] // 1000, 2.0), rel=1e-12)


def test_compressors_are_compared_over_the_longest_prefix_that_all_measured() -> None:
    folds = {
        "a": run(300, 2.0, baselines={65536: 4.0, 131072: 3.5, 300_000: 3.0}),
        "b": run(200, 3.0, baselines={65536: 4.0, 131072: 3.5}),
    }
    found = compare_json(folds)
    assert {r["baselines_n_bytes"] for r in found["runs"].values()} == {131072}
    assert found["runs"]["a"]["ratio_to_xz"] == pytest.approx(overall(131, 2.0) / 3.5, rel=1e-12)
    assert found["same_stream"] is True
    assert "first 131,072 bytes" in printed(compare_table(folds))


def test_different_streams_are_noticed_and_said() -> None:
    folds = {"a": run(100, 2.0, baselines={65536: 4.0}), "b": run(100, 2.0, baselines={65536: 4.1})}
    assert same_stream(folds) is False
    assert "different streams" in printed(compare_table(folds))
    assert same_stream({"a": run(100, 2.0), "b": run(100, 2.0)}) is None


def test_a_run_that_graded_nothing_does_not_spoil_the_comparison() -> None:
    found = compare_json({"a": run(100, 2.0, baselines={65536: 4.0}), "empty": Fold()})
    assert found["n_bytes"] == 100_000
    assert found["runs"]["empty"]["bits_per_byte"] is None
    assert compare_json({}) == {"n_bytes": 0, "same_stream": None, "runs": {}}


def test_what_is_said_as_json_is_json() -> None:
    broken = run(10, math.nan, baselines={4096: 3.0})
    json.dumps(compare_json({"a": run(10, 2.0), "broken": broken, "empty": Fold()}), allow_nan=False)


def test_a_run_is_shown_with_its_numbers() -> None:
    fold = run(100, 2.0, baselines={65536: 4.0, 100_000: 2.5})
    text = printed(show_table(fold))
    for number in (f"{fold.bits_per_byte:.3f}", "100,000 bytes", "10.0 KB/s", "65,536", "2.500", "60.0 %"):
        assert number in text
    assert f"{overall(65, 2.0) / 4.0:.3f}" in text


@pytest.mark.parametrize("width", [20, 80, 200])
def test_hostile_text_is_shown_escaped_in_tables(width: int) -> None:
    folds = {HOSTILE: run(100, 2.0, baselines={65536: 4.0}), "[/bold]": Fold()}
    text = printed(show_table(folds[HOSTILE]), width) + printed(compare_table(folds), width)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert width < 200 or "evil\\x1b[31m[red]x[/]\\u202e" in text


def test_an_empty_run_can_be_shown() -> None:
    assert "waiting" in printed(show_table(Fold()))
