"""The looped transformer: its layout, its published sizes, and that every switch is alive, causal and can be off."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from livelm.compiled import in_torch
from livelm.config import load_recipe, validate
from livelm.errors import ConfigError
from livelm.models.looped import Looped, LoopedConfig
from livelm.models.looped_inputs import TokenSmear

N_VOCABULARY = 61
SMALL: dict[str, Any] = {"d_model": 32, "n_heads": 4, "context": 16, "d_valued": 8, "d_bigram": 8}
OFF: dict[str, Any] = {
    "loop_embedding": False,
    "skips": False,
    "residual_mix": False,
    "branch_gain": False,
    "query_gain": 0.0,
    "n_exclusive": 0,
    "n_valued": 0,
    "smear": "none",
    "logit_cap": 0.0,
    "bigram_rows": 0,
    "ngrams": (),
}
ON: dict[str, dict[str, Any]] = {
    "loop embedding": {"loop_embedding": True},
    "skips": {"skips": True},
    "residual mix": {"residual_mix": True},
    "branch gain": {"branch_gain": True},
    "query gain": {"query_gain": 1.5},
    "exclusive in all": {"n_exclusive": 1024},
    "exclusive in the last": {"n_exclusive": 1},
    "valued": {"n_valued": 2},
    "smear by channel": {"smear": "channel"},
    "smear by token": {"smear": "token"},
    "soft cap": {"logit_cap": 2.0},
    "bigram": {"bigram_rows": 101},
    "ngrams": {"ngrams": (2, 3), "ngram_rows": 53},
    "grouped queries": {"n_kv_heads": 2},
    "second loop": {"n_loops": 3},
    "narrower context": {"context": 5},
    "feed-forward width": {"d_ff": 48},
    "tied": {"tied": True},
}
PARAMETERS = {  # what each switch brings along
    "loop embedding": ["loops"],
    "skips": ["skips"],
    "residual mix": ["blocks.0.mix", "blocks.2.mix"],
    "branch gain": ["blocks.0.gain", "blocks.2.gain"],
    "query gain": ["blocks.0.attention.query_gain"],
    "valued": ["valued.table", "valued.project.weight", "valued.gain"],
    "smear by channel": ["smear.gate"],
    "smear by token": ["smear.gate", "smear.scale"],
    "bigram": ["bigram.table", "bigram.project.weight", "bigram.scale"],
    "ngrams": ["ngrams.table"],
}
SWITCHES: dict[str, Any] = {
    **{"loop_embedding": True, "residual_mix": True, "branch_gain": True, "query_gain": 1.5},
    **{"n_exclusive": 1024, "n_valued": 2, "smear": "token", "logit_cap": 30.0},
}
ALL: dict[str, Any] = {**SWITCHES, "n_kv_heads": 2, "bigram_rows": 101, "ngrams": (2, 3), "ngram_rows": 53}
PUBLISHED: dict[str, Any] = {
    **SWITCHES,
    "n_heads": 16,
    "n_kv_heads": 8,
    "context": 2048,
    "tied": True,
    "smear": "channel",
    "bigram_rows": 10_240,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small wait for a second thread longer than they compute."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def build(options: dict[str, Any]) -> Looped:
    return Looped(LoopedConfig.model_validate(SMALL | options), N_VOCABULARY)


def lively(options: dict[str, Any]) -> Looped:
    """A model away from its silent start. Parameters of the same name and shape are equal in all of them."""
    model = build(options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.copy_(noise * 0.2 + ("gain" in name or "norm" in name or "skips" in name))
    return model


def stream(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(N_VOCABULARY, (2, n), generator=generator)
    return tokens, torch.zeros(2, n, dtype=torch.bool)


def predict(model: Looped, tokens: Tensor, starts: Tensor, *cuts: int) -> Tensor:
    state, parts = model.init_state(len(tokens)), []
    for a, b in pairwise([0, *cuts, tokens.shape[1]]):
        logits, state = model(tokens[:, a:b], starts[:, a:b], state)
        parts.append(logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("switch", ON)
def test_every_switch_changes_the_output(switch: str) -> None:
    tokens, starts = stream()
    off, on = predict(lively(OFF), tokens, starts), predict(lively(OFF | ON[switch]), tokens, starts)
    assert not torch.allclose(off, on, atol=1e-3)


@pytest.mark.parametrize(("switch", "name"), [(s, n) for s, names in PARAMETERS.items() for n in names])
def test_every_parameter_of_a_switch_is_alive(switch: str, name: str) -> None:
    model = lively(OFF | ON[switch])
    parameter = dict(model.named_parameters())[name]
    assert name not in dict(lively(OFF).named_parameters())
    tokens, starts = stream()
    nats, _ = model.nats(tokens, starts, tokens.roll(1, 1), model.init_state(2))
    nats.mean().backward()
    gradient = parameter.grad
    assert gradient is not None
    rows = (gradient.to_dense() if gradient.is_sparse else gradient).reshape(len(parameter), -1)
    touched = rows.abs().sum(1) > 0
    assert touched.any() if "table" in name else touched.all()  # every loop, skip, head and channel; the rows read
    before = predict(model, tokens, starts)
    with torch.no_grad():
        parameter.mul_(1.5).add_(0.1)
    assert not torch.allclose(predict(model, tokens, starts), before, atol=1e-3)


@pytest.mark.parametrize("switch", ON)
def test_every_switch_is_causal_and_stops_at_document_starts(switch: str) -> None:
    model = lively(OFF | ON[switch])
    tokens, starts = stream()
    starts[:, 17] = True
    cuts = (5, 6, 20)
    before = predict(model, tokens, starts, *cuts)
    fresh = predict(model, tokens[:, 17:], starts[:, 17:])
    torch.testing.assert_close(before[:, 17:], fresh, rtol=1e-4, atol=2e-5)
    for at in (3, 16, 17, 30):
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 1) % N_VOCABULARY
        after = predict(model, changed, starts, *cuts)
        assert torch.equal(after[:, :at], before[:, :at])
        assert not torch.equal(after[:, at], before[:, at])
        if at < 17:  # the last token of a document and those before it never reach the next document
            assert torch.equal(after[:, 17:], before[:, 17:])


@pytest.mark.parametrize("switch", ON)
def test_every_switch_is_carried_over_batches(switch: str) -> None:
    model = lively(OFF | ON[switch])
    tokens, starts = stream()
    starts[1, 9] = True
    whole = predict(model, tokens, starts)
    for cuts in ((9,), (10,), tuple(range(1, 40))):
        torch.testing.assert_close(predict(model, tokens, starts, *cuts), whole, rtol=1e-4, atol=2e-5)


def test_smear_reads_one_token_further_back_over_the_seam_of_two_batches() -> None:
    tokens, starts = stream(2)
    for smear in ("channel", "token"):
        model = lively(OFF | {"context": 1, "smear": smear})
        changed = tokens.clone()
        changed[:, 0] += 1
        assert not torch.equal(predict(model, changed % 61, starts, 1)[:, 1], predict(model, tokens, starts, 1)[:, 1])
        starts[:, 1] = True
        assert torch.equal(predict(model, changed % 61, starts, 1)[:, 1], predict(model, tokens, starts, 1)[:, 1])
        starts[:, 1] = False


def test_the_token_gate_reads_its_channels_and_begins_silent() -> None:
    smear = TokenSmear(32)
    x, before = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    assert torch.equal(smear(x, before), x)
    with torch.no_grad():
        smear.scale.fill_(0.5)
        smear.gate.copy_(torch.arange(12) / 4)
    gate = (x[..., :12] @ smear.gate).sigmoid()[..., None]
    torch.testing.assert_close(smear(x, before), x + 0.5 * gate * before)


def test_layers_are_the_published_order() -> None:
    assert LoopedConfig().visits == (0, 1, 2, 1, 2, 3, 4)
    assert LoopedConfig().n_skips == 3
    assert LoopedConfig(n_before=0, n_after=0, n_shared=1, n_loops=4).visits == (0, 0, 0, 0)
    assert LoopedConfig(n_before=0, n_after=0, n_shared=1, n_loops=1).n_skips == 0


def test_a_model_with_one_layer_has_nothing_to_skip() -> None:
    tokens, starts = stream(7)
    model = lively({"n_before": 0, "n_after": 0, "n_shared": 1, "n_loops": 1})
    assert model.skips is None
    assert predict(model, tokens, starts).isfinite().all()


def test_skips_are_taken_last_in_first_out() -> None:
    model = lively(OFF | {"skips": True})
    stream_after: list[Tensor] = []
    read: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: (read.append(given[0]), stream_after.append(out[0]))[0])
    tokens, starts = stream(9)
    with in_torch():  # what is compiled calls no hooks
        model(tokens, starts, model.init_state(2))
    assert model.skips is not None
    for layer, source in ((3, 2), (4, 1), (5, 0)):
        expected = stream_after[layer - 1] + model.skips[layer - 3] * stream_after[source]
        torch.testing.assert_close(read[layer], expected)
    assert torch.equal(read[6], stream_after[5])


def test_each_loop_adds_its_own_vector_where_it_begins() -> None:
    model = lively(OFF | {"loop_embedding": True})
    read: list[Tensor] = []
    written: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: (read.append(given[0]), written.append(out[0]))[0])
    tokens, starts = stream(9)
    with in_torch():
        model(tokens, starts, model.init_state(2))
    assert model.loops is not None
    for layer in range(1, 7):
        loop = {1: 0, 3: 1}.get(layer)
        torch.testing.assert_close(read[layer], written[layer - 1] + (0 if loop is None else model.loops[loop]))


def test_loop_vectors_begin_small_and_orthogonal() -> None:
    loops = Looped(LoopedConfig(loop_embedding=True), N_VOCABULARY).loops
    assert loops is not None
    torch.testing.assert_close(loops @ loops.T, torch.eye(2) * 1e-4)


def test_the_cap_bounds_logits_and_hardly_touches_small_ones() -> None:
    tokens, starts = stream()
    plain, capped = predict(lively(OFF), tokens, starts), predict(lively(OFF | {"logit_cap": 2.0}), tokens, starts)
    assert plain.abs().max() > 2 > capped.abs().max()
    torch.testing.assert_close(capped, 2 * torch.tanh(plain / 2))


@pytest.mark.parametrize(("d_model", "n_parameters"), [(736, 38_323_200), (832, 47_407_104)])
def test_the_published_variants_have_their_published_sizes(d_model: int, n_parameters: int) -> None:
    """38.3 M and 47.4 M; both counts leave the gains, gates and mixes out, which are vectors of 0.05 % more."""
    with torch.device("meta"):
        model = Looped(LoopedConfig(d_model=d_model, **PUBLISHED), 8192)
    kinds = model.parameter_kinds()
    counts = {kind: sum(p.numel() for _, p in named) for kind, named in kinds.items()}
    assert counts["matrix"] + counts["table"] + counts["rows"] == n_parameters
    assert round(sum(counts.values()) / 1e6, 1) == round(n_parameters / 1e6, 1)


def test_a_shared_block_has_its_parameters_once_and_its_cost_in_every_loop() -> None:
    once, thrice = (build(OFF | {"n_loops": n}) for n in (1, 3))
    count = [sum(p.numel() for p in model.parameters()) for model in (once, thrice)]
    assert count[0] == count[1]
    flat = build(OFF | {"n_loops": 1, "n_before": 5})
    assert thrice.flops_per_token() == flat.flops_per_token() > once.flops_per_token()


def test_settings_that_do_not_fit_are_refused_with_the_reason() -> None:
    for wrong, says in [
        ({"d_model": 30, "n_heads": 4}, "even head width"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"bigram_rows": 1}, "leaves no row"),
        ({"ngrams": [3, 2]}, "rising order"),
        ({"n_loops": 0}, "n_loops"),
        ({"smear": "both"}, "smear"),
    ]:
        with pytest.raises(ConfigError, match=says):
            validate(LoopedConfig, wrong, "model")


def test_the_recipe_is_a_looped_model() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "looped.toml", "tiny")
    assert recipe.model.name == "looped"
    assert validate(LoopedConfig, recipe.model.settings(), "model").visits == (0, 1, 2, 1, 2, 3, 4)


def test_documents_longer_than_the_context_and_single_tokens_are_never_nan() -> None:
    model = lively(ALL)
    tokens, starts = stream(100)
    assert predict(model, tokens, starts, *range(1, 10)).isfinite().all()
    starts[:] = True  # every document is one token: attention sees only itself, and XSA takes that away
    assert predict(model, tokens, starts).isfinite().all()
    nats, _ = model.nats(tokens[:1, :1], starts[:1, :1], tokens[:1, 1:2], model.init_state(1))
    nats.sum().backward()
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 30
    assert all(gradient.isfinite().all() for gradient in gradients)
