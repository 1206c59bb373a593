"""What needs a CUDA device: the same numbers as on the CPU, captured or not, and the same again after a kill.

The architectures themselves: `pytest tests/conformance/test_models.py --device cuda`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.batches import batch_of
from tests.unit import test_captured_mixed
from torch import Tensor

from livelm.config import LearnSettings
from livelm.learn import CapturedLearner, Learner, load_checkpoint, save_checkpoint
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.types import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCABULARY, MARK, N_TOKENS = 257, 256, 32
SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "context": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": SMALL | {"head_scale": 1.0},
    "float32": SMALL | {"tied": True, "token_table": "float32"},
    "bfloat16": SMALL | {"tied": True, "token_table": "bfloat16"},
    "ngrams": SMALL | {"ngrams": [2, 4], "ngram_rows": 1009},
    "gated": SMALL
    | {"n_kv_heads": 2, "gate": True, "rank": 8, "norm": "layer", "activation": "relu", "mlp_bias": True},
}
TEXT = b"".join(f"{i} bottles on the wall, take {i % 7} down, {i * i} are left. ".encode() for i in range(200))


def batches(n: int) -> list[Batch]:
    """Text with a mark now and then; every fourth batch is graded in part."""
    read = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()[: n * N_TOKENS].view(n, 1, N_TOKENS)
    made = []
    for i, tokens in enumerate(read):
        starts = torch.zeros(1, N_TOKENS, dtype=torch.bool)
        starts[0, 7] = i % 5 == 2
        graded = torch.arange(N_TOKENS)[None] >= (10 if i % 4 == 3 else 0)
        made.append(batch_of(torch.where(starts, MARK, tokens), i, graded, starts=starts))
    return made


def build(kind: Any, variant: str, device: str = "cuda", optimizer: str = "adamw") -> Any:
    torch.manual_seed(0)
    transformer = MODELS["transformer"]
    model = transformer(transformer.Config.model_validate(VARIANTS[variant]), VOCABULARY).to(device)
    rule: Any = OPTIMIZERS[optimizer]
    made = rule(rule.Config(rate=2e-3, deferred_every=4), model.parameter_kinds())
    own = (model, made, lambda n: min(1.0, (n + 1) / 8), LearnSettings(average_updates=16), (1, VOCABULARY, MARK))
    return kind(*own) if kind is Learner else kind(N_TOKENS, *own)


def learn(learner: Learner, read: list[Batch]) -> list[Tensor]:
    scores = []
    for batch in read:
        scored = learner.score(batch)
        scores.append(scored.nats.clone())
        update = learner.update(scored)
        assert update.skipped is None
    return scores


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_captured_updates_are_plain_ones(variant: str, optimizer: str) -> None:
    read = batches(40)
    plain, captured = (build(kind, variant, optimizer=optimizer) for kind in (Learner, CapturedLearner))
    pairs = list(zip(learn(plain, read), learn(captured, read), strict=True))
    # rounding grows from update to update, and Muon's products and such a table round to bfloat16
    limit = 1e-2 if optimizer == "muon" or variant == "bfloat16" else 1e-3
    for one, other in pairs[:8]:
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)
    for one, other in pairs:
        torch.testing.assert_close(one.mean(), other.mean(), rtol=5e-3, atol=5e-3)
    assert captured._captured is not None


@pytest.mark.parametrize("symbols", test_captured_mixed.KINDS)
def test_a_captured_network_goes_with_counts(symbols: str) -> None:
    read = test_captured_mixed.batches(symbols, 14)
    plain, captured = (
        test_captured_mixed.build(symbols, captured=captured, device="cuda") for captured in (False, True)
    )
    (wanted, _), (found, _) = test_captured_mixed.learn(plain, read), test_captured_mixed.learn(captured, read)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one.nats, other.nats, rtol=1e-2, atol=1e-2)
    assert captured._captured is not None


@pytest.mark.parametrize("variant", ["plain", "float32", "ngrams"])
def test_a_card_learns_what_the_processor_learns(variant: str) -> None:
    read = batches(40)
    here, there = build(Learner, variant, "cpu"), build(CapturedLearner, variant)
    for one, other in zip(learn(here, read), learn(there, read), strict=True):
        torch.testing.assert_close(one.mean(), other.mean(), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("at", [1, 2, 17, 30])
def test_it_goes_on_bit_for_bit_from_a_checkpoint(variant: str, at: int, tmp_path: Path) -> None:
    read = batches(36)
    expected = learn(build(CapturedLearner, variant), read)
    first, second = (build(CapturedLearner, variant) for _ in range(2))
    learn(first, read[:at])
    second.load_state_dict(load_checkpoint(save_checkpoint(tmp_path, at, first.state_dict(), keep=1)))
    for one, other in zip(learn(second, read[at:]), expected[at:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("size", "model"), [("tiny", "transformer"), ("tiny", "worker"), ("tiny", "rwkv7")])
@pytest.mark.parametrize("memory", ["counts", "none"])
def test_runs_work_from_end_to_end(livelm_here: Any, tmp_path: Path, size: str, model: str, memory: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    bits = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        changes = [f"run.device={device}", f"model.name={model}", f"memory.name={memory}"]
        changes += ["rehearsal.share=0.2", "holdout.share=0.1", "holdout.slice_tokens=16"]
        livelm_here("run", text, "--size", size, "--out", out, *[x for c in changes for x in ("--set", c)])
        lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
        scored = [line for line in lines if line["kind"] == "scored"]
        bits[device] = sum(line["bits"] for line in scored) / sum(line["n_bytes"] for line in scored)
        livelm_here("eval", out, text)
        livelm_here("generate", out, "--prompt", "1 bottle", "--bytes", 20)
    assert bits["cuda"] == pytest.approx(bits["cpu"], rel=0.02)
