"""The compiled trunk and head of the bit model are those of torch: costs, state, gradients; and they are used."""

from typing import Any

import pytest
import torch
from tests.small_models import check_learned_alike, learn, lively, note
from torch import Tensor, nn

from livelm.compiled import in_torch
from livelm.models.bit import Bit
from livelm.models.ops import begun_head, bit_cpu

if torch.cuda.is_available():
    pytest.skip("models are built on the card here", allow_module_level=True)

SMALL: dict[str, Any] = {"d_model": 64, "n_layers": 3, "n_heads": 4, "context": 20}
STORED: dict[str, Any] = SMALL | {"backward": "stored"}
VARIANTS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "bits": (3, 1, 512, SMALL),
    "stored": (3, 1, 512, STORED),
    "lanes": (3, 3, 100, SMALL | {"n_heads": 2, "d_ff": 96}),
    "stored lanes": (3, 3, 100, STORED),
    "parity": (3, 2, 90, SMALL | {"parity": True}),
    "few bits": (3, 1, 9, SMALL),
    "digits": (5, 2, 65, STORED | {"patch": 3}),
    "bytes": (257, 1, 48, SMALL | {"patch": 1, "context": 1}),
}
"""Symbols, lanes, tokens and options."""


def read(n_symbols: int, n_lanes: int, n_tokens: int, n_batches: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Documents that begin with a mark, the last symbol, anywhere: some inside a patch."""
    generator = torch.Generator().manual_seed(1)
    size = n_batches, n_lanes, n_tokens + 1
    starts = torch.rand(size, generator=generator) < 1 / 60
    tokens = torch.randint(n_symbols - 1, size, generator=generator).masked_fill(starts, n_symbols - 1)
    batches = zip(tokens[..., :-1], starts[..., :-1], tokens[..., 1:], strict=True)
    return [tuple(tensor.clone() for tensor in batch) for batch in batches]  # type: ignore[misc]


def build(options: dict[str, Any], n_symbols: int = 3) -> Any:
    return lively(Bit, options, n_symbols)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that could be compiled, whether it was."""
    return note(monkeypatch, bit_cpu, "plan_for")


@pytest.mark.parametrize("n_batches", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_compiled_pass_is_the_pass_of_torch(variant: str, n_batches: int, used: list[bool]) -> None:
    n_symbols, n_lanes, n_tokens, options = VARIANTS[variant]
    batches = read(n_symbols, n_lanes, n_tokens, n_batches)
    with in_torch():
        wanted = learn(build(options, n_symbols), batches)
    assert not used
    check_learned_alike(learn(build(options, n_symbols), batches), wanted, 4e-5)
    assert used == [True] * n_batches


def test_a_batch_that_completes_no_patch_needs_no_trunk(used: list[bool]) -> None:
    batches = read(3, 1, 3, 4)
    with in_torch():
        wanted = learn(build(SMALL), batches)
    check_learned_alike(learn(build(SMALL), batches), wanted, 4e-5)
    assert len(used) < 4


@pytest.mark.parametrize("options", [{"d_model": 36, "n_heads": 3}, {"d_ff": 100}], ids=str)
def test_what_it_cannot_do_it_leaves_to_torch(options: dict[str, Any], used: list[bool]) -> None:
    learn(build(SMALL | options), read(3, 1, 64, 2))
    assert used == [False, False]


def test_adapters_other_types_and_many_patches_are_left_to_torch() -> None:
    def compiles(model: Bit, n_tokens: int = 64) -> bool:
        tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
        return model.is_compiled(tokens, tokens == 1, model.init_state(1))

    class Adapter(nn.Linear):
        pass

    assert compiles(build(SMALL))
    assert not compiles(build(SMALL).double())
    assert not compiles(build(SMALL), 8 * 300)
    model = build(SMALL)
    model.blocks[1].up = Adapter(64, 256, bias=False)
    assert not compiles(model)


@pytest.mark.parametrize("parity", [False, True])
def test_log_probabilities_are_those_of_the_logits(parity: bool) -> None:
    model, (tokens, starts, targets) = build(SMALL | {"parity": parity}), read(3, 2, 100, 1)[0]
    with torch.no_grad():
        nats, log_probs, _ = model.told(tokens, starts, targets, model.init_state(2))
        wanted: Tensor = torch.log_softmax(model(tokens, starts, model.init_state(2))[0], -1)
    torch.testing.assert_close(log_probs, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nats, -wanted.gather(-1, targets[..., None])[..., 0], rtol=1e-4, atol=1e-5)


def test_a_target_that_is_no_symbol_is_refused() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(3, 1, 16, 1)[0]
    for wrong in (-1, 3):
        targets[0, 7] = wrong
        with pytest.raises(IndexError, match="none of 3 symbols"):
            model.nats(tokens, starts, targets, model.init_state(1))


def test_what_is_not_a_number_stays_none() -> None:
    model, (tokens, starts, targets) = build(SMALL), read(3, 1, 64, 1)[0]
    with torch.no_grad():
        model.blocks[0].up.weight[3, 5] = torch.nan
    assert model.nats(tokens, starts, targets, model.init_state(1))[0].isnan().any()


def test_recomputing_keeps_nothing_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    size_of = bit_cpu.buffer_size
    monkeypatch.setattr(bit_cpu, "buffer_size", lambda form: sizes.append(size_of(form)) or sizes[-1])
    for n_layers in (2, 16):
        model, (tokens, starts, targets) = build(SMALL | {"n_layers": n_layers}), read(3, 1, 64, 1)[0]
        model.nats(tokens, starts, targets, model.init_state(1))[0].sum().backward()
    assert sizes[0] == sizes[1]


def test_the_head_compiles_for_few_symbols() -> None:
    rows, targets = torch.zeros(1, 3, 64), torch.zeros(1, 9, dtype=torch.int64)
    assert begun_head.fit(rows, torch.zeros(5, 3, 64), targets)
    assert not begun_head.fit(rows, torch.zeros(5, 9, 64), targets)
    assert not begun_head.fit(rows.double(), torch.zeros(5, 3, 64).double(), targets)
