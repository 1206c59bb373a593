"""Bits of bytes: their order, their parity, and bytes that arrive cut in the middle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from livelm.config import FeedSettings, load_recipe
from livelm.errors import ConfigError
from livelm.feed import batches
from livelm.models.bit import Bit
from livelm.run import resume, run_session, start
from livelm.session import Stop
from livelm.tokenize.bits import Bits, BitsConfig
from livelm.tokenize.decoder import Decoder
from livelm.types import Cursor, Document

TEXT = bytes(range(256)) + "naïve 漢字".encode()
SHORT = TEXT[200:]
TINY = [
    *("run.threads=1", "memory.name=none", "model.name=bit", "model.d_model=16", "model.n_heads=2"),
    *("model.n_layers=1", "model.context=8"),
]


class Notes:
    """Documents of which the middle is only read."""

    bounded = replayable = True

    def read(self, cursor: Cursor | None) -> object:
        for n in range(3):
            yield Document(text=b"head[middle]tail", id=str(n), source="demo", context=((4, 12),)), Cursor("demo")


def test_the_most_significant_bit_comes_first_and_the_last_token_stands_for_the_byte() -> None:
    tokens = Bits(BitsConfig()).encode(b"\x01\xa0")
    assert tokens.ids.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0]
    assert tokens.n_bytes.tolist() == [0] * 7 + [1] + [0] * 7 + [1]


def test_parity_makes_the_number_of_ones_even() -> None:
    tokens = Bits(BitsConfig(parity="even")).encode(TEXT)
    bits = tokens.ids.reshape(-1, 9)
    assert (bits.sum(axis=1) % 2 == 0).all()
    assert np.array_equal(np.packbits(bits[:, :8].astype(np.uint8)), np.frombuffer(TEXT, np.uint8))


@pytest.mark.parametrize("parity", ["none", "even"])
def test_ranges_that_are_only_read_leave_whole_bytes(parity: str) -> None:
    tokenizer = Bits(BitsConfig(parity=parity))  # type: ignore[arg-type]
    decoder, text, n_bytes = Decoder(tokenizer), b"", 0
    for batch in batches(Notes(), tokenizer, FeedSettings(update_tokens=13), None):  # type: ignore[arg-type]
        text += decoder.feed(batch.tokens[0][batch.graded[0]].tolist())
        n_bytes += batch.n_graded_bytes
    assert text == b"headtail" * 3
    assert n_bytes == len(text)


def learned(folder: Path, name: str, *more: str) -> Path:
    (folder / "text.bin").write_bytes(SHORT)
    uris = json.dumps([str(folder / "text.bin")])
    settings = [*TINY, "tokenizer.name=bits", "feed.update_tokens=72", f"source.uris={uris}", *more]
    run_session(start(load_recipe(None, "tiny", settings), folder / name, Stop()), [])
    return folder / name


def scored(run: Path) -> list[float]:
    records = map(json.loads, (run / "journal.jsonl").read_bytes().splitlines())
    return [record["bits"] for record in records if record["kind"] == "scored"]


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


def test_a_run_over_bits_keeps_the_graded_bytes_and_resumes_in_the_middle_of_one(tmp_path: Path) -> None:
    whole = learned(tmp_path, "whole", "feed.update_tokens=13")
    run = learned(tmp_path, "halves", "feed.update_tokens=13", 'run.budget="30B"')
    run_session(resume(run, "1MB", Stop()), [])
    assert (whole / "graded.bytes").read_bytes() == (run / "graded.bytes").read_bytes() == SHORT
    assert scored(run) == scored(whole)


def test_parity_costs_nothing() -> None:
    """Not a single bit, and it changes no other score: it is known, and what is known is neither predicted nor read."""
    costs = []
    for parity in (False, True):
        torch.manual_seed(0)
        tokenizer = Bits(BitsConfig(parity="even" if parity else "none"))
        model = Bit(Bit.Config(d_model=16, n_heads=2, n_layers=1, context=8, parity=parity), 3)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        tokens = torch.tensor([[2, *tokenizer.encode(TEXT).ids.tolist()]])
        starts = torch.arange(tokens.shape[1])[None] == 0
        nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(1))
        costs.append(nats.detach().view(-1, tokenizer.n_symbols))
    assert (costs[1][:, 8] == 0).all()
    torch.testing.assert_close(costs[1][:, :8], costs[0])


@pytest.mark.parametrize("wrong", [["tokenizer.parity=even"], ["model.parity=true"]])
def test_a_model_that_does_not_expect_the_parity_is_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parity"):
        learned(tmp_path, "run", *wrong)
    assert not (tmp_path / "run").exists()


def test_patches_of_too_many_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.patch = 3 .*tokenizer.name=bits"):
        learned(tmp_path, "run", "tokenizer.name=bytes", "model.patch=3")
