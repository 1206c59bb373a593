"""Texts that were read before are recognised, others never, and memory stays what it is."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.sources.web.duplicates import Duplicates, DuplicateSettings
from livelm.sources.web.shingles import IDEOGRAPHS, MAX_BYTES, WORDS, shingles, unspaced_run

GOLDEN = [9139043466473052352, 12475655943812345476]
WORD_LIST = [f"w{i}" for i in range(5000)]


def words(seed: int, n: int = 300) -> list[str]:
    return random.Random(seed).choices(WORD_LIST, k=n)


def text(seed: int, n: int = 300) -> str:
    return " ".join(words(seed, n))


def changed(seed: int, n_changes: int) -> str:
    """The text of `seed` with so many words in a row replaced: each run that touches them is another one."""
    found = words(seed)
    found[50 : 50 + n_changes] = [f"new{i}" for i in range(n_changes)]
    return " ".join(found)


def jaccard(a: str, b: str) -> float:
    x, y = (set(shingles(t).hashes.tolist()) for t in (a, b))
    return len(x & y) / len(x | y)


@pytest.fixture
def duplicates() -> Duplicates:
    return Duplicates(DuplicateSettings(window=512))


def test_the_same_text_is_an_exact_duplicate_whatever_its_case_and_spaces(duplicates: Duplicates) -> None:
    assert duplicates.reason(text(1)) is None
    assert duplicates.reason(text(1)) == "exact_duplicate"
    assert duplicates.reason("  " + text(1).upper().replace(" ", "\n\t")) == "exact_duplicate"
    assert duplicates.reason("one two") is None
    assert duplicates.reason("One  Two") == "exact_duplicate"
    assert duplicates.reason("") is None


def test_nearly_the_same_text_is_found_and_a_half_new_one_is_not() -> None:
    n_near = n_half = 0
    for seed in range(100):
        duplicates = Duplicates(DuplicateSettings(window=64))
        assert duplicates.reason(text(seed)) is None
        n_near += duplicates.reason(changed(seed, 5)) == "near_duplicate"
        n_half += duplicates.reason(changed(seed, 100)) is not None
    assert jaccard(text(0), changed(0, 5)) > 0.93
    assert 0.4 < jaccard(text(0), changed(0, 100)) < 0.6
    assert n_near == 100
    assert n_half == 0


def test_different_texts_are_never_duplicates(duplicates: Duplicates) -> None:
    assert [duplicates.reason(text(seed)) for seed in range(2000)] == [None] * 2000


def test_scripts_without_spaces_are_compared_by_characters(duplicates: Duplicates) -> None:
    chosen = random.Random(0)
    chinese = "".join(chr(chosen.randrange(0x4E00, 0x9FFF)) for _ in range(600))
    assert duplicates.reason(chinese) is None
    assert duplicates.reason(chinese[:300] + "新" + chinese[300:]) == "near_duplicate"
    assert unspaced_run(chinese) == IDEOGRAPHS
    assert len(shingles(chinese).hashes) == 600 + 2 - IDEOGRAPHS


def test_runs_are_those_of_the_definition() -> None:
    found = shingles("a b c d e  F\ng a b c d e").hashes.tolist()
    runs = ["a b c d e", "b c d e f", "c d e f g", "d e f g a", "e f g a b", "f g a b c", "g a b c d", "a b c d e"]
    assert len(found) == len(runs)
    for i, one in enumerate(runs):
        for j, other in enumerate(runs):
            assert (found[i] == found[j]) == (one == other)
    assert len(shingles(" ".join("abcd")).hashes) == 0
    assert len(shingles(" ".join("abcde"[:WORDS])).hashes) == 1


def test_only_the_beginning_of_long_texts_is_compared(duplicates: Duplicates) -> None:
    long = text(1, MAX_BYTES // 4)
    assert len(shingles(long).hashes) < MAX_BYTES
    assert duplicates.reason(long) is None
    assert duplicates.reason(long + " another end") == "near_duplicate"


def test_the_window_slides_and_memory_is_constant() -> None:
    duplicates = Duplicates(DuplicateSettings(window=64))

    def size() -> int:
        return sum(v.nbytes for v in vars(duplicates).values() if isinstance(v, np.ndarray))

    before = size()
    for seed in range(1000):
        assert duplicates.reason(text(seed)) is None
    assert duplicates.reason(changed(995, 5)) == "near_duplicate"
    assert duplicates.reason(changed(3, 5)) is None
    assert size() == before


def test_what_is_remembered_survives_a_restart(tmp_path: Path, duplicates: Duplicates) -> None:
    path = tmp_path / "seen.npz"
    duplicates.reason(text(1))
    duplicates.save(path)
    again = Duplicates.load(path, DuplicateSettings(window=512))
    assert again.reason(text(1)) == "exact_duplicate"
    assert again.reason(changed(1, 5)) == "near_duplicate"
    assert again.reason(text(2)) is None
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_are_the_same_in_every_process() -> None:
    # stored memories depend on them; Python's own hash() would differ each time
    assert shingles("one two three four five six").hashes.tolist() == GOLDEN


@pytest.mark.parametrize("damage", ["cut", "other", "absent", "window"])
def test_a_file_that_cannot_be_used_means_an_empty_memory(
    tmp_path: Path, duplicates: Duplicates, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "seen.npz"
    duplicates.reason(text(1))
    duplicates.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "other":
        path.write_bytes(b"no archive")
    if damage == "absent":
        path.unlink()
    again = Duplicates.load(path, DuplicateSettings(window=128 if damage == "window" else 512))
    assert again.reason(text(1)) is None
    assert len(caplog.records) == (damage != "absent")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300) | st.text(alphabet="ab \ud800ก日\x00\u0130", max_size=300))
def test_no_text_makes_it_fail(content: str) -> None:
    duplicates = Duplicates(DuplicateSettings(window=16))
    assert duplicates.reason(content) is None
    assert duplicates.reason(content) == "exact_duplicate"
