"""K, C and S mean what their formulas say, drift is not a spike, and the gate refuses learning without un-scoring."""

import base64
import json
import math
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.config import SignalsSettings, load_recipe
from livelm.errors import ConfigError, ContractError
from livelm.parts import build_parts
from livelm.telemetry.fold import Fold
from livelm.telemetry.frame import ASCII, frame
from livelm.telemetry.signals.drift import DriftDetector
from livelm.telemetry.signals.formulas import Measure, measure_reference
from livelm.telemetry.signals.gate import Gate
from livelm.telemetry.signals.lz76 import PhraseCounter, complexity, count_phrases_reference
from livelm.telemetry.signals.monitor import Monitor
from livelm.tokenize import TOKENIZERS
from livelm.types import LN_2, Batch, Scored

COUNTERS = {n: PhraseCounter(n) for n in (2, 3, 256)}
MEASURE = Measure()
PROSE = (
    b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want "
    b"of a wife. However little known the feelings or views of such a man may be on his first entering a "
    b"neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered "
    b"the rightful property of some one or other of their daughters. My dear Mr. Bennet, said his lady to him one "
    b"day, have you heard that Netherfield Park is let at last? Mr. Bennet replied that he had not. But it is, "
    b"returned she; for Mrs. Long has just been here, and she told me all about it. Mr. Bennet made no answer. Do "
    b"not you want to know who has taken it? "
)


def symbols(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def window(text: bytes, nats: float = 1.0) -> Any:
    return MEASURE.window(text, np.full(len(text), nats))


@pytest.mark.parametrize(
    ("sequence", "n_phrases"),
    [
        ("0001101001000101", 6),  # 0 001 10 100 1000 101: the example of Lempel and Ziv (1976) and Kaspar and Schuster
        ("", 0),
        ("0", 1),
        ("00", 2),
        ("0000000000000000", 2),
        ("0101010101010101", 3),
        ("01", 2),
    ],
)
def test_phrases_of_known_sequences(sequence: str, n_phrases: int) -> None:
    bits = bytes(map(int, sequence))
    assert count_phrases_reference(bits) == n_phrases
    assert all(counter.count(symbols(bits)) == n_phrases for counter in COUNTERS.values())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([2, 3, 256]), st.lists(st.integers(0, 255), max_size=90), st.integers(1, 4))
def test_compiled_phrases_are_those_of_the_definition(n_symbols: int, values: list[int], n_times: int) -> None:
    text = bytes(value % n_symbols for value in values) * n_times
    assert COUNTERS[n_symbols].count(symbols(text)) == count_phrases_reference(text)


def test_symbols_outside_the_alphabet_are_refused() -> None:
    with pytest.raises(ValueError, match="symbol 2 is outside an alphabet of 2"):
        COUNTERS[2].count(symbols(b"\x00\x02"))
    with pytest.raises(ValueError, match="2 to 256"):
        PhraseCounter(1)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=80), st.data())
def test_compiled_signals_are_those_of_plain_python_and_in_range(text: bytes, data: Any) -> None:
    nats = data.draw(st.lists(st.floats(0, 1e4), max_size=90))
    found = MEASURE.window(text, np.array(nats, np.float64))
    assert found == pytest.approx(measure_reference(text, nats), rel=1e-9, abs=1e-9)
    for name in ("negentropy", "complexity", "prediction_negentropy", "prediction_complexity", "symbiosis"):
        assert 0 <= getattr(found, name) <= 1, name
    assert all(map(math.isfinite, found))


def test_windows_without_bytes_are_refused_and_the_smallest_have_signals() -> None:
    with pytest.raises(ValueError, match="without a byte"):
        MEASURE.window(b"", np.empty(0))
    one, same = window(b"a"), window(b"a" * 500)
    assert (one.negentropy, one.complexity, one.disorder) == (1, 0, 0)
    assert (same.negentropy, same.disorder) == (1, 0)
    assert same.complexity < 0.01


def test_k_counts_what_is_missing_from_eight_bits() -> None:
    assert window(bytes(range(256)) * 4).negentropy == pytest.approx(0)
    assert window(bytes(range(16)) * 4).negentropy == pytest.approx(0.5)
    assert window(b"ab" * 32).negentropy == pytest.approx(7 / 8)


def test_c_is_one_for_random_bits_and_low_for_what_repeats() -> None:
    bits = symbols(bytes(random.Random(0).choices(b"\x00\x01", k=20_000)))
    assert complexity(COUNTERS[2].count(bits), len(bits), 2) == pytest.approx(1, abs=0.05)
    assert window(PROSE[:40] * 20).complexity < 0.1


