"""What a model needs is compiled before its first update, and nothing of that stays."""

from typing import Any

import pytest
import torch

from livelm.compiled import in_torch
from livelm.models import MODELS
from livelm.models.ops.few_tokens_cpu import passes
from livelm.models.practice import practise

SETTINGS: dict[str, dict[str, Any]] = {
    "transformer": {"d_model": 64, "ngrams": (2, 3), "ngram_rows": 64},
    "looped": {"d_model": 64, "ngrams": (2,), "ngram_rows": 64},
    "rwkv7": {"d_model": 64, "d_head": 32},
    "worker": {"d_model": 64, "ngrams": (2,), "ngram_rows": 64},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_practice_leaves_nothing_behind(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](MODELS[name].Config.model_validate(SETTINGS[name]), 67)
    before, random = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    assert model.is_compiled(
        *(torch.zeros(1, 1, dtype=kind) for kind in (torch.int64, torch.bool)), model.init_state(1)
    )
    practise(model)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_both_ways_are_compiled_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("pass_forward", "pass_backward"):
        function = getattr(passes, name)
        monkeypatch.setattr(
            f"livelm.models.ops.few_tokens_cpu.{name}", lambda *a, n=name, f=function: (called.append(n), f(*a))[1]
        )
    model = MODELS["transformer"](MODELS["transformer"].Config.model_validate(SETTINGS["transformer"]), 67)
    with in_torch():
        practise(model)
    assert not called
    practise(model.requires_grad_(False))
    assert called == ["pass_forward"]
    practise(model.requires_grad_(True))
    assert called == ["pass_forward", "pass_forward", "pass_backward"]


def test_models_that_are_not_compiled_do_not_practise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["transformer"](MODELS["transformer"].Config.model_validate({"d_model": 64, "gate": True}), 67)
    monkeypatch.setattr(model, "nats", None)
    practise(model)
