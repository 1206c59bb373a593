"""The worker model: roles that never change, every position predicted, knowledge that travels on, options alive."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livelm.compiled import in_torch
from livelm.models.worker import Worker

N_VOCABULARY = 31
SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 24, "stride": 4}


def lively(**options: Any) -> Worker:
    """A model whose every parameter is away from its silent start."""
    torch.manual_seed(0)
    model = Worker(Worker.Config.model_validate(SMALL | options), N_VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def tokens_of(n: int, n_lanes: int = 1) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(N_VOCABULARY, (n_lanes, n), generator=torch.Generator().manual_seed(1))
    return tokens, torch.zeros_like(tokens, dtype=torch.bool)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_a_prefix_of_any_length_gets_the_logits_of_the_whole(stride: int) -> None:
    """The ancestor made whatever position was last a worker, so none of its phases but one was what it had trained."""
    model, (tokens, starts) = lively(stride=stride), tokens_of(35)
    whole, _ = model(tokens, starts, model.init_state(1))
    for n in range(1, 35):
        prefix, _ = model(tokens[:, :n], starts[:, :n], model.init_state(1))
        torch.testing.assert_close(prefix, whole[:, :n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 8])
def test_generation_equals_teacher_forcing_at_every_phase(stride: int) -> None:
    model, (tokens, starts) = lively(stride=stride), tokens_of(50)
    whole, _ = model(tokens, starts, model.init_state(1))
    for phase in range(stride):
        logits, state = model(tokens[:, : phase + 1], starts[:, : phase + 1], model.init_state(1))
        parts = [logits]
        for t in range(phase + 1, 50):
            logits, state = model(tokens[:, t : t + 1], starts[:, t : t + 1], state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_a_role_is_the_place_in_the_document_however_the_stream_is_cut() -> None:
    model, (tokens, starts) = lively(), tokens_of(40, n_lanes=2)
    starts[0, 6], starts[1, 17] = True, True
    whole = model.workers(starts, model.init_state(2))
    assert whole[0].nonzero().flatten().tolist() == [3, *range(9, 40, 4)]
    assert whole[1].nonzero().flatten().tolist() == [3, 7, 11, 15, *range(20, 40, 4)]
    for sizes in ([1] * 40, [7, 33], [13, 13, 14]):
        state, parts = model.init_state(2), []
        for t, s in zip(tokens.split(sizes, dim=1), starts.split(sizes, dim=1), strict=True):
            parts.append(model.workers(s, state))
            _, state = model(t, s, state)
        assert torch.equal(torch.cat(parts, dim=1), whole)


def test_what_a_worker_found_reaches_every_token_up_to_the_next_one_and_later() -> None:
    model, (tokens, starts) = lively(n_layers=1, n_taps=2, stride=8), tokens_of(24)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % N_VOCABULARY
    a, _ = model(tokens, starts, model.init_state(1))
    b, _ = model(changed, starts, model.init_state(1))
    differs = (a != b).any(dim=-1)[0]
    # two mixers of two taps reach two tokens on; then nobody knows of token 0 until the worker at 7 tells
    assert differs.nonzero().flatten().tolist() == [0, 1, 2, *range(7, 24)]


def test_what_a_worker_found_crosses_into_the_next_batch() -> None:
    model, (tokens, starts) = lively(n_layers=1, n_taps=2, stride=8), tokens_of(14)
    _, state = model(tokens[:, :11], starts[:, :11], model.init_state(1))
    told, _ = model(tokens[:, 11:], starts[:, 11:], state)
    silent, _ = model(tokens[:, 11:], starts[:, 11:], state | {"told.0": torch.zeros_like(state["told.0"])})
    assert (told != silent).any(dim=-1).all()


def test_a_document_shorter_than_the_stride_is_predicted_too() -> None:
    model, (tokens, starts) = lively(stride=16), tokens_of(33, n_lanes=2)
    starts[:, ::3] = True
    targets = tokens.roll(-1, dims=1)
    nats, state = model.nats(tokens, starts, targets, model.init_state(2))
    assert nats.isfinite().all()
    nats.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert (state["told.0"] == 0).all()


def test_every_position_is_trained() -> None:
    """Also where no worker falls into the batch: the head and the mixers learn at each position of the loss."""
    model, (tokens, starts) = lively(stride=8), tokens_of(8)
    nats, _ = model.nats(tokens, starts, tokens.roll(-1, dims=1), model.init_state(1))
    for t in range(8):
        gradient = torch.autograd.grad(nats[0, t], model.head.weight, retain_graph=True)[0]
        assert gradient.abs().max() > 0


def test_a_loss_at_workers_only_leaves_the_other_positions_unlearned() -> None:
    """The ancestor's loss: what it reports is learned, the other three quarters of a stream are not a model of it."""
    torch.manual_seed(0)
    model = Worker(Worker.Config.model_validate(SMALL), N_VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pattern = torch.arange(16).repeat(80)[None]
    state, starts = model.init_state(1), torch.zeros(1, 32, dtype=torch.bool)
    nats, working = torch.zeros(1, 32), starts
    for at in range(0, 39 * 32, 32):
        working = model.workers(starts, state)
        nats, state = model.nats(pattern[:, at : at + 32], starts, pattern[:, at + 1 : at + 33], state)
        optimizer.zero_grad()
        nats[working].mean().backward()
        optimizer.step()
    assert nats[working].mean() < 0.5
    assert nats[~working].mean() > math.log(N_VOCABULARY)  # worse than knowing nothing


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_declared_flops_are_the_mean_over_a_stride_of_single_tokens(stride: int) -> None:
    model, (tokens, starts) = lively(d_model=32, context=64, stride=stride), tokens_of(96)
    with torch.no_grad():
        _, state = model(tokens[:, :80], starts[:, :80], model.init_state(1))
        counter = FlopCounterMode(display=False)
        # the counter knows neither the fused kernel of CPUs nor compiled functions
        with counter, in_torch(), sdpa_kernel(SDPBackend.MATH):
            for t in range(80, 96):
                _, state = model(tokens[:, t : t + 1], starts[:, t : t + 1], state)
    assert counter.get_total_flops() / 16 == pytest.approx(model.flops_per_token(), rel=0.02)


TURNED = [
    {"d_ff": 24},
    {"context": 5},
    {"stride": 1},
    {"stride": 7},
    {"n_taps": 2},
    {"n_heads": 4},
    {"ngrams": [2, 3]},
    {"ngrams": [3], "ngram_rows": 7},
]


@pytest.mark.parametrize("turned", TURNED, ids=lambda options: "+".join(options))
def test_every_option_is_alive(turned: dict[str, Any]) -> None:
    tokens, starts = tokens_of(30)
    plain, other = lively(**({"ngrams": [3]} if "ngram_rows" in turned else {})), lively(**turned)
    ours = dict(plain.named_parameters())
    with torch.no_grad():  # what both have is made equal, so that only the option differs
        for label, parameter in other.named_parameters():
            if label in ours and ours[label].shape == parameter.shape:
                parameter.copy_(ours[label])
    a, _ = plain(tokens, starts, plain.init_state(1))
    b, _ = other(tokens, starts, other.init_state(1))
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"d_model": 30, "n_heads": 4}, "n_heads"),
        ({"d_model": 12, "n_heads": 4}, "even head width"),
        ({"stride": 0}, "stride"),
        ({"n_taps": 1}, "n_taps"),
        ({"ngrams": [3, 2]}, "rising order"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Worker.Config.model_validate(SMALL | wrong)


def test_the_state_holds_no_more_than_the_window() -> None:
    model, (tokens, starts) = lively(context=10), tokens_of(64)
    _, state = model(tokens, starts, model.init_state(1))
    assert state["keys.0"].shape[1] == 10
    held = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    assert held == sum(tensor.numel() * tensor.element_size() for tensor in state.values())
