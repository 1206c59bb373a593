"""The numbers of every architecture stay what they were, unless somebody changes them on purpose."""

import importlib.util
import sys
from pathlib import Path

import pytest

from livelm.models import MODELS

_spec = importlib.util.spec_from_file_location("golden_write", Path(__file__).with_name("write.py"))
assert _spec is not None
assert _spec.loader is not None
write = importlib.util.module_from_spec(_spec)  # pytest's importlib mode makes no package of `tests`
sys.modules["golden_write"] = write
_spec.loader.exec_module(write)


@pytest.mark.parametrize("name", sorted([*MODELS, write.BOTH]))
def test_the_first_scores_are_the_golden_ones(name: str) -> None:
    advice = "If the numbers should change, run `make golden` and say why in the CHANGELOG."
    path = write.path_of(name)
    assert path.exists(), f"{path} is missing. Run `make golden`."
    golden = [float(line) for line in path.read_text().split()]
    found = write.scores(name)
    assert len(golden) == len(found) == write.N_BATCHES
    # processors sum floats in different orders; real changes are larger
    worst = max(range(len(golden)), key=lambda i: abs(found[i] / golden[i] - 1))
    assert found == pytest.approx(golden, rel=1e-3), (
        f"{name}: batch {worst} costs {found[worst]:.4f} bits, golden are {golden[worst]:.4f}. {advice}"
    )


def test_every_golden_file_has_an_architecture() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("*.txt")} == {*MODELS, write.BOTH}
