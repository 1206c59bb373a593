"""Baselines are measured on the very same bytes, in a process of their own that never harms the run."""

import json
import lzma
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyppmd
import pytest

from livelm.errors import RunError
from livelm.evaluate import baselines
from livelm.evaluate.baselines import (
    FIRST_BYTES,
    Baselines,
    BaselineWorker,
    measure,
    measure_prefix,
    unigram_bits,
    unigram_bits_reference,
)

WORDS = b"the quick brown fox jumps over a lazy dog and then the dog jumps over the fox again ".split()


def text(n_bytes: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return b" ".join(rng.choice(WORDS) for _ in range(n_bytes // 3))[:n_bytes]


@pytest.fixture
def worker(tmp_path: Path):
    path = tmp_path / "graded.bin"
    path.write_bytes(text(3 * FIRST_BYTES))
    worker = BaselineWorker(path)
    yield worker
    worker.close()


def wait_for(worker: BaselineWorker) -> Baselines | None:
    for _ in range(600):
        if (measured := worker.poll()) is not None or worker._child is None:
            return measured
        time.sleep(0.05)
    return None


@pytest.mark.parametrize("data", [b"a", b"ab" * 50, bytes(range(256)) * 3, text(5000), os.urandom(1000)])
def test_unigram_in_closed_form_equals_the_sequential_estimator(data: bytes) -> None:
    assert unigram_bits(data) == pytest.approx(unigram_bits_reference(data), rel=1e-11)


def test_the_compressors_are_decodable_and_their_sizes_are_real() -> None:
    data = text(50_000)
    found = measure(data)
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 65_536}]
    alone = lzma.compress(data, lzma.FORMAT_ALONE, filters=filters)
    assert lzma.decompress(alone) == data
    assert found.xz == 8 * len(alone) / len(data)
    sizes = []
    for order in (8, 16, 32):
        coder = pyppmd.Ppmd7Encoder(order, 256 << 20)
        packed = coder.encode(data) + coder.flush()
        assert pyppmd.Ppmd7Decoder(order, 256 << 20).decode(packed, len(data)) == data
        sizes.append(len(packed))
    assert found.ppmd == 8 * min(sizes) / len(data)
    assert (found.uniform, found.n_bytes) == (8.0, 50_000)
    assert found.ppmd < found.xz < found.unigram < found.uniform


def test_pieces_do_not_change_what_a_compressor_makes_of_the_whole() -> None:
    data = text(1_100_000)  # more than one piece
    coder = pyppmd.Ppmd7Encoder(8, baselines.PPMD_MEMORY)
    assert baselines._ppmd_bytes(data, order=8) == len(coder.encode(data) + coder.flush())


def test_tinyshakespeare_costs_what_others_measured() -> None:
    path = Path(__file__).parents[2].parent / "shared/data/text/tinyshakespeare/input.txt"
    if not path.exists():
        pytest.skip("the shared test data is not here")
    found = measure(path.read_bytes())
    assert (round(found.xz, 2), round(found.ppmd, 2), round(found.unigram, 1)) == (2.61, 2.10, 4.8)


def test_nothing_has_no_bits_per_byte(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="0 bytes"):
        measure(b"")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(RunError, match="3 bytes"):
        measure_prefix(tmp_path / "short", 4)
    with pytest.raises(RunError, match="cannot read"):
        measure_prefix(tmp_path / "none", 4)


def test_a_record_carries_every_baseline_and_its_prefix() -> None:
    record = measure(b"abc" * 100).record(at_s=1.5)
    assert {"kind", "at_s", "n_bytes", "uniform", "unigram", "xz", "ppmd"} == set(record)
    assert (record["kind"], record["at_s"], record["n_bytes"]) == ("baseline", 1.5, 300)


def test_the_measuring_process_does_not_import_torch_or_numpy() -> None:
    code = "import sys, livelm.evaluate.baselines; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_program_gives_the_same_as_measure(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(text(10_000))
    command = [sys.executable, "-m", "livelm.evaluate.baselines", str(path), "7000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Baselines(**json.loads(done.stdout)) == measure(text(10_000)[:7000])


def test_the_worker_measures_prefixes_that_double(worker: BaselineWorker) -> None:
    data = worker._path.read_bytes()
    worker.grown(FIRST_BYTES - 1)
    assert worker._child is None
    worker.grown(FIRST_BYTES + 5)
    assert wait_for(worker) == measure(data[:FIRST_BYTES])
    worker.grown(2 * FIRST_BYTES - 1)
    assert worker._child is None
    worker.grown(2 * FIRST_BYTES)
    assert wait_for(worker) == measure(data[: 2 * FIRST_BYTES])
    assert worker.warnings() == []


def test_finishing_measures_everything_and_leaves_no_process(worker: BaselineWorker) -> None:
    data = worker._path.read_bytes()
    worker.grown(len(data))
    assert worker._child is not None
    pid = worker._child.pid
    assert worker.finish(len(data)) == measure(data)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker._child is None
    assert worker.poll() is None


def test_closing_ends_the_process(worker: BaselineWorker) -> None:
    worker.grown(FIRST_BYTES)
    assert worker._child is not None
    pid = worker._child.pid
    worker.close()
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_dies_is_a_warning(worker: BaselineWorker) -> None:
    worker.grown(FIRST_BYTES)
    assert worker._child is not None
    worker._child.kill()
    assert wait_for(worker) is None
    (message,) = worker.warnings()
    assert "not measured" in message
    assert "-9" in message
    assert worker.warnings() == []


def test_a_file_that_is_too_short_is_a_warning_that_says_so(worker: BaselineWorker) -> None:
    assert worker.finish(4 * FIRST_BYTES) is None
    (message,) = worker.warnings()
    assert f"holds {3 * FIRST_BYTES} bytes" in message


def test_the_program_steps_back_before_it_measures(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc")
    code = f"""if True:
        import os, sys
        from livelm.evaluate import baselines
        baselines.measure = lambda data: sys.exit(f"nice {{os.nice(0)}}")
        baselines.main([{str(tmp_path / "data")!r}, "3"])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "nice 19"


def test_the_process_ends_with_the_run_that_wanted_it(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(8 << 20))
    code = (
        "import os, sys; from pathlib import Path; from livelm.evaluate.baselines import BaselineWorker\n"
        f"w = BaselineWorker(Path({str(tmp_path / 'big')!r})); w.grown(8 << 20)\n"
        "print(w._child.pid, flush=True); import time; time.sleep(0.5); os._exit(9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
    for _ in range(1000):  # it has only the time that nobody else wants
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return  # gone, or a zombie that whoever adopted it will collect
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the process outlived its run by fifty seconds")
