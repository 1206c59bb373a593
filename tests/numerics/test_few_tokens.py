"""A block by a dozen kernels is the block of torch: costs, windows, gradients. Without a card they are interpreted."""

from typing import Any

import pytest
import torch
from tests.small_models import build, check_learned_alike, learn, read
from torch import Tensor

from livelm.compiled import in_torch
from livelm.models.transformer import Transformer

pytest.importorskip("triton", reason="the kernels for CUDA need Triton")
from livelm.models.ops import few_tokens
from livelm.types import State

SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "context": 128, "head_scale": 1.0}
ANCESTOR = {"norm": "layer", "rank": 16, "qk_norm": False, "activation": "relu", "mlp_bias": True}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (32, SMALL),
    "ancestor": (32, SMALL | ANCESTOR),
    "odd": (13, SMALL | {"d_model": 48, "n_heads": 3}),
    "long": (64, SMALL | {"rank": 32, "n_heads": 2, "d_ff": 96}),
}


def use_kernels(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """From now on every transformer goes by kernels where it can; what is returned says when it could."""
    used = []

    def by_kernels(self: Transformer, tokens: Tensor, state: State) -> Any:
        used.append(few_tokens.fits(self, tokens, state))
        return few_tokens if used[-1] else None

    monkeypatch.setattr(Transformer, "_kernels", by_kernels)
    monkeypatch.setattr("livelm.models.transformer.compiles", lambda: False)  # nor by what is compiled for a CPU
    return used


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_of_kernels_is_the_block_of_torch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n_tokens, options = VARIANTS[variant]
    batches = read(n_tokens, 128 // n_tokens + 3)
    with in_torch():
        plain = learn(build(options), batches)
    used = use_kernels(monkeypatch)
    found = learn(build(options), batches)
    assert sum(used) >= 2
    check_learned_alike(found, plain, 1e-4)


def test_equal_inputs_give_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = read(32, 6)

    use_kernels(monkeypatch)
    (nats, _, gradients), (again, _, gradients_again) = (learn(build(SMALL | ANCESTOR), batches) for _ in range(2))
    assert torch.equal(nats, again)
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize(
    "options",
    [{"gate": True}, {"n_kv_heads": 2}, {"initial_state": "learned"}, {"context": 96}, {"rank": 8}, {"d_ff": 40}],
    ids=str,
)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any]) -> None:
    tokens = torch.zeros(1, 32, dtype=torch.int64)

    def fits(options: dict[str, Any], tokens: Tensor = tokens, n_carried: int | None = None) -> bool:
        model = build(SMALL | options)
        state = {"documents": torch.zeros(len(tokens), model.config.context if n_carried is None else n_carried)}
        return few_tokens.fits(model, tokens, state)

    assert fits({})
    assert not fits(options)
    assert not fits({}, tokens.expand(2, -1))
    assert not fits({}, n_carried=64)
