"""What every model keeps whose passes are compiled: bits, gradients, and that a change of the model is noticed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.small_models import N_VOCABULARY, check_learned_alike, learn, lively, read
from torch import nn

from livelm.compiled import in_torch
from livelm.models.bit import Bit
from livelm.models.looped import Looped
from livelm.models.rwkv7 import RWKV7
from livelm.models.transformer import Transformer
from livelm.models.worker import Worker

if torch.cuda.is_available():
    pytest.skip("models are built on the card here", allow_module_level=True)


@dataclass(frozen=True)
class Case:
    kind: Any
    options: dict[str, Any]
    rows: str
    """Its token rows."""
    map: str
    """A linear map in the first block, and `other` in the second."""
    other: str
    norm: str

    def build(self) -> Any:
        return lively(self.kind, {"d_model": 64} | self.options)


ATTENTIVE: dict[str, Any] = {"n_heads": 4, "context": 40, "ngrams": [2, 3], "ngram_rows": 128, "head_scale": 1.0}
REVERSIBLE: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "context": 40}
CASES = {
    "transformer": Case(Transformer, {"n_layers": 2} | ATTENTIVE, "embed", "mlp.up", "attention.project", "norm"),
    "worker": Case(Worker, {"n_layers": 2, "stride": 8} | ATTENTIVE, "embed", "up", "local.project", "norm"),
    "looped": Case(Looped, ATTENTIVE, "embed", "up", "attention.project", "norm"),
    "bit": Case(Bit, REVERSIBLE, "embed", "up", "project", "norm"),
    "bit, stored": Case(Bit, REVERSIBLE | {"backward": "stored"}, "embed", "up", "project", "norm"),
    "rwkv7": Case(RWKV7, {"n_layers": 2, "d_head": 32, "head_scale": 1.0}, "emb", "ffn.key", "att.output", "ln_out"),
}
every = pytest.mark.parametrize("name", CASES)


def compiles(model: Any, n_tokens: int = 8) -> bool:
    tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
    return model.is_compiled(tokens, tokens == 1, model.init_state(1))


@every
def test_equal_inputs_give_equal_bits(name: str) -> None:
    batches = read(48, 4)
    (nats, _, gradients), (again, _, gradients_again) = (learn(CASES[name].build(), batches) for _ in range(2))
    assert compiles(CASES[name].build())
    assert torch.equal(nats, again)
    assert all(map(torch.equal, dense(gradients.values()), dense(gradients_again.values())))


def dense(gradients: Any) -> list[Any]:
    return [gradient.to_dense() for gradient in gradients if gradient is not None]


@every
def test_a_graph_that_is_kept_gives_the_same_gradient_again(name: str) -> None:
    model, (tokens, starts, targets) = CASES[name].build(), read(48, 1)[0]
    cost = model.nats(tokens, starts, targets, model.init_state(1))[0].sum()
    weights = list(model.parameters())
    first, again = (torch.autograd.grad(cost, weights, retain_graph=True, allow_unused=True) for _ in range(2))
    assert all(map(torch.equal, dense(first), dense(again)))
    assert any(gradient.any() for gradient in dense(first))


@every
def test_frozen_weights_get_no_gradient_and_the_rest_its_own(name: str) -> None:
    batches, case = read(48, 1), CASES[name]

    def frozen() -> Any:
        model = case.build()
        for part in (getattr(model, case.rows), model.blocks[0], model.blocks[1].get_submodule(case.other)):
            part.requires_grad_(False)
        return model

    with in_torch():
        wanted = learn(frozen(), batches)
    found = learn(frozen(), batches)
    assert f"blocks.1.{case.map}.weight" in found[2]
    check_learned_alike(found, wanted, 4e-5)


@every
def test_a_weight_that_changes_before_its_gradient_is_noticed(name: str) -> None:
    model, (tokens, starts, targets) = CASES[name].build(), read(48, 1)[0]
    nats, _ = model.nats(tokens, starts, targets, model.init_state(1))
    with torch.no_grad():
        model.blocks[0].get_submodule(CASES[name].map).weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nats.mean().backward()


class Adapter(nn.Linear):
    """Something else in the place of a map."""


@every
def test_a_model_that_was_changed_is_planned_anew(name: str) -> None:
    case, (tokens, starts, targets) = CASES[name], read(48, 1)[0]
    model = case.build()

    def check() -> None:
        with torch.no_grad():
            found, _ = model.nats(tokens, starts, targets, model.init_state(1))
            with in_torch():
                wanted, _ = model.nats(tokens, starts, targets, model.init_state(1))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)

    check()
    changed = model.blocks[0].get_submodule(case.map)
    changed.weight = nn.Parameter(changed.weight.detach() * 2)  # another parameter
    check()
    norm = getattr(model, case.norm)
    norm.weight.data = norm.weight.detach().clone() * 2  # another place
    check()
    assert compiles(model)
    at, _, last = case.other.rpartition(".")
    before = model.blocks[1].get_submodule(case.other)
    setattr(model.blocks[1].get_submodule(at), last, Adapter(before.in_features, before.out_features, bias=False))
    assert not compiles(model)  # another kind of map
    check()


@every
def test_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    model = CASES[name].build()
    tokens, starts = torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.bool)
    for wrong in (-1, N_VOCABULARY):
        tokens[0, 5] = wrong
        with pytest.raises(IndexError):
            model(tokens, starts, model.init_state(1))
