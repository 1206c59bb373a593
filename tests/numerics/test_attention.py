"""Fused attention equals its plain twin: outputs, gradients, odd sizes, groups, windows and document starts."""

import pytest
import torch
from torch import Tensor

from livelm.models.ops.attention import additive, attention, attention_reference, window_mask


def inputs(n_new: int, n_kept: int, heads: tuple[int, int], widths: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_new * 1000 + n_kept)
    n_keys, (h, g), (d_key, d_value) = n_new + n_kept, heads, widths
    shapes = [(2, h, n_new, d_key), (2, g, n_keys, d_key), (2, g, n_keys, d_value)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def documents(n: int, first: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return first + (torch.rand(2, n, generator=generator) < 0.1).cumsum(1)


@pytest.mark.parametrize("n_new", [1, 7, 63, 100])
@pytest.mark.parametrize("n_kept", [0, 5, 64])
@pytest.mark.parametrize(("heads", "widths"), [((4, 4), (16, 16)), ((4, 2), (16, 16)), ((6, 1), (4, 16))])
def test_fused_equals_reference(n_new: int, n_kept: int, heads: tuple[int, int], widths: tuple[int, int]) -> None:
    kept = documents(n_kept, 0)
    bias = additive(window_mask(documents(n_new, 9), kept, context=20))
    bias = torch.maximum(bias, additive(window_mask(documents(n_new, 0), kept * 0, context=50)))
    results = []
    for compute in (attention, attention_reference):
        q, k, v = inputs(n_new, n_kept, heads, widths)
        out = compute(q, k, v, bias)
        (out * torch.arange(out.shape[-1]).cos()).sum().backward()
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_the_window_is_what_its_sentence_says() -> None:
    kept, new = torch.tensor([[0, 0, 1]]), torch.tensor([[1, 1, 2, 2]])
    mask = window_mask(new, kept, context=3)[0, 0]
    owner = [0, 0, 1, 1, 1, 2, 2]
    for t in range(4):
        for s in range(7):
            assert mask[t, s].item() == (0 <= 3 + t - s < 3 and owner[3 + t] == owner[s])


def test_hidden_keys_do_not_count_even_if_they_are_huge() -> None:
    q, k, v = inputs(7, 10, (2, 2), (8, 8))
    documents_of_new = torch.ones(2, 7, dtype=torch.int64)
    bias = additive(window_mask(documents_of_new, torch.zeros(2, 10, dtype=torch.int64), context=100))
    calm = attention(q, k, v, bias)
    k.data[:, :, :10], v.data[:, :, :10] = 1e4, 1e4
    torch.testing.assert_close(attention(q, k, v, bias), calm)