@pytest.mark.parametrize("n_bytes", [512, 1024])
def test_garbage_is_above_the_gate_and_prose_below(n_bytes: int) -> None:
    chooser, defaults = random.Random(0), SignalsSettings()
    noise = chooser.randbytes(2 * n_bytes)
    for text in (noise, base64.encodebytes(noise), zlib.compress(base64.b64encode(noise))[100:]):
        assert window(text[:n_bytes]).complexity > defaults.gate_close
    assert window(PROSE[:n_bytes]).complexity < defaults.gate_open
    assert window(noise.hex().encode()[:n_bytes]).disorder > 0.8 > window(PROSE[:n_bytes]).disorder


def test_the_divergence_of_constant_predictions_is_that_of_kullback_and_leibler() -> None:
    text, q = b"aabc" * 50, {ord("a"): 0.25, ord("b"): 0.25, ord("c"): 0.5}
    nats = np.array([-math.log(q[byte]) for byte in text])
    p = {ord("a"): 0.5, ord("b"): 0.25, ord("c"): 0.25}
    kl = sum(share * math.log2(share / q[byte]) for byte, share in p.items())
    found = MEASURE.window(text, nats)
    assert found.divergence == pytest.approx(kl)
    assert found.symbiosis == pytest.approx(1 / (1 + 2**kl))
    own = np.array([-math.log(p[byte]) for byte in text])
    assert MEASURE.window(text, own).symbiosis == pytest.approx(0.5)
    assert window(text, 0.01).symbiosis > 0.7
    assert window(text, 1e6).symbiosis < 1e-300


def noisy(level: float, n: int, seed: int = 0) -> list[float]:
    chooser = random.Random(seed)
    return [chooser.gauss(level, 0.1) for _ in range(n)]


def alarms(values: list[float], **changes: Any) -> list[tuple[int, str, str]]:
    options = {"threshold": 12.0, "spike": 6.0, "burn_in": 10, "directions": ("up", "down"), **changes}
    detector = DriftDetector(**options)
    return [(at, a.alarm, a.direction) for at, value in enumerate(values) for a in detector.take(value)]


def test_a_shift_is_a_drift_soon_and_once_in_its_direction() -> None:
    for step, direction in ((0.5, "up"), (-0.5, "down")):
        found = alarms(noisy(2, 100) + noisy(2 + step, 100, seed=1))
        assert [f[1:] for f in found] == [("drift", direction)]
        assert 101 <= found[0][0] <= 108


def test_a_single_window_is_a_spike_and_no_drift() -> None:
    assert alarms([*noisy(2, 60), 9.0, *noisy(2, 60, seed=1)]) == [(61, "spike", "up")]
    assert alarms([*noisy(2, 60), 9.0, *noisy(2, 60, seed=1)], directions=("down",)) == []


def test_what_stays_as_it_is_raises_no_alarm() -> None:
    assert sum(len(alarms(noisy(2, 300, seed))) for seed in range(10)) == 0
    assert alarms([0.0] * 100) == []


def test_every_threshold_of_drift_is_alive() -> None:
    shift, spike = noisy(2, 60) + noisy(2.4, 30, seed=1), [*noisy(2, 60), 2.8, *noisy(2, 9, seed=1)]
    assert alarms(shift)[0][0] < alarms(shift, threshold=16.0)[0][0]
    assert alarms(shift, burn_in=95) == []
    assert alarms(spike) != alarms(spike, spike=20.0) == []


def gate(**changes: Any) -> Gate:
    return Gate(SignalsSettings.model_validate({"window_bytes": 512, "gate": "complexity", "burn_in": 0, **changes}))


def states(which: Gate, values: list[float]) -> list[bool]:
    found = []
    for value in values:
        moved, before = which.take(value), found[-1] if found else False
        assert moved == (which.closed != before)
        found.append(which.closed)
    return found


def test_the_gate_closes_above_one_level_and_opens_below_the_other() -> None:
    levels = {"gate_close": 0.6, "gate_open": 0.4, "gate_decay": 0.0}
    values = [0.5, 0.6, 0.5, 0.41, 0.4, 0.5, 0.7]
    assert states(gate(**levels), values) == [False, True, True, True, False, False, True]
    assert states(gate(gate_close=0.4, gate_open=0.6, gate_decay=0.0), [0.5, 0.4, 0.5, 0.6, 0.5]) == [
        *(False, True, True, False, False)
    ]


