"""What every architecture of MODELS promises, checked over small configurations of each."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livelm.compiled import in_torch
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.types import Model, State

N_VOCABULARY = 67
SMALL: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 2, "context": 16}
RECURRENT: dict[str, Any] = {"d_model": 32, "n_layers": 2, "d_head": 16}
LOOPED: dict[str, Any] = {
    **{"d_model": 32, "n_heads": 2, "context": 8},
    **{"loop_embedding": True, "residual_mix": True, "branch_gain": True, "query_gain": 1.5},
    **{"n_exclusive": 1024, "n_valued": 2, "smear": "token", "logit_cap": 30.0},
}
PLAIN: dict[str, Any] = {
    **{"loop_embedding": False, "skips": False, "residual_mix": False, "branch_gain": False, "query_gain": 0.0},
    **{"n_exclusive": 0, "n_valued": 0, "smear": "none", "logit_cap": 0.0},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bit": {
        "pairs": SMALL | {"patch": 2, "context": 8},
        "tokens": SMALL | {"d_ff": 48, "backward": "stored"},
    },
    "looped": {
        "all": LOOPED
        | {"n_kv_heads": 1, "bigram_rows": 101, "d_bigram": 8, "d_valued": 8, "ngrams": [2, 3], "ngram_rows": 53},
        "bare": LOOPED | PLAIN | {"context": 16},
        "published": LOOPED | {"n_kv_heads": 1, "tied": True, "smear": "channel", "bigram_rows": 101, "d_bigram": 8},
        "learned-start": LOOPED | {"initial_state": "learned", "n_initial": 3},
        "deep": LOOPED | {"n_before": 0, "n_after": 0, "n_shared": 1, "n_loops": 3, "context": 5},
    },
    "rwkv7": {
        "plain": RECURRENT,
        "learned-start": RECURRENT | {"initial_state": "learned"},
        "offset": RECURRENT | {"initial_state": "offset"},
    },
    "transformer": {
        "plain": SMALL,
        "ancestor": SMALL
        | {"norm": "layer", "rank": 16, "tied": True, "activation": "relu", "mlp_bias": True, "qk_norm": False},
        "grouped": SMALL | {"n_heads": 4, "n_kv_heads": 2, "gate": True, "rank": 4},
        "factored": SMALL | {"tied": True, "token_table": "float32"},
        "ngrams": SMALL | {"ngrams": [2, 4], "ngram_rows": 101, "tied": True},
        "learned-start": SMALL | {"initial_state": "learned", "n_initial": 3},
    },
    "worker": {
        **{f"every-{k}": SMALL | {"stride": k} for k in (1, 2, 4, 8)},
        "ngrams": SMALL | {"stride": 3, "ngrams": [2, 4], "ngram_rows": 101},
        "learned-start": SMALL | {"stride": 2, "initial_state": "learned", "n_initial": 3},
    },
}
CASES = [pytest.param(name, options, id=f"{name}-{v}") for name in MODELS for v, options in VARIANTS[name].items()]
every = pytest.mark.parametrize(("name", "options"), CASES)


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """What torch makes without being told where, it makes on the device of `--device`."""
    with torch.device(request.config.getoption("--device")):
        yield


def build(name: str, options: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    kind = MODELS[name]
    return kind(kind.Config.model_validate(options), N_VOCABULARY)


def lively(name: str, options: dict[str, Any]) -> Any:
    """A model whose every parameter is away from its silent start, so that all of it shows in the output."""
    model = build(name, options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            parameter.add_(noise.to(parameter.device) * 0.2)
    return model


def stream(n_lanes: int, n_tokens: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random tokens with a document start about every twelfth token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_VOCABULARY, (n_lanes, n_tokens), generator=generator, device="cpu")
    starts = torch.rand(n_lanes, n_tokens, generator=generator, device="cpu") < 1 / 12
    return tokens.to(torch.get_default_device()), starts.to(torch.get_default_device())


def in_chunks(model: Any, tokens: Tensor, starts: Tensor, sizes: list[int]) -> tuple[Tensor, State]:
    state, parts = model.init_state(tokens.shape[0]), []
    for t, s in zip(tokens.split(sizes, dim=1), starts.split(sizes, dim=1), strict=True):
        logits, state = model(t, s, state)
        parts.append(logits)
    return torch.cat(parts, dim=1), state


def reloaded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(tensors[name].device) for name, tensor in load(save(tensors)).items()}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@every
def test_it_is_a_model(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    assert isinstance(model, Model)
    named = [parameter for kind in model.parameter_kinds().values() for _, parameter in kind]
    assert sorted(map(id, named)) == sorted(map(id, model.parameters()))
    assert set(model.parameter_kinds()) <= {"matrix", "table", "vector", "rows", "deferred"}


@every
def test_the_future_never_shows(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, starts = stream(2, 40)
    before, _ = model(tokens, starts, model.init_state(2))
    for at in (1, 20, 39):
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 1) % N_VOCABULARY
        after, _ = model(changed, starts, model.init_state(2))
        assert torch.equal(after[:, :at], before[:, :at])
        assert not torch.equal(after[:, at], before[:, at])


@every
def test_probabilities_sum_to_one_and_nats_are_theirs(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, starts = stream(2, 33)
    targets, _ = stream(2, 33, seed=5)
    logits, _ = model(tokens, starts, model.init_state(2))
    log_probs = logits.double().log_softmax(-1)
    nats, state = model.nats(tokens, starts, targets, model.init_state(2))
    close(log_probs.exp().sum(-1), torch.ones(2, 33, dtype=torch.float64))
    close(nats, -log_probs.gather(-1, targets[..., None])[..., 0].float())
    assert all(not tensor.requires_grad for tensor in state.values())


@every
@pytest.mark.parametrize("sizes", [[64], [16] * 4, [1] * 64, [1, 7, 13, 20, 23]], ids=["64", "16", "1", "odd"])
def test_chunking_does_not_matter(name: str, options: dict[str, Any], sizes: list[int]) -> None:
    model = lively(name, options)
    tokens, starts = stream(3, 64)
    whole, end = in_chunks(model, tokens, starts, [30, 34])
    parts, state = in_chunks(model, tokens, starts, sizes)
    close(parts, whole)
    assert state.keys() == end.keys()
    for key in state:
        close(state[key], end[key])


@every
def test_a_document_start_equals_a_fresh_state(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, _ = stream(2, 50)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 21] = True
    for sizes in ([50], [10] * 5):
        logits, _ = in_chunks(model, tokens, starts, sizes)
        fresh, _ = model(tokens[:, 21:], starts[:, 21:], model.init_state(2))
        close(logits[:, 21:], fresh)


@every
def test_lanes_do_not_touch_each_other(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, starts = stream(3, 40)
    together, state = in_chunks(model, tokens, starts, [20, 20])
    for lane in range(3):
        alone, own = in_chunks(model, tokens[lane : lane + 1], starts[lane : lane + 1], [20, 20])
        close(alone, together[lane : lane + 1])
        for key in state:
            close(own[key], state[key][lane : lane + 1])


@every
def test_every_parameter_gets_gradient(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), model.parameter_kinds())
    tokens, starts = stream(2, 65)
    for _ in range(4):  # maps that start at zero pass gradient on only after their own first updates: head, out, values
        optimizer.step()
        optimizer.zero_grad()
        model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(2))[0].mean().backward()
    for label, parameter in model.named_parameters():
        parts = getattr(parameter, "gradient_parts", None)
        gradient = parameter.grad if parts is None else parts.dense(parameter)
        assert gradient is not None, label
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        assert gradient.isfinite().all(), label
        assert gradient.abs().max() > 0, label


@every
def test_weights_and_state_round_trip_through_safetensors(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, starts = stream(2, 45)
    _, state = in_chunks(model, tokens[:, :30], starts[:, :30], [17, 13])
    twin = build(name, options, seed=9)
    twin.load_state_dict(reloaded(model.state_dict()))
    rest, _ = model(tokens[:, 30:], starts[:, 30:], state)
    again, _ = twin(tokens[:, 30:], starts[:, 30:], reloaded(state))
    assert torch.equal(rest, again)


@every
def test_the_same_seed_gives_the_same_bits(name: str, options: dict[str, Any]) -> None:
    def trained() -> list[Tensor]:
        model = build(name, options)
        optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), model.parameter_kinds())
        tokens, starts = stream(1, 65)
        state, scores = model.init_state(1), []
        for at in range(0, 64, 16):
            piece = slice(at, at + 16)
            nats, state = model.nats(tokens[:, piece], starts[:, piece], tokens[:, at + 1 : at + 17], state)
            optimizer.zero_grad()
            nats.mean().backward()
            optimizer.step()
            scores.append(nats.detach())
        return scores

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained(), strict=True))


@every
def test_declared_flops_are_the_measured_ones(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    tokens, starts = stream(1, 64)
    with torch.no_grad():
        _, state = model(tokens, torch.zeros_like(starts), model.init_state(1))
        total = 0
        for t in range(16):  # not every token need cost the same
            counter = FlopCounterMode(display=False)
            # the counter knows neither the fused kernel of CPUs nor compiled functions
            with counter, in_torch(), sdpa_kernel(SDPBackend.MATH):
                _, state = model(tokens[:, t : t + 1], torch.zeros_like(starts[:, :1]), state)
            total += counter.get_total_flops()
    assert total / 16 == pytest.approx(model.flops_per_token(), rel=0.04)


@every
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(name: str, options: dict[str, Any]) -> None:
    tokens, starts = stream(2, 65)
    model = build(name, options)
    nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(2))
    assert nats.mean().item() == pytest.approx(math.log(N_VOCABULARY), abs=0.1)
    same, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, :-1], model.init_state(2))
    assert same.mean().item() == pytest.approx(math.log(N_VOCABULARY), abs=1.2)  # the ancestor: sure of a repeat


@pytest.mark.parametrize("name", ["looped", "transformer", "worker"])
def test_a_head_that_begins_at_random_is_sure_of_nothing_and_teaches_rows_of_ngrams_at_once(name: str) -> None:
    options = {"d_model": 32, "n_heads": 2, "ngrams": [2], "ngram_rows": 64}
    tokens, starts = stream(2, 65)
    for scale, moved in ((0.0, False), (1.0, True)):
        model = build(name, {**options, "head_scale": scale})
        nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(2))
        # logits of deviation `scale` cost scale^2 / 2 over ln V
        assert nats.mean().item() == pytest.approx(math.log(N_VOCABULARY) + scale**2 / 2, abs=0.3)
        nats.mean().backward()
        assert bool(model.ngrams.table.grad.to_dense().any()) == moved


@every
@pytest.mark.parametrize("optimizer_name", list(OPTIMIZERS))
def test_it_learns_a_repeating_pattern(name: str, options: dict[str, Any], optimizer_name: str) -> None:
    model = build(name, options)
    optimizer = OPTIMIZERS[optimizer_name](OPTIMIZERS[optimizer_name].Config(), model.parameter_kinds())
    pattern = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]).repeat(1, 400)
    state, starts = model.init_state(1), torch.zeros(1, 32, dtype=torch.bool)
    for at in range(0, 120 * 32, 32):
        nats, state = model.nats(pattern[:, at : at + 32], starts, pattern[:, at + 1 : at + 33], state)
        optimizer.zero_grad()
        nats.mean().backward()
        optimizer.step()
    assert nats.mean().item() < 0.1


@every
def test_generating_token_by_token_equals_teacher_forcing(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    tokens, starts = stream(1, 20)
    with torch.no_grad():
        logits, state = model(tokens, starts, model.init_state(1))
        produced, seen = [], [logits[:, -1]]
        for _ in range(30):
            produced.append(seen[-1].argmax(-1, keepdim=True))
            logits, state = model(produced[-1], torch.zeros(1, 1, dtype=torch.bool), state)
            seen.append(logits[:, -1])
        whole = torch.cat([tokens, *produced], dim=1)
        starts = torch.cat([starts, torch.zeros(1, 30, dtype=torch.bool)], dim=1)
        forced, _ = model(whole, starts, model.init_state(1))
    close(torch.stack(seen, dim=1), forced[:, 19:])


@every
@pytest.mark.parametrize("bad", [-1, N_VOCABULARY])
def test_a_token_outside_the_vocabulary_is_never_silent(name: str, options: dict[str, Any], bad: int) -> None:
    if torch.get_default_device().type == "cuda":
        pytest.skip("a device that asserts takes the process with it; a learner checks ids before they go there")
    model = build(name, options)
    tokens, starts = stream(1, 5)
    tokens[0, 3] = bad
    with pytest.raises((IndexError, ValueError)):
        model(tokens, starts, model.init_state(1))


@every
def test_nothing_beyond_the_context_reach_matters(name: str, options: dict[str, Any]) -> None:
    model = lively(name, options)
    reach = model.context_reach
    if reach is None:
        pytest.skip("this architecture looks back without limit")
    tokens, _ = stream(1, reach + 8)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % N_VOCABULARY
    sizes = [8] * (tokens.shape[1] // 8) + ([tokens.shape[1] % 8] if tokens.shape[1] % 8 else [])
    before, _ = in_chunks(model, tokens, starts, sizes)
    after, _ = in_chunks(model, changed, starts, sizes)
    close(after[:, reach:], before[:, reach:])
    assert not torch.equal(after[:, 1], before[:, 1])


TURNED = [
    {"n_kv_heads": 1},
    {"d_ff": 48},
    {"context": 5},
    {"norm": "layer"},
    {"qk_norm": False},
    {"activation": "relu"},
    {"mlp_bias": True},
    {"gate": True},
    {"rank": 4},
    {"tied": True},
    {"ngrams": [2, 3]},
    {"ngrams": [3], "ngram_rows": 7},
    {"initial_state": "learned"},
    {"initial_state": "learned", "n_initial": 3},
]


@pytest.mark.parametrize("turned", TURNED, ids=lambda options: "+".join(options))
def test_every_option_of_the_transformer_is_alive(turned: dict[str, Any]) -> None:
    tokens, starts = stream(1, 30)
    base = SMALL | {"ngrams": [3]} if "ngram_rows" in turned else SMALL
    plain, other = lively("transformer", base), lively("transformer", SMALL | turned)
    with torch.no_grad():  # what both have is made equal, so that only the option differs
        ours = dict(plain.named_parameters())
        for label, parameter in other.named_parameters():
            if label in ours and ours[label].shape == parameter.shape:
                parameter.copy_(ours[label])
    a, _ = plain(tokens, starts, plain.init_state(1))
    b, _ = other(tokens, starts, other.init_state(1))
    assert not torch.allclose(a, b, atol=1e-3)


def test_both_halves_of_an_ngram_row_are_alive() -> None:
    tokens, starts = stream(1, 30)
    options = SMALL | {"ngrams": [2, 4]}
    for half in (slice(0, 32), slice(32, 64)):
        model = lively("transformer", options)
        before, _ = model(tokens, starts, model.init_state(1))
        with torch.no_grad():
            model.ngrams.table[:, half] = 0
        after, _ = model(tokens, starts, model.init_state(1))
        assert not torch.allclose(before, after, atol=1e-3)


def test_an_update_touches_only_the_ngram_rows_it_read() -> None:
    model = build("transformer", SMALL | {"ngrams": [2, 3], "ngram_rows": 500, "tied": True})
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), model.parameter_kinds())
    tokens, starts = stream(1, 21)
    nats, _ = model.nats(tokens[:, :-1], starts[:, :-1], tokens[:, 1:], model.init_state(1))
    nats.mean().backward()
    optimizer.step()
    changed = (model.ngrams.table != 0).any(dim=1)
    assert changed[:500].any()
    assert changed[500:].any()
    assert changed.sum() <= 2 * 20


def test_each_order_looks_back_exactly_that_far() -> None:
    ngrams = build("transformer", SMALL | {"ngrams": [2, 4], "ngram_rows": 10_007}).ngrams
    read, document = torch.arange(10, 20)[None], torch.zeros(1, 10, dtype=torch.int64)
    rows = ngrams.rows(read, document)[0, -1]
    assert rows[0] < 10_007 <= rows[1]
    for back in range(6):
        changed = read.clone()
        changed[0, -1 - back] = 3
        assert (ngrams.rows(changed, document)[0, -1] != rows).tolist() == [back < 2, back < 4]


def test_the_wire_speed_model_has_its_ancestors_size() -> None:
    kind = MODELS["transformer"]
    config = kind.Config(
        d_model=256,
        n_layers=4,
        n_heads=8,
        rank=32,
        context=512,
        tied=True,
        norm="layer",
        d_ff=1024,
        mlp_bias=True,
        activation="relu",
    )
    with torch.device("meta"):
        model = kind(config, 128_256)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_993_088


def test_positions_stay_exact_after_a_billion_tokens() -> None:
    model = lively("transformer", SMALL)
    tokens, starts = stream(1, 16)
    state = model.init_state(1)
    near, _ = model(tokens, starts, state)
    far, _ = model(tokens, starts, state | {"position": torch.tensor([10**9])})
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-4)
