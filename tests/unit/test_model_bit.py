"""The bit model: bytes cut in the middle, options alive, and growth that changes no prediction."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from livelm.config import GrowSettings, load_recipe
from livelm.errors import ConfigError
from livelm.learn.growth import Plateau
from livelm.models import bit_growth
from livelm.models.bit import Bit
from livelm.optim import OPTIMIZERS
from livelm.run import fork, load, resume, run_session, start
from livelm.session import Stop
from livelm.telemetry.fold import fold_journal

SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 5}
GROW = ["depth", "width", "context"]


def lively(**options: Any) -> Bit:
    """A model whose every parameter is away from its silent start."""
    torch.manual_seed(0)
    model = Bit(Bit.Config.model_validate(SMALL | options), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def bits_of(n: int, n_lanes: int = 2) -> tuple[Tensor, Tensor]:
    """Random bytes as bits; lanes are not in step with each other, and documents begin now and then."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, (n_lanes, n), generator=generator)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    for lane in range(n_lanes):
        starts[lane, 8 * lane + 3 :: 8 * 5 + 1] = True
    return tokens.masked_fill(starts, 2), starts


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 100, [3, 97], [13] * 7 + [9], [8] * 12 + [4]], ids=["1", "3", "13", "8"])
def test_chunks_that_cut_a_byte_do_not_matter(sizes: list[int], parity: bool) -> None:
    model, (tokens, starts) = lively(parity=parity), bits_of(100)
    whole, end = model(tokens, starts, model.init_state(2))
    state, parts = model.init_state(2), []
    for t, s in zip(tokens.split(sizes, dim=1), starts.split(sizes, dim=1), strict=True):
        logits, state = model(t, s, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    for name in end:
        torch.testing.assert_close(state[name], end[name], rtol=1e-4, atol=1e-5)


def test_a_head_that_begins_at_random_is_sure_of_nothing_and_teaches_the_trunk_at_once() -> None:
    tokens, starts = bits_of(401)
    for scale, moved in ((0.0, False), (1.0, True)):
        torch.manual_seed(0)
        model = Bit(Bit.Config.model_validate(SMALL | {"head_scale": scale}), 3)
        nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(2))
        assert nats.mean().item() == pytest.approx(math.log(3) + scale**2 / 3, abs=0.2)
        nats.mean().backward()
        assert bool(model.blocks[-1].down.weight.grad.any()) == moved  # type: ignore[union-attr]


TURNED = [{"d_ff": 24}, {"context": 2}, {"n_heads": 4}, {"n_layers": 1}, {"patch": 4}, {"parity": True}]


@pytest.mark.parametrize("turned", TURNED, ids=lambda options: "+".join(options))
def test_every_option_is_alive(turned: dict[str, Any]) -> None:
    tokens, starts = bits_of(100)
    plain, other = lively(), lively(**turned)
    ours = dict(plain.named_parameters())
    with torch.no_grad():  # what both have is made equal, so that only the option differs
        for label, parameter in other.named_parameters():
            if label in ours and ours[label].shape == parameter.shape:
                parameter.copy_(ours[label])
    a, _ = plain(tokens, starts, plain.init_state(2))
    b, _ = other(tokens, starts, other.init_state(2))
    assert not torch.allclose(a, b, atol=1e-3)


def trained(model: Bit, n_updates: int = 4) -> tuple[Any, dict[str, Tensor]]:
    """The model after some updates in the middle of a stream: its optimizer, and the state of its lanes."""
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), model.parameter_kinds())
    tokens, starts = bits_of(37 * n_updates + 1)
    state = model.init_state(2)
    for at in range(0, 37 * n_updates, 37):
        piece, ahead = slice(at, at + 37), slice(at + 1, at + 38)
        nats, state = model.nats(tokens[:, piece], starts[:, piece], tokens[:, ahead], state)
        optimizer.zero_grad()
        nats.mean().backward()
        optimizer.step()
    return optimizer, state


@pytest.mark.parametrize("steps", [["depth"], ["width"], ["context"], ["width", "depth", "context", "width"]], ids=str)
def test_growing_changes_no_prediction(steps: list[str]) -> None:
    model = lively(d_ff=24)
    _, state = trained(model)
    larger, grown = model, state
    for step in steps:
        enlarged = larger.enlarged(step)  # type: ignore[arg-type]
        larger, grown = enlarged.model, enlarged.carry_state(grown)
    # a longer window sees further from its second patch on, so there the moment of growth is one patch long
    tokens, starts = bits_of(8 if "context" in steps else 50)
    starts[:] = False
    before, _ = model(tokens % 2, starts, state)
    after, _ = larger(tokens % 2, starts, grown)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in larger.parameters()) > sum(p.numel() for p in model.parameters()) or steps == [
        "context"
    ]
    fresh = larger.init_state(2)
    assert {name: t.shape for name, t in grown.items()} == {name: t.shape for name, t in fresh.items()}
    short, none = bits_of(30)  # a document that fits the old window
    a, _ = model(short, none, model.init_state(2))
    b, _ = larger(short, none, fresh)
    torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", GROW)