def test_the_gate_waits_out_its_burn_in_and_has_a_memory() -> None:
    assert states(gate(burn_in=3), [0.9] * 5) == [False, False, False, True, True]
    assert states(gate(gate_decay=0.0), [0.4, 0.9]) == [False, True]
    assert states(gate(gate_decay=0.9), [0.4] * 20 + [0.9]) == [False] * 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("signals.window_bytes=8", "too short"),
        ("signals.gate=complexity", "window_bytes is 0"),
        ("signals.gate=symbiosis", "signals.gate"),
        ("signals.window_bytes=-1", "window_bytes"),
        ("signals.gate_open=0.54", "apart"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, "tiny", [change])


def test_a_gate_over_several_lanes_is_refused() -> None:
    changes = ["signals.window_bytes=512", "signals.gate=complexity", "feed.lanes=2", "model.ngrams=[]"]
    with pytest.raises(ConfigError, match=r"feed\.lanes is 2"):
        build_parts(load_recipe(None, "tiny", changes))


def scored(text: bytes, index: int, lanes: int = 1) -> Scored:
    tokens = torch.tensor(list(text)).reshape(lanes, -1)
    graded = torch.ones_like(tokens, dtype=torch.bool)
    nothing = {"index": index, "spans": (), "begun": (), "cursor": None}
    batch = Batch(tokens=tokens, starts=~graded, graded=graded, n_bytes=graded.long(), **nothing)
    nats = (tokens.double() + 1).log()
    return Scored(seal=None, batch=batch, nats=nats, sum_nats=float(nats.sum()), loss=torch.zeros(()))


