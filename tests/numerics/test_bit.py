"""The bit model's fast paths equal their plain twins: reversible blocks, numbered patches, and the whole model."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livelm.compiled import in_torch
from livelm.models.bit import Bit
from livelm.models.layers import rms_norm, rotate, rotation
from livelm.models.ops.attention import additive, attention_reference
from livelm.models.ops.begun_head import CERTAIN
from livelm.models.ops.grid import ages
from livelm.models.ops.patches import Layout, begin_patches, number_patches, number_patches_reference
from livelm.models.ops.patches_cpu import IDLE
from livelm.models.ops.reversible import Coupling, reversible, reversible_reference

LAYOUTS = [Layout(2, 8, False), Layout(2, 8, True), Layout(2, 1, False), Layout(3, 4, False), Layout(256, 1, False)]


def couplings(n_blocks: int, width: int, dtype: torch.dtype) -> tuple[list[Coupling], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(n_blocks)

    def matrix(*shape: int) -> nn.Parameter:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5 * 0.5
        return nn.Parameter(values.to(dtype))

    blocks, parameters = [], []
    for _ in range(n_blocks):
        a, up, down = matrix(width, width), matrix(2 * width, width), matrix(width, 2 * width)

        def first(x: Tensor, a: Tensor = a) -> tuple[Tensor, tuple[Tensor]]:
            h = rms_norm(x)
            return F.linear(h, a).tanh(), (h,)

        def second(x: Tensor, up: Tensor = up, down: Tensor = down) -> Tensor:
            return F.linear(F.linear(rms_norm(x), up).relu().square(), down)

        blocks.append(Coupling(first, lambda seen: tuple(s[:, -2:] for s in seen), second, ((a,), (up, down))))
        parameters += [a, up, down]
    return blocks, parameters


def gradients(run: Callable[..., Any], n_blocks: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    blocks, parameters = couplings(n_blocks, 16, dtype)
    x = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)
    x1, x2 = x.clone().requires_grad_(), x.flip(0).clone().requires_grad_()
    y1, y2, kept = run(x1, x2, blocks)
    assert all(not k.requires_grad for seen in kept for k in seen)
    loss = (y1 * torch.arange(16).cos()).sum() + (y2 * torch.arange(16).sin()).square().sum()
    return [
        y1.detach(),
        y2.detach(),
        *(k for seen in kept for k in seen),
        *torch.autograd.grad(loss, [x1, x2, *parameters]),
    ]


@pytest.mark.parametrize("n", [1, 7, 63])
@pytest.mark.parametrize("n_blocks", [0, 1, 5, 64])
def test_reversible_blocks_equal_stored_ones(n_blocks: int, n: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
        fast, slow = (gradients(run, n_blocks, n, dtype) for run in (reversible, reversible_reference))
        for a, b in zip(fast, slow, strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


def test_frozen_parameters_get_no_gradient_and_hinder_nobody() -> None:
    blocks, parameters = couplings(3, 16, torch.float64)
    for p in parameters[:4]:
        p.requires_grad_(False)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    y1, y2, _ = reversible(x, x, blocks)
    (y1 + y2).sum().backward()
    assert [p.grad is None for p in parameters] == [True] * 4 + [False] * 5


def test_what_backward_needs_does_not_grow_with_depth() -> None:
    held: dict[int, list[int]] = {}
    for n_blocks in (2, 32):
        for run in (reversible, reversible_reference):
            n_bytes = 0

            def pack(tensor: Tensor) -> Tensor:
                nonlocal n_bytes
                n_bytes += 0 if isinstance(tensor, nn.Parameter) else tensor.untyped_storage().nbytes()
                return tensor

            blocks, _ = couplings(n_blocks, 16, torch.float32)
            x = torch.randn(2, 50, 16)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                run(x, x, blocks)
            held.setdefault(n_blocks, []).append(n_bytes)
    assert held[2][0] == held[32][0] == 2 * 2 * 50 * 16 * 4
    assert held[32][1] > 10 * held[2][1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("n_new", [1, 7, 63, 100])
@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_numbered_patches_equal_their_reference(layout: Layout, n_new: int, way: str) -> None:
    generator = torch.Generator().manual_seed(n_new)
    total = n_new + 40
    tokens = torch.randint(layout.n_digits, (3, total), generator=generator)
    starts = torch.rand(3, total, generator=generator) < 0.06
    tokens = tokens.masked_fill(starts, layout.n_digits)
    tokens[1, n_new // 2] = layout.n_digits  # a mark where no document starts
    n_old, before = 40, begin_patches(3, layout)
    with in_torch() if way == "torch" else nullcontext():
        before = number_patches(tokens[:, :n_old], starts[:, :n_old], before, layout).after
        found = number_patches(tokens[:, n_old:], starts[:, n_old:], before, layout)
    age = ages(starts, torch.zeros(3, dtype=torch.int64))
    document = (age == 0).cumsum(dim=1) - 1
    for lane in range(3):
        whole, nodes = number_patches_reference(tokens[lane].tolist(), starts[lane].tolist(), layout)
        new = [(place, leaf) for place, leaf in whole if place >= n_old]
        n_here = int(found.n_whole[lane])
        assert n_here == len(new)
        assert found.leaf[lane, :n_here].tolist() == [leaf for _, leaf in new]
        assert found.document[lane, :n_here].tolist() == [int(document[lane, place]) for place, _ in new]
        assert found.position[lane, :n_here].tolist() == [int(age[lane, p]) // layout.n_symbols for p, _ in new]
        assert (found.document[lane, n_here:] == IDLE).all()
        n_rows = found.leaf.shape[1] + 1
        heard = [sum(place <= t for place, _ in new) for t in range(n_old, total)]
        assert (found.heard[lane] - lane * n_rows).tolist() == heard
        known = torch.full((n_new,), -1) if found.parity is None else found.parity[lane]
        ours = torch.where(known >= 0, -1 - known, found.node[lane])
        assert ours.tolist() == nodes[n_old:]
    assert torch.equal(found.after["age"], age[:, -1] + 1)
    assert torch.equal(found.after["document"], document[:, -1])
    assert torch.equal(found.after["recent"], tokens[:, total - layout.n_symbols + 1 :])


def plain_forward(model: Bit, tokens: Tensor) -> Tensor:
    """Logits of one whole document, bit by bit: the model's definition, without caches, batches or reversibility."""
    c, n_symbols = model.config, model.layout.n_symbols
    whole, nodes = number_patches_reference(tokens.tolist(), [False] * len(tokens), model.layout)
    places = [place for place, _ in whole]
    x1 = x2 = model.embed(torch.tensor([[leaf for _, leaf in whole]]))
    n = len(whole)
    angles = rotation(torch.zeros(1, dtype=torch.int64), n, c.d_head)
    ahead = torch.ones(n, n, dtype=torch.bool).tril().triu(1 - c.context)
    for block in model.blocks:
        q, k, v = (t.unflatten(-1, (c.n_heads, -1)) for t in block.project(block.attention_norm(x2)).chunk(3, dim=-1))
        q, k = rotate(rms_norm(q), angles), rotate(rms_norm(k), angles)
        found = attention_reference(*(t.transpose(1, 2) for t in (q, k, v)), additive(ahead[None, None]))
        x1 = x1 + block.out(found.transpose(1, 2).flatten(2))
        x2 = x2 + block.down(block.up(block.mlp_norm(x1)).relu().square())
    made = model.norm(x1 + x2)[0]
    rows = []
    for t, node in enumerate(nodes):
        heard = made[sum(place <= t for place in places) - 1]
        known = F.one_hot(torch.tensor(max(-1 - node, 0)), model.n_vocabulary) * CERTAIN
        rows.append(known if node < 0 else model.nodes[node] @ heard)
    assert n_symbols == 1 or places[0] == 0
    return torch.stack(rows)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("backward", ["inverse", "stored"])
def test_the_model_is_what_its_definition_says(parity: bool, backward: str) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 5, "parity": parity, "backward": backward}
    model = Bit(Bit.Config.model_validate(sizes), 3)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    tokens = torch.randint(2, (1, 90))
    tokens[0, 0] = 2
    logits, _ = model(tokens, torch.zeros_like(tokens, dtype=torch.bool), model.init_state(1))
    plain = plain_forward(model, tokens[0])
    torch.testing.assert_close(logits[0], plain, rtol=1e-4, atol=1e-5)
    weights = torch.randn(plain.shape)
    parameters = list(model.parameters())
    fast = torch.autograd.grad((logits[0] * weights).sum(), parameters)
    slow = torch.autograd.grad((plain * weights).sum(), parameters)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