def test_what_is_carried_over_of_a_gradient_is_the_gradient_there(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_growth, "NOISE", 0.0)
    model = lively()
    enlarged = model.enlarged(step)
    tokens, starts = bits_of(38)
    for each in (model, enlarged.model):
        nats, _ = each.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], each.init_state(2))
        nats.mean().backward()
    larger = dict(enlarged.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        carried = enlarged.carry(name, parameter.grad, 1)
        old = carried != 0  # the others belong to new units
        torch.testing.assert_close(larger[name].grad[old], carried[old], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(enlarged.carry(name, parameter.grad.square(), 2), carried.square())


def test_copies_of_a_channel_part_once_they_learn() -> None:
    model = lively().enlarged("width").model
    halves = model.embed.weight.detach().chunk(2, dim=1)
    assert torch.equal(*halves)
    trained(model)
    halves = model.embed.weight.detach().chunk(2, dim=1)
    assert (halves[0] - halves[1]).abs().max() > 1e-3


def test_a_plateau_is_a_window_that_is_not_cheaper_than_the_best_before() -> None:
    plateau = Plateau(GrowSettings(window_bytes=100, gain=0.1))
    said = [plateau.take(bits, 50) for bits in (400, 400, 350, 350, 340, 344, 200, 210, 300, 300)]
    assert said == [False] * 9 + [True]
    plateau.begin()
    assert [plateau.take(bits, 100) for bits in (500, 495)] == [False, True]


TEXT = b"".join(b"%d. line of a text with a little to learn from\n" % i for i in range(24))
RUN = [
    *(
        "run.threads=1",
        "memory.name=none",
        "tokenizer.name=bits",
        "model.name=bit",
        "model.d_model=16",
        "model.n_heads=2",
    ),
    *("model.n_layers=1", "model.context=8", "feed.update_tokens=180", "schedule.warmup=0"),
    *('grow.steps=["width", "context", "depth"]', "grow.window_bytes=128", "grow.gain=8.0", "grow.warmup=3"),
]


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


def learned(folder: Path, name: str, *more: str) -> Path:
    (folder / "text.txt").write_bytes(TEXT)
    settings = [*RUN, f"source.uris={json.dumps([str(folder / 'text.txt')])}", *more]
    run_session(start(load_recipe(None, "tiny", settings), folder / name, Stop()), [])
    return folder / name


def facts(run: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (run / "journal.jsonl").read_bytes().splitlines())
    return [record for record in records if record["kind"] in ("scored", "update", "grown")]


def test_a_run_grows_on_plateaus_and_resumes_with_what_it_grew(tmp_path: Path) -> None:
    whole, run = learned(tmp_path, "whole"), learned(tmp_path, "parts", 'run.budget="200B"')
    for more in ("150B", "250B", "1MB"):
        run_session(resume(run, more, Stop()), [])
    assert facts(run) == facts(whole)
    grown = [record for record in facts(whole) if record["kind"] == "grown"]
    assert [record["what"] for record in grown] == ["width", "context", "depth"]
    assert grown[0]["n_parameters"] == grown[1]["n_parameters"] < grown[2]["n_parameters"]
    assert fold_journal(whole / "journal.jsonl").summary()["n_parameters"] == grown[2]["n_parameters"]
    rates = {record["batch"]: record["rate"] for record in facts(whole) if record["kind"] == "update"}
    after = grown[0]["batch"] + 1
    assert rates[after] == pytest.approx(rates[0] * 0.7071 / 3)
    assert rates[max(rates)] == pytest.approx(rates[0] * 0.7071**3)
    _, learner = load(whole)
    assert learner.model.config.d_model == 32
    assert learner.model.config.n_layers == 2
    forked = fork(whole, [str(tmp_path / "text.txt")], tmp_path / "forked", "100B", Stop())
    run_session(forked, [])
    assert facts(tmp_path / "forked")[0]["bits"] < facts(whole)[0]["bits"]
    settings, where = ["optimizer.rate=0.001"], tmp_path / "slower"
    run_session(fork(whole, [str(tmp_path / "text.txt")], where, "300B", Stop(), settings), [])
    rates = [record["rate"] for record in facts(where) if record["kind"] == "update"]
    assert rates[0] == pytest.approx(0.001 * 0.7071**3 / 3), "its schedule begins anew, with what it grew long ago"
    assert min(rates) == rates[0]


def test_growth_of_an_architecture_that_cannot_grow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Transformer cannot grow"):
        learned(tmp_path, "run", "model.name=transformer", "model.d_model=16", "model.n_heads=2")