def watched(text: bytes, lanes: int, stops: tuple[int, ...]) -> list[Any]:
    """The records of batches of 40 tokens, saved and restored through a checkpoint's tree after some of them."""
    options = SignalsSettings(window_bytes=100, gate="complexity" if lanes == 1 else "off", burn_in=2)

    def make() -> Monitor:
        return Monitor(options, TOKENIZERS["bytes"](TOKENIZERS["bytes"].Config()), lanes)

    monitor, records = make(), []
    for i in range(len(text) // 40):
        records += monitor.take(scored(text[40 * i : 40 * i + 40], i, lanes))
        records.append(monitor.refusal)
        if i in stops:
            state = monitor.state_dict()
            monitor = make()
            monitor.load_state_dict(state)
    return records


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_saved_monitor_goes_on_with_the_records_that_would_have_come(lanes: int) -> None:
    noise = random.Random(0).randbytes(1600)
    text = PROSE * 2 + noise + PROSE[:600] * 2
    expected = watched(text, lanes, ())
    assert watched(text, lanes, (3, 4, 17, 40, 41)) == expected
    kinds = [record["kind"] for record in expected if isinstance(record, dict)]
    assert kinds.count("signals") == sum(len(text) // 40 * 40 // lanes // 100 for _ in range(lanes))
    assert (kinds.count("gate") == 2) == (lanes == 1)
    if lanes == 1:
        assert "the gate is closed: complexity is 0." in next(r for r in expected if isinstance(r, str))


def test_windows_over_bits_hold_whole_bytes_wherever_batches_and_saves_cut_them() -> None:
    tokenizer = TOKENIZERS["bits"](TOKENIZERS["bits"].Config())
    text = random.Random(3).randbytes(250)
    encoded = tokenizer.encode(text)
    monitor, records = Monitor(SignalsSettings(window_bytes=100), tokenizer, 1), []
    for index, at in enumerate(range(0, len(encoded.ids), 37)):  # 37 bits: nearly every batch ends inside a byte
        part = slice(at, at + 37)
        tokens, n_bytes = (torch.from_numpy(x[part]).long()[None] for x in (encoded.ids, encoded.n_bytes))
        graded = torch.ones_like(tokens, dtype=torch.bool)
        nothing = {"index": index, "spans": (), "begun": (), "cursor": None}
        batch = Batch(tokens=tokens, starts=~graded, graded=graded, n_bytes=n_bytes, **nothing)
        nats = torch.full(tokens.shape, LN_2, dtype=torch.float64)
        records += monitor.take(Scored(seal=None, batch=batch, nats=nats, sum_nats=1.0, loss=torch.zeros(())))
        state, monitor = monitor.state_dict(), Monitor(SignalsSettings(window_bytes=100), tokenizer, 1)
        monitor.load_state_dict(state)
    found = [record for record in records if record["kind"] == "signals"]
    assert [record["n_bytes"] for record in found] == [100, 100]
    assert [record["n_tokens"] for record in found] == [800, 800]
    for record, piece in zip(found, (text[:100], text[100:200]), strict=True):
        assert record["negentropy"] == pytest.approx(window(piece, 8 * LN_2).negentropy, abs=1e-6)
        assert record["bits_per_byte"] == pytest.approx(8.0)


def test_a_window_holds_its_own_bytes_and_costs() -> None:
    found = [r for r in watched(PROSE, 1, ()) if isinstance(r, dict) and r["kind"] == "signals"]
    for i, record in enumerate(found):
        text = PROSE[100 * i : 100 * i + 100]
        want = measure_reference(text, [math.log(byte + 1) for byte in text])
        assert (record["n_bytes"], record["n_tokens"]) == (100, 100)
        assert {name: record[name] for name in want._fields} == pytest.approx(want._asdict(), abs=1e-6)


def test_the_fold_counts_windows_alarms_and_what_was_refused() -> None:
    fold = Fold()
    batch = {"kind": "scored", "bits": 30.0, "n_bytes": 10, "n_tokens": 10, "documents": []}
    signals = measure_reference(b"abab", [LN_2] * 4)._asdict()
    alarm = {"kind": "alarm", "alarm": "drift", "signal": "complexity", "direction": "up", "before": 0.1, "now": 0.5}
    for record in (batch, {"kind": "signals", **signals}, {"kind": "signals", **signals, "negentropy": 0.0}, alarm):
        fold.take(record)
    for closed in (True, False):
        fold.take({"kind": "gate", "closed": closed, "mean": 0.7})
        for _ in range(3):
            fold.take({"kind": "update", "gradient_norm": None, "rate": 0.1, "skipped": "shut" if closed else None})
    found = fold.summary()["signals"]
    assert (found["n_windows"], found["n_drifts"], found["n_spikes"]) == (2, 1, 0)
    assert found["ranges"]["negentropy"] == {"latest": 0.0, "mean": 0.4375, "least": 0.0, "greatest": 0.875}
    assert found["latest_alarms"][0]["n_bytes"] == 10
    text = "\n".join(line.plain for line in frame(fold, 120, 40, ASCII))
    assert "0.00 0.19 0.50" in text
    assert "drift of complexity up at 10 B" in text
    assert (found["n_refused_updates"], found["n_refused_bytes"], found["gate_closed"]) == (3, 30, False)
    json.dumps(found)


GATED = [
    *("run.threads=1", "memory.name=none", "model.name=transformer", "model.d_model=8", "model.n_layers=1"),
    "model.n_heads=2",
    *("model.context=16", "model.ngrams=[]", "feed.update_tokens=40", "signals.window_bytes=128", "signals.burn_in=1"),
    "signals.gate=complexity",
]


def test_what_the_gate_refuses_is_graded_and_teaches_nothing(tmp_path: Path, livelm_here: Callable[..., Any]) -> None:
    (tmp_path / "text").write_bytes(PROSE + random.Random(0).randbytes(1000) + PROSE)
    more = [option for value in (*GATED, "checkpoint.every_s=1e9") for option in ("--set", value)]
    livelm_here("run", tmp_path / "text", "--out", tmp_path / "run", "--json", *more)
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()]
    kinds = [r["kind"] for r in journal if "seq" in r]
    assert kinds.count("scored") == kinds.count("update")
    assert sum(r["n_bytes"] for r in journal if r["kind"] == "scored") == 2 * len(PROSE) + 1000
    refused = [r for r in journal if r["kind"] == "update" and r["skipped"]]
    assert 15 <= len(refused) <= 30
    assert all(r["gradient_norm"] is None and "gate is closed" in r["skipped"] for r in refused)
    assert [r["closed"] for r in journal if r["kind"] == "gate"] == [True, False]
    shown = livelm_here("show", tmp_path / "run").out
    assert "C of the input" in shown
    assert "the gate is open" in shown
    assert json.loads(livelm_here("show", tmp_path / "run", "--json").out)["signals"]["n_refused_updates"] == len(
        refused
    )


def test_a_refused_batch_changes_no_weight_and_is_spent() -> None:
    parts = build_parts(load_recipe(None, "tiny", [*GATED[:8], 'source.uris=["x"]']))
    learner = parts.learner(lambda: 0.0)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    graded = learner.score(scored(PROSE[:40], 0).batch)
    update = learner.refuse(graded, "no")
    assert update.skipped == "no"
    assert all(torch.equal(before[name], value) for name, value in parts.model.state_dict().items())
    for again in (learner.update, lambda s: learner.refuse(s, "no")):
        with pytest.raises(ContractError, match="teaches once"):
            again(graded)
