"""The numbers in the docs are those of the records."""

from pathlib import Path

from bench.numbers import TARGET, text


def test_numbers_are_written_from_the_records() -> None:
    assert TARGET.read_text("utf-8") == text(), "run: python -m bench.numbers"


def test_every_record_says_how_it_was_made() -> None:
    records = sorted((Path(__file__).parents[2] / "bench" / "records").iterdir())
    assert records
    assert all((folder / "record.json").exists() for folder in records)
