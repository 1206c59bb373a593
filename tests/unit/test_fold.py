"""Every number shown is a fold over the journal, exact, in bounded memory."""

import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livelm.errors import JournalError
from livelm.telemetry.fold import RECENT_BYTES, Fold, fold_journal

Record = dict[str, Any]

JOURNAL: list[Record] = [
    {
        "kind": "run",
        "seq": 0,
        "schema": 1,
        "recipe": {"name": "demo", "model": {"name": "transformer"}, "run": {"seed": 7}},
        "n_parameters": 1000,
        "flops_per_token": 2000,
        "context_reach": 64,
        "stream": "two files",
    },
    {"kind": "document", "seq": 1, "ordinal": 0, "id": "a", "source": "files", "at": None, "url": None},
    {
        "kind": "scored",
        "seq": 2,
        "batch": 0,
        "bits": 800.0,
        "n_bytes": 100,
        "n_tokens": 50,
        "documents": [[0, 800.0, 100]],
    },
    {"kind": "update", "seq": 3, "batch": 0, "gradient_norm": 2.0, "rate": 0.1, "skipped": None},
    {"kind": "spans", "at_s": 2.0, "wait_s": 0.5, "score_s": 0.5, "update_s": 0.75, "save_s": 0.25, "journal_s": 0.0},
    {"kind": "document", "seq": 4, "ordinal": 1, "id": "b", "source": "files", "at": None, "url": None},
    {
        "kind": "scored",
        "seq": 5,
        "batch": 1,
        "bits": 1400.0,
        "n_bytes": 200,
        "n_tokens": 100,
        "documents": [[0, 400.0, 100], [1, 1000.0, 100]],
    },
    {"kind": "update", "seq": 6, "batch": 1, "gradient_norm": 3.0, "rate": 0.2, "skipped": "non-finite gradient"},
    {"kind": "baseline", "at_s": 3.0, "n_bytes": 256, "uniform": 8.0, "unigram": 5.0, "xz": 4.0, "ppmd": 3.0},
    {"kind": "memory", "at_s": 3.0, "resident_bytes": 1234},
    {"kind": "saved", "at_s": 3.5, "batch": 2, "folder": "checkpoints/000002"},
    {"kind": "spans", "at_s": 4.0, "wait_s": 0.5, "score_s": 0.5, "update_s": 0.75, "save_s": 0.25, "journal_s": 0.0},
    {"kind": "warning", "at_s": 4.0, "message": "look"},
    {"kind": "stopped", "at_s": 4.0, "reason": "source ended"},
]


def fold_of(records: list[Record]) -> Fold:
    fold = Fold()
    for record in records:
        fold.take(record)
    return fold


def stream(n_batches: int, n_bytes: int = 128) -> Iterator[Record]:
    """A run whose every batch is another document; costs vary from batch to batch."""
    yield JOURNAL[0]
    seq = 1
    for batch in range(n_batches):
        bits = n_bytes * (2.0 + (batch * 7919 % 101) / 50)
        yield {"kind": "document", "seq": seq, "ordinal": batch, "id": f"d{batch}"}
        parts = [[batch, bits, n_bytes]]
        scored = {"batch": batch, "bits": bits, "n_bytes": n_bytes, "n_tokens": n_bytes, "documents": parts}
        yield {"kind": "scored", "seq": seq + 1, **scored}
        yield {"kind": "warning", "at_s": batch / 100, "message": "w" * 1000}
        seq += 2


