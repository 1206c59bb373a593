"""Pictures are valid PNGs of a readable size, whatever the names in them."""

import math
import struct
import zlib
from pathlib import Path

import pytest

from livelm.errors import RunError, StorageError
from livelm.evaluate.plot import plot_compare, plot_run
from livelm.telemetry.fold import Fold


def run(n_batches: int, name: str = "transformer", baselines: tuple[int, ...] = (65536, 131072)) -> Fold:
    fold = Fold()
    fold.take({"kind": "run", "schema": 1, "recipe": {"model": {"name": name}}, "n_parameters": 1000, "stream": name})
    for i in range(n_batches):
        bits = 1000 * (2 + 4 / (i + 1) ** 0.5)
        fold.take({"kind": "scored", "bits": bits, "n_bytes": 1000, "n_tokens": 1000, "documents": []})
        fold.take({"kind": "spans", "at_s": i / 10, "score_s": 0.1})
    for size in (size for size in baselines if size <= fold.n_bytes):
        measured = {"uniform": 8.0, "unigram": 5.0, "xz": 2.5 + 5e4 / size, "ppmd": None}
        fold.take({"kind": "baseline", "at_s": 1.0, "n_bytes": size, **measured})
    return fold


def png_size(path: Path) -> tuple[int, int]:
    """Check every chunk of a PNG, unpack its pixels, return width and height."""
    data, at, pixels = path.read_bytes(), 8, b""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    kinds = []
    while at < len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        pixels += body if kind == b"IDAT" else b""
        kinds.append(kind)
        at += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert len(set(zlib.decompress(pixels))) > 10  # not an empty picture
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


@pytest.mark.parametrize("n_batches", [1, 2, 40, 500])
def test_a_run_of_any_length_can_be_drawn(tmp_path: Path, n_batches: int) -> None:
    plot_run(run(n_batches), tmp_path / "curve.png")
    assert png_size(tmp_path / "curve.png") == (1000, 600)


def test_drawing_twice_gives_the_same_picture_and_another_run_another(tmp_path: Path) -> None:
    for name, n_batches in (("a", 300), ("b", 300), ("c", 310)):
        plot_run(run(n_batches), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_baselines_are_in_the_picture(tmp_path: Path) -> None:
    plot_run(run(300), tmp_path / "with")
    plot_run(run(300, baselines=()), tmp_path / "without")
    assert (tmp_path / "with").read_bytes() != (tmp_path / "without").read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{1}{", "evil\x1b[31m\x00", "文字 \udc80 \u202e", "é" * 5000])
def test_names_cannot_break_a_picture(tmp_path: Path, name: str) -> None:
    plot_run(run(100, name), tmp_path / "one.png")
    plot_compare({name: run(100, name), f"{name}2": run(50, name)}, tmp_path / "two.png")
    assert png_size(tmp_path / "one.png") == (1000, 600)
    assert png_size(tmp_path / "two.png") == (1200, 560)


def test_many_runs_fit_one_picture(tmp_path: Path) -> None:
    plot_compare({f"run {i}": run(20 + i) for i in range(30)}, tmp_path / "many.png")
    assert png_size(tmp_path / "many.png") == (1200, 560)


def test_costs_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    fold = run(100)
    fold.take({"kind": "scored", "bits": math.inf, "n_bytes": 1000, "n_tokens": 1000, "documents": []})
    plot_run(fold, tmp_path / "curve.png")
    plot_compare({"a": fold, "b": run(20)}, tmp_path / "two.png")
    assert png_size(tmp_path / "curve.png") == (1000, 600)


def test_nothing_to_draw_and_nowhere_to_write_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was graded"):
        plot_run(Fold(), tmp_path / "curve.png")
    with pytest.raises(RunError, match="nothing was graded"):
        plot_compare({"a": Fold()}, tmp_path / "curve.png")
    with pytest.raises(StorageError, match="cannot write the picture"):
        plot_run(run(10), tmp_path / "no" / "folder.png")
