"""AdamW for many small tensors in one launch: torch's leaves most of a card idle below ten million weights."""

import torch
import triton.language as tl

from livelm.kernels.dependent_launch import jit, wait_for_last
from livelm.kernels.many_tensors import fit, launch, piece_of


def takes(optimizer: torch.optim.AdamW) -> bool:
    """Whether `step` can take the place of the optimizer's own: plain AdamW, all of whose weights have a gradient."""
    return all(
        not (group["amsgrad"] or group["maximize"])
        and isinstance(group["lr"], torch.Tensor)
        and fit(group["params"])
        and all(p.grad is not None and optimizer.state.get(p) for p in group["params"])
        and fit([p.grad for p in group["params"]])
        for group in optimizer.param_groups
    )


@torch.no_grad()
def step(optimizer: torch.optim.AdamW) -> None:
    """What the optimizer's own step does (Loshchilov and Hutter 2019, algorithm 2)."""
    every = [optimizer.state[weight] for group in optimizer.param_groups for weight in group["params"]]
    torch._foreach_add_([state["step"] for state in every], 1)  # pyright: ignore[reportPrivateImportUsage]
    for group in optimizer.param_groups:
        weights = group["params"]
        gradients = [weight.grad for weight in weights]
        states = [optimizer.state[weight] for weight in weights]
        means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        numbers = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
        launch(_step, [weights, gradients, means, squares, steps], *numbers)


@jit
def _step(
    weights,
    gradients,
    means,
    squares,
    steps,
    rate,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    eps: tl.constexpr,
    weight_decay: tl.constexpr,
    before,
    SIZES: tl.constexpr,
    FIRSTS: tl.constexpr,
    PIECE: tl.constexpr,
):
    weight, inside = piece_of(weights, SIZES, FIRSTS, PIECE)
    gradient, _ = piece_of(gradients, SIZES, FIRSTS, PIECE)
    mean, _ = piece_of(means, SIZES, FIRSTS, PIECE)
    square, _ = piece_of(squares, SIZES, FIRSTS, PIECE)
    n_steps = steps[0]
    for i in tl.static_range(1, len(SIZES)):  # pyright: ignore  # what the compiler unrolls
        n_steps = tl.where(tl.program_id(0) >= FIRSTS[i], steps[i], n_steps)
    # nothing that is read here was written by the launch before but the number of steps
    w, g = tl.load(weight, mask=inside, other=0.0), tl.load(gradient, mask=inside, other=0.0)
    m, v = tl.load(mean, mask=inside, other=0.0), tl.load(square, mask=inside, other=0.0)
    lr = tl.load(rate)
    wait_for_last()
    n = tl.load(n_steps).to(tl.float64)
    bias1 = (1.0 - tl.exp(n * tl.log(tl.full((), beta1, tl.float64)))).to(tl.float32)
    bias2 = (1.0 - tl.exp(n * tl.log(tl.full((), beta2, tl.float64)))).to(tl.float32)
    m += (1.0 - beta1) * (g - m)
    v = beta2 * v + (1.0 - beta2) * g * g
    w *= 1.0 - lr * weight_decay
    w -= lr / bias1 * m / (tl.sqrt(v) / tl.sqrt(bias2) + eps)
    tl.store(mean, m, mask=inside)
    tl.store(square, v, mask=inside)
    tl.store(weight, w, mask=inside)
