"""Chunks of RWKV-7 equal its recurrence: outputs, states and gradients, odd sizes, restarts, slow and fast decays."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from livelm.models.ops.rwkv7 import (
    LOWEST_LOG_DECAY,
    Streams,
    rwkv7,
    rwkv7_chunked,
    rwkv7_packed,
    rwkv7_recurrent,
)
from livelm.models.ops.rwkv7_chunks import make_layout

N_LANES, N_HEADS, N = 2, 3, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products as small as these are slower with two threads, and many times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def streams(n_tokens: int, n_rows: int = N, seed: int = 0) -> Streams:
    generator = torch.Generator().manual_seed(1000 * seed + n_tokens)

    def noise(width: int = N) -> Tensor:
        return torch.randn(N_LANES, n_tokens, N_HEADS, width, generator=generator)

    removal = F.normalize(noise(), dim=-1)
    log_w = LOWEST_LOG_DECAY * (4 * noise()).sigmoid()
    x = Streams(noise(), log_w, noise(), noise(n_rows), -removal, removal * noise().sigmoid())
    return Streams(*(part.requires_grad_() for part in x))


def restarts(n_tokens: int, rate: float = 0.08) -> Tensor:
    return torch.rand(N_LANES, n_tokens, generator=torch.Generator().manual_seed(n_tokens)) < rate


def states(n_rows: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (N_HEADS, n_rows, N)
    return tuple(torch.randn(*s, generator=generator).requires_grad_() for s in ((N_LANES, *shape), shape))  # type: ignore[return-value]


def differentiate(read: Tensor, end: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    loss = (read * torch.arange(read.shape[-1]).cos()).sum() + end.square().sum()
    return [read.detach(), end.detach(), *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def close(ours: list[Tensor], truth: list[Tensor]) -> None:
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("learned", [False, True], ids=["zero", "learned"])
@pytest.mark.parametrize("n_tokens", [1, 2, 7, 32, 33, 63, 100, 129])
def test_chunks_equal_the_recurrence(n_tokens: int, learned: bool) -> None:
    x, starts = streams(n_tokens), restarts(n_tokens)
    state, begin = states()
    initial = begin if learned else None
    leaves = [*x, state, *([begin] if learned else [])]
    truth = differentiate(*rwkv7_recurrent(x, starts, state, initial), leaves)
    close(differentiate(*rwkv7_chunked(x, make_layout(starts), state, initial), leaves), truth)
    close(differentiate(*rwkv7(x, make_layout(starts), state, initial), leaves), truth)


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_the_size_of_a_chunk_does_not_matter(chunk: int) -> None:
    x, starts = streams(50), restarts(50)
    state, begin = states()
    truth = differentiate(*rwkv7_recurrent(x, starts, state, begin), [*x, state, begin])
    close(differentiate(*rwkv7_chunked(x, make_layout(starts, chunk), state, begin), [*x, state, begin]), truth)


@pytest.mark.parametrize("places", [[0], [31], [32], [63], [0, 1, 2], [30, 31, 32, 33], list(range(64))], ids=str)
def test_a_document_may_start_anywhere_in_a_chunk(places: list[int]) -> None:
    x, starts = streams(64), torch.zeros(N_LANES, 64, dtype=torch.bool)
    starts[0, places] = True
    state, begin = states()
    truth = differentiate(*rwkv7_recurrent(x, starts, state, begin), [*x, state, begin])
    close(differentiate(*rwkv7_chunked(x, make_layout(starts), state, begin), [*x, state, begin]), truth)


def test_more_rows_than_a_heads_own_may_be_carried() -> None:
    x, starts = streams(70, n_rows=2 * N), restarts(70)
    state, begin = states(2 * N)
    truth = differentiate(*rwkv7_recurrent(x, starts, state, begin), [*x, state, begin])
    close(differentiate(*rwkv7_chunked(x, make_layout(starts), state, begin), [*x, state, begin]), truth)


@pytest.mark.parametrize("log_decay", [LOWEST_LOG_DECAY, -1e-4, 0.0])
def test_the_same_key_again_and_again_stays_exact(log_decay: float) -> None:
    """One key removed and written 200 times is where inverting by powers of the matrix loses all digits."""
    x = streams(200)
    key = F.normalize(torch.ones(N), dim=0).expand_as(x.k)
    same = Streams(x.r, torch.full_like(x.log_w, log_decay), key, x.v, -key, key.clone())
    starts, (state, _) = torch.zeros(N_LANES, 200, dtype=torch.bool), states()
    truth = rwkv7_recurrent(same, starts, state)
    close([t.detach() for t in rwkv7_chunked(same, make_layout(starts, 64), state)], [t.detach() for t in truth])


def test_extreme_decays_give_finite_gradients() -> None:
    x, starts, (state, _) = streams(200), restarts(200), states()
    x = x._replace(log_w=torch.full_like(x.log_w, LOWEST_LOG_DECAY).requires_grad_())
    found = differentiate(*rwkv7_chunked(x, make_layout(starts, 64), state), [*x, state])
    assert all(tensor.isfinite().all() for tensor in found)
    close(found, differentiate(*rwkv7_recurrent(x, starts, state), [*x, state]))


def test_half_precision_loses_only_what_its_inputs_lost() -> None:
    x, starts, (state, begin) = streams(150), restarts(150), states()
    half = Streams(*(part.detach().bfloat16() for part in x))
    exact = Streams(*(part.float() for part in half))
    read, end = rwkv7_chunked(half, make_layout(starts), state, begin)
    truth, true_end = rwkv7_recurrent(exact, starts, state, begin)
    assert read.dtype == torch.bfloat16
    assert end.dtype == torch.float32
    torch.testing.assert_close(read.float(), truth.bfloat16().float(), rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(end, true_end, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_reach_the_recurrence() -> None:
    x, starts, (state, begin) = streams(40), restarts(40), states()
    truth = rwkv7_chunked(x, make_layout(starts), state, begin)
    with torch.autocast("cpu", torch.bfloat16):
        found = rwkv7_chunked(x, make_layout(starts), state, begin)
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))


def test_nothing_of_another_document_shows_even_if_it_is_huge() -> None:
    x, (state, _) = streams(60), states()
    starts = torch.zeros(N_LANES, 60, dtype=torch.bool)
    starts[:, 20] = True
    calm, calm_end = rwkv7_chunked(x, make_layout(starts), state)
    wild = Streams(*(part.detach().clone() for part in x))
    wild.v[:, :20], wild.k[:, :20] = 1e6, 1e6
    read, end = rwkv7_chunked(wild, make_layout(starts), state * 1e6)
    torch.testing.assert_close(read[:, 20:], calm[:, 20:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, calm_end, rtol=1e-5, atol=1e-5)


def packed_kernel(**given: Any) -> tuple[Tensor, Tensor]:
    """What flash-linear-attention documents: sequences one after another, states as [key, value], no lanes."""
    cuts = given["cu_seqlens"].tolist()
    assert given["q"].shape[0] == 1
    assert given["scale"] == 1.0
    assert given["initial_state"].shape[0] == len(cuts) - 1
    reads, ends = [], []
    for i, (a, b) in enumerate(pairwise(cuts)):
        x = Streams(*(given[name][:, a:b] for name in ("q", "gk", "k", "v", "a", "b")))
        no_start = torch.zeros(1, b - a, dtype=torch.bool)
        read, end = rwkv7_recurrent(x, no_start, given["initial_state"][i : i + 1].mT)
        reads.append(read)
        ends.append(end.mT)
    return torch.cat(reads, dim=1), torch.cat(ends)


@pytest.mark.parametrize("learned", [False, True], ids=["zero", "learned"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_the_kernels_of_cuda_are_asked_the_same_question(rate: float, learned: bool) -> None:
    x, starts = streams(40), restarts(40, rate)
    state, begin = states()
    initial = begin if learned else None
    leaves = [*x, state, *([begin] if learned else [])]
    truth = differentiate(*rwkv7_recurrent(x, starts, state, initial), leaves)
    close(differentiate(*rwkv7_packed(packed_kernel, x, starts, state, initial), leaves), truth)
