"""The worker model's fast paths equal their plain twins: the convolution, the grid, and the whole model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from livelm.models.layers import rms_norm, rotate, rotation
from livelm.models.ops.attention import additive, attention_reference
from livelm.models.ops.causal_conv import causal_conv, causal_conv_reference
from livelm.models.ops.grid import add_at, ages, take, worker_grid, worker_grid_reference, worker_mask
from livelm.models.worker import Worker


def documents(n: int, seed: int = 0, often: float = 0.1) -> Tensor:
    return torch.rand(3, n, generator=torch.Generator().manual_seed(seed)) < often


@pytest.mark.parametrize("n_new", [1, 2, 7, 63, 100])
@pytest.mark.parametrize("n_taps", [2, 4])
@pytest.mark.parametrize(
    "first", [[0, 2, 50], [3, 9, 50]], ids=["young", "old"]
)  # where none is young, nothing is masked
def test_the_convolution_equals_its_reference(n_new: int, n_taps: int, first: list[int]) -> None:
    age = ages(documents(n_new, often=0.1 if 0 in first else 0.0), torch.tensor(first))
    results = []
    for compute in (causal_conv, causal_conv_reference):
        generator = torch.Generator().manual_seed(n_new)
        x, kept = torch.randn(3, n_new, 5, generator=generator), torch.randn(3, n_taps - 1, 5, generator=generator)
        taps = torch.randn(n_taps, 5, generator=generator).requires_grad_()
        y = compute(x.requires_grad_(), kept, taps, age)
        (y * torch.arange(5).cos() * torch.arange(n_new).sin()[:, None]).sum().backward()
        results.append([y.detach(), x.grad, taps.grad])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_the_convolution_never_touches_what_lies_before_a_document() -> None:
    x, taps = torch.randn(1, 6, 3), torch.randn(4, 3).requires_grad_()
    x[:, :2] = torch.nan
    age = torch.tensor([[7, 8, 0, 1, 2, 3]])
    y = causal_conv(x.requires_grad_(), torch.full((1, 3, 3), torch.inf), taps, age)
    assert y[:, 2:].isfinite().all()
    y[:, 2:].sum().backward()
    assert x.grad is not None
    assert (x.grad[:, :2] == 0).all()
    assert x.grad[:, 2:].isfinite().all()


def test_ages_count_from_each_document_start() -> None:
    starts = torch.tensor([[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    found = ages(starts, torch.tensor([5, 9, 10**9]))
    assert found.tolist() == [[5, 6, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [10**9 + i for i in range(6)]]


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("n_new", [1, 2, 5, 8, 24, 101])
@pytest.mark.parametrize("often", [0.0, 0.1, 0.6])
def test_the_grid_equals_its_reference(stride: int, n_new: int, often: float) -> None:
    for first in range(stride):
        age = ages(documents(n_new, first, often), torch.tensor([first, 0, 40 + first]))
        grid, (places, distances) = worker_grid(age, stride), worker_grid_reference(age, stride)
        n_rows = grid.place.shape[1]
        assert n_rows == -(-n_new // stride) or n_new < stride  # known before the tokens are
        assert n_rows >= max(map(len, places))
        for lane in range(3):
            n_here = len(places[lane])
            assert (~grid.idle[lane]).sum() == n_here
            assert (grid.place[lane, :n_here] - lane * n_new).tolist() == places[lane]
            for t in range(n_new):
                back, who = distances[lane][t], int(grid.speaker[lane, t]) - lane * (n_rows + 2)
                if back is None:
                    assert who == n_rows + 1
                elif back > t:
                    assert who == 0
                else:
                    assert places[lane][who - 1] == t - back


def test_a_worker_sees_its_window_of_its_document_and_nothing_else() -> None:
    starts = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0, 0]]).bool()
    age = ages(starts, torch.tensor([3]))  # 3 4 5 | 0 1 2 3 4 5, workers at ages 1, 3, 5
    mask = worker_mask(worker_grid(age, 2), n_kept=3, context=4)[0, 0]
    seen = [row.nonzero().flatten().tolist() for row in mask]
    # places 0, 2, 4, 6, 8 among the new, whose keys have 3 kept ones before them
    assert seen == [[0, 1, 2, 3], [2, 3, 4, 5], [6, 7], [6, 7, 8, 9], [8, 9, 10, 11]]


def test_idle_rows_add_nothing() -> None:
    grid = worker_grid(ages(torch.tensor([[False] * 4, [True] * 4]), torch.tensor([0, 0])), 2)
    assert grid.idle.tolist() == [[False, False], [True, True]]
    x = add_at(torch.zeros(2, 4, 1), grid, torch.full((2, 2, 1), torch.nan))
    assert x.isnan().flatten(1).tolist() == [[False, True, False, True], [False] * 4]
    assert take(torch.arange(8.0).view(2, 4, 1), grid.place).flatten().tolist() == [1, 3, 4, 4]


def plain_forward(model: Any, tokens: Tensor) -> Tensor:
    """Logits of one whole document, position by position: the model's definition, without caches or batches."""
    c, n = model.config, len(tokens)
    x = model.embed(tokens)

    def local(mixer: Any, x: Tensor) -> Tensor:
        padded = F.pad(mixer.norm(x), (0, 0, c.n_taps - 1, 0))
        back = [padded[c.n_taps - 1 - j : c.n_taps - 1 - j + n] for j in range(c.n_taps)]
        return mixer.project(F.silu((torch.stack(back, dim=1) * mixer.taps).sum(dim=1)))

    def heads(h: Tensor) -> Tensor:
        return h.view(1, -1, c.n_heads, c.d_head)

    cos, sin = rotation(torch.zeros(1, dtype=torch.int64), n, c.d_head)
    for block in model.blocks:
        to_stream, k, v = local(block.local, x).chunk(3, dim=-1)
        x = x + to_stream
        k, v = rotate(rms_norm(heads(k)), (cos, sin)).transpose(1, 2), heads(v).transpose(1, 2)
        rows, told = [], torch.zeros(c.d_model)
        for t in range(n):
            w = x[t : t + 1]
            if (t + 1) % c.stride == 0:
                q, gate = block.ask(block.attention_norm(w)).chunk(2, dim=-1)
                q = rotate(rms_norm(heads(q)), (cos[:, t : t + 1], sin[:, t : t + 1])).transpose(1, 2)
                first = max(0, t - c.context + 1)
                bias = additive(torch.ones(1, 1, 1, t + 1 - first, dtype=torch.bool))
                found = attention_reference(q, k[:, :, first : t + 1], v[:, :, first : t + 1], bias)
                w = w + block.out(found.transpose(1, 2).flatten(2)[0] * gate.sigmoid())
                w = w + block.down(block.up(block.mlp_norm(w)).relu().square())
                told = block.tell(w)[0]
            rows.append(w[0] + told)
        x = torch.stack(rows)
    return model.head(model.norm(x + local(model.last, x)))


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_the_model_is_what_its_definition_says(stride: int) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 9, "stride": stride}
    model = Worker(Worker.Config.model_validate(sizes), 23)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    tokens = torch.randint(23, (1, 41))
    logits, _ = model(tokens, torch.zeros_like(tokens, dtype=torch.bool), model.init_state(1))
    plain = plain_forward(model, tokens[0])
    torch.testing.assert_close(logits[0], plain, rtol=1e-4, atol=1e-5)
    weights = torch.randn(plain.shape)
    parameters = list(model.parameters())
    fast = torch.autograd.grad((logits[0] * weights).sum(), parameters)
    slow = torch.autograd.grad((plain * weights).sum(), parameters)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