def write_journal(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_the_fold_of_a_small_journal_is_what_one_computes_by_hand() -> None:
    shown = fold_of(JOURNAL).summary()
    assert shown["bits_per_byte"] == 2200 / 300
    assert shown["nats_per_token"] == pytest.approx(2200 * math.log(2) / 150, rel=1e-15)
    decay = math.exp(-200 / RECENT_BYTES)
    assert shown["recent_bits_per_byte"] == pytest.approx((800 * decay + 1400) / (100 * decay + 200), rel=1e-15)
    assert (shown["n_bytes"], shown["n_tokens"], shown["n_documents"], shown["n_batches"]) == (300, 150, 2, 2)
    assert shown["n_skipped_updates"] == 1
    assert shown["bytes_per_s"] == 300 / 4.0
    assert shown["documents_per_s"] == 2 / 4.0
    assert shown["spans"] == {"wait_s": 1.0, "score_s": 1.0, "update_s": 1.5, "save_s": 0.5, "journal_s": 0.0}
    assert shown["baselines"] == {"uniform": 8.0, "unigram": 5.0, "xz": 4.0, "ppmd": 3.0}
    assert (shown["baselines_n_bytes"], shown["n_bytes_at_baselines"]) == (256, 100)
    assert shown["bits_per_byte_at_baselines"] == 8.0
    assert (shown["recipe"], shown["model"], shown["seed"], shown["n_parameters"]) == ("demo", "transformer", 7, 1000)
    assert (shown["state"], shown["stop_reason"], shown["elapsed_s"]) == ("stopped", "source ended", 4.0)
    assert shown["checkpoint"] == "checkpoints/000002"


def test_a_document_split_over_batches_is_one_document() -> None:
    by_id = {s.id: s for s in fold_of(JOURNAL).surprises(10)}
    assert by_id["a"].bits_per_byte == 1200 / 200
    assert by_id["a"].excess == (0 + (400 - 100 * 8.0)) / 200  # the first batch is its own measure: 8 bits per byte
    assert by_id["b"].excess == (1000 - 100 * 8.0) / 100
    assert [s.id for s in fold_of(JOURNAL).surprises(1)] == ["b"]


def test_a_short_document_is_not_called_surprising() -> None:
    short = {"kind": "scored", "bits": 500.0, "n_bytes": 20, "n_tokens": 20, "documents": [[2, 500.0, 20]]}
    records = [*JOURNAL, {"kind": "document", "ordinal": 2, "id": "short"}, short]
    assert {s.id for s in fold_of(records).surprises(10)} == {"a", "b"}


def test_folding_in_pieces_equals_folding_whole() -> None:
    records = list(stream(3000))
    pieces = Fold()
    for record in records[:1000]:
        pieces.take(record)
    pieces.summary(), pieces.curve()  # looking must not change anything
    for record in records[1000:]:
        pieces.take(record)
    whole = fold_of(records)
    assert pieces.summary() == whole.summary()
    assert pieces.curve() == whole.curve()


def test_memory_does_not_grow_with_the_stream() -> None:
    fold, sizes = Fold(), {}
    for i, record in enumerate(stream(100_000)):
        fold.take(record)
        if i in (60_000, 300_000):
            sizes[i] = len(pickle.dumps(fold.__dict__))
    assert len(fold.curve()) <= 1025
    assert len(fold.surprises(10**6)) <= 1024 + 32
    assert len(fold.warnings) <= 20
    assert fold.n_warnings == 100_000
    assert sizes[300_000] < 1.5 * sizes[60_000]


def test_the_most_surprising_document_survives_a_long_stream() -> None:
    records = list(stream(5000))
    scored = [i for i, r in enumerate(records) if r["kind"] == "scored"][50]
    records[scored] = {**records[scored], "bits": 1000.0, "documents": [[50, 1000.0, 128]]}
    assert fold_of(records).surprises(1)[0].id == "d50"


def test_the_curve_ends_with_the_present_and_its_points_are_exact() -> None:
    totals, total_bits = {}, 0.0
    records = list(stream(20_000))
    for r in records:
        if r["kind"] == "scored":
            total_bits += r["bits"]
            totals[128 * (r["batch"] + 1)] = total_bits
    curve = fold_of(records).curve()
    assert curve[-1].n_bytes == 128 * 20_000
    assert all(p.bits_per_byte == totals[p.n_bytes] / p.n_bytes for p in curve)
    assert [p.n_bytes for p in curve] == sorted({p.n_bytes for p in curve})


def test_recent_means_the_last_sixteen_kilobytes() -> None:
    level = [(64, 4.0)] * 1000 + [(64, 2.0)] * 1000
    records = [{"kind": "scored", "bits": n * b, "n_bytes": n, "n_tokens": n, "documents": []} for n, b in level]
    fold = fold_of(records)
    assert fold.bits_per_byte == 3.0
    assert fold.recent_bits_per_byte == pytest.approx(2.0 + 2.0 * math.exp(-64_000 / RECENT_BYTES), rel=1e-3)
    assert fold.curve()[-1].recent_bits_per_byte == 2.0


def test_a_batch_of_marks_only_costs_but_stands_for_no_byte() -> None:
    empty = {"kind": "scored", "bits": 9.0, "n_bytes": 0, "n_tokens": 0, "documents": [[0, 9.0, 0]]}
    fold = fold_of([JOURNAL[0], JOURNAL[1], empty])
    assert fold.curve() == []
    assert fold.summary()["bits_per_byte"] is None
    fold = fold_of([*JOURNAL[:4], empty])
    assert [p.bits_per_byte for p in fold.curve()] == [8.0]
    assert fold.bits_per_byte == 8.09


def test_points_between_two_clocks_lie_between_their_times() -> None:
    def scored(bits: float) -> Record:
        return {"kind": "scored", "bits": bits, "n_bytes": 100, "n_tokens": 1, "documents": []}

    fold = fold_of([scored(1), scored(1), {"kind": "spans", "at_s": 2.0}, scored(1)])
    assert [p.at_s for p in fold.curve()] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("size", [65_536, 100_000, 1 << 20])
def test_our_cost_at_a_prefix_stops_at_the_last_batch_inside_it(size: int) -> None:
    fold = Fold(marks=[100_000])
    before = (0, 0.0)
    expected = None
    for record in stream(9000, n_bytes=120):
        fold.take(record)
        if record["kind"] == "scored":
            after = (before[0] + 120, before[1] + record["bits"])
            expected = before if after[0] > size and expected is None else expected
            before = after
    at = fold.at(size)
    assert at is not None
    assert (at.n_bytes, at.bits) == expected
    assert fold.at(100) is None


def test_unknown_kinds_and_fields_are_ignored() -> None:
    records = [{**r, "new_field": [1]} for r in JOURNAL]
    assert fold_of([{"kind": "aurora", "x": 1}, {"no": "kind"}, *records]).summary() == fold_of(JOURNAL).summary()


def test_an_empty_fold_has_a_valid_summary() -> None:
    shown = json.loads(json.dumps(Fold().summary(), allow_nan=False))
    assert shown["bits_per_byte"] is None
    assert shown["state"] == "empty"
    assert shown["baselines"] == {"uniform": 8.0, "unigram": None, "xz": None, "ppmd": None}


def test_a_run_that_is_resumed_runs_again() -> None:
    assert fold_of([*JOURNAL, {"kind": "resumed", "at_s": 4.0, "batch": 2}]).state == "running"


def test_a_journal_file_folds_like_its_records(tmp_path: Path) -> None:
    path = write_journal(tmp_path / "journal.jsonl", JOURNAL)
    assert fold_journal(path).summary() == fold_of(JOURNAL).summary()


@pytest.mark.parametrize("keep", [1, 10, 40])
def test_a_torn_last_line_is_ignored(tmp_path: Path, keep: int) -> None:
    path = write_journal(tmp_path / "journal.jsonl", JOURNAL)
    with path.open("a") as file:
        file.write(json.dumps(JOURNAL[6])[:keep])
    assert fold_journal(path).summary() == fold_of(JOURNAL).summary()


@pytest.mark.parametrize(
    "damage", ["{broken", '{"kind":"scored","seq":2}', "[1]", "\x00\x00", '{"kind":"scored","seq":9}']
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = write_journal(tmp_path / "journal.jsonl", JOURNAL)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n")
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 3"):
        fold_journal(path)


def test_a_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    path = write_journal(tmp_path / "journal.jsonl", [{**JOURNAL[0], "schema": 2}])
    with pytest.raises(JournalError, match="newer livelm"):
        fold_journal(path)


def test_a_missing_and_a_foreign_journal_are_errors(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot read"):
        fold_journal(tmp_path / "none.jsonl")
    with pytest.raises(JournalError, match="not a livelm journal"):
        fold_journal(write_journal(tmp_path / "other.jsonl", [{"kind": "epoch", "loss": 1}]))
