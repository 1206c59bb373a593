"""One table that reads and predicts tokens: the full softmax over a large vocabulary, its gradient left in factors."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from livelm.kernels import kernels_of
from livelm.models.ops.softmax_walk import softmax_walk, walkable

N_AT_ONCE = 128
"""Tokens per pass over the table: bounds what scoring a long text holds to this many rows of logits."""
WALKED = 1 << 20
"""Numbers in a table from which on it is walked: a smaller one gains less than compiling the walk costs."""


@dataclass(slots=True, eq=False)
class GradientParts:
    """The gradient of a (V, D) table, not yet added up: left' right of each of `products`, plus `rows`, plus `reads`.

    Adding it up costs a (V, D) tensor per update; an optimizer that knows the parts can wait, or touch a few rows.
    """

    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(N, V) and (N, D) pairs in the type of the table. Whoever takes them may overwrite them."""
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(N,) numbers of predicted rows, which may repeat, and the (N, D) float32 gradients to add to them."""
    reads: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """The same for rows that were looked up; apart, because their gradients have another size."""
    spare: list[Tensor] = field(default_factory=list)
    """Left factors that were learned: memory for new ones."""

    def clear(self) -> None:
        """Forget everything, as `zero_grad` does."""
        self.products, self.rows, self.reads = [], [], []

    def dense(self, table: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        """The same gradient as one float32 tensor: the slow twin, and what a plain optimizer would take as `grad`."""
        total = torch.zeros(table.shape, device=table.device)
        for left, right in self.products:
            total += left.float().T @ right.float()
        for rows, values in self.rows + self.reads:
            total.index_add_(0, rows, values)
        return total


def gradient_parts(table: nn.Parameter) -> GradientParts:
    """The parts that backward passes left at this table since they were last cleared.

    They hang on the parameter, where optimizers look for gradients; `table.grad` itself stays None.
    """
    if not hasattr(table, "gradient_parts"):
        table.gradient_parts = GradientParts()  # type: ignore[attr-defined]  # like Megatron's `main_grad`
    return table.gradient_parts  # type: ignore[attr-defined]


class TokenTable(nn.Module):
    """Token embedding and tied output head in one (V, D) table, for vocabularies that dominate the model.

    In bfloat16 the products run on the CPU's bfloat16 units and read half the memory; sums over the vocabulary are
    float32 throughout, and `optim.DeferredAdagrad` keeps the float32 master copy of the table. Where this machine
    can, a large table is walked once (`softmax_walk`, `softmax_walk_cuda`) for scores and gradient of h together.
    """

    def __init__(
        self, n_vocabulary: int, d_model: int, *, std: float, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Rows begin normal with `std` and are read times `scale`.

        A std near 0.02 makes the first scores uniform, but is small for a residual stream: a scale of sqrt(d_model)
        (Vaswani et al. 2017) learned 0.1 nats per token more in 30,000 tokens of web text.
        """
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter((torch.randn(n_vocabulary, d_model) * std).to(dtype))

    def forward(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The row of each token times `scale`, in float32."""
        return _Lookup.apply(self.weight, tokens, self.scale)  # type: ignore[return-value]

    def logits(self, h: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """h W' in float32, rounded as `nats` rounds it. Not differentiable: learn from `nats`."""
        with torch.no_grad():
            return (h.to(self.weight.dtype) @ self.weight.T).float()

    def nats(self, h: Float[Tensor, "*shape D"], targets: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-ln softmax(h W')[target] over the whole vocabulary, float32; gradients reach h and `gradient_parts`."""
        rows, flat = h.reshape(-1, h.shape[-1]), targets.reshape(-1)
        function = _way_through(self.weight)
        if len(rows) <= N_AT_ONCE:  # neither cut nor joined: three launches fewer
            return function.apply(rows, self.weight, flat).view(targets.shape)  # type: ignore[union-attr]
        pieces = zip(rows.split(N_AT_ONCE), flat.split(N_AT_ONCE), strict=True)
        scored = [function.apply(piece, self.weight, wanted) for piece, wanted in pieces]
        return torch.cat(scored).view(targets.shape)  # type: ignore[arg-type]


def nats_reference(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """What `TokenTable.nats` computes, in float32 and by autograd: the truth it is tested against."""
    return F.cross_entropy(h @ weight.float().T, targets, reduction="none")


class _Lookup(torch.autograd.Function):
    """Rows of the table; backward notes which rows got which gradient."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, tokens: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.parts, ctx.scale = gradient_parts(weight), scale
        kernels = kernels_of("livelm.models.ops.look_up_cuda") if weight.is_cuda else None
        return (
            F.embedding(tokens, weight).float() * scale if kernels is None else kernels.look_up(weight, tokens, scale)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        ctx.parts.reads.append((tokens.reshape(-1), grads[0].reshape(-1, grads[0].shape[-1]) * ctx.scale))
        return None, None, None


class _Nats(torch.autograd.Function):
    """Exact softmax cross-entropy; backward gives h its gradient and leaves the table's as one product.

    With p = exp(l - max) / total the gradients are  dh = g (p W - W[y])  and  dW = (g p)' h - (rows y: g h).
    p itself is never formed: 1 / total is a factor of each token and moves to the small side of both products.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: nn.Parameter, targets: Tensor) -> Tensor:
        rounded = h.to(weight.dtype)
        logits = rounded @ weight.T
        top = logits.amax(dim=1, keepdim=True)
        exps = logits.sub_(top).exp_()
        # Products are rounded to the table's type; that averages out over the vocabulary but not in the one term
        # that is graded (0.013 nats r.m.s. in bfloat16), so the target's is computed again and put in its place.
        target = (rounded.float() * weight[targets].float()).sum(dim=1) - top[:, 0].float()
        others = _row_sums(exps) - exps.gather(1, targets[:, None])[:, 0].float()
        total = others.clamp_(min=0) + target.exp()
        ctx.save_for_backward(h, weight, targets, exps, total)
        ctx.parts = gradient_parts(weight)
        return total.log() - target

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        h, weight, targets, exps, total = ctx.saved_tensors
        grad = grads[0][:, None]
        share = grad / total[:, None]
        if ctx.needs_input_grad[1]:  # nobody fetches the parts of a frozen table
            ctx.parts.products.append((exps, (h * share).to(weight.dtype)))
            ctx.parts.rows.append((targets, h * -grad))
        return (exps @ weight).float() * share - weight[targets].float() * grad, None, None


class _WalkedNats(torch.autograd.Function):
    """The same from one walk over the table, whose scores are taken relative to the target's."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: nn.Parameter, targets: Tensor) -> Tensor:
        parts = gradient_parts(weight)
        rounded = h.to(weight.dtype).contiguous()
        score = (rounded.float() * weight[targets].float()).sum(dim=1)
        walked = softmax_walk(rounded, weight, score, parts.spare, back=ctx.needs_input_grad[0])
        target = score - walked.shift
        total = (walked.totals - walked.exps.gather(1, targets[:, None])[:, 0].float()).clamp_(min=0) + target.exp()
        ctx.save_for_backward(h, weight, targets, walked.exps, total, walked.back)
        ctx.parts = parts
        return total.log() - target

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        h, weight, targets, exps, total, back = ctx.saved_tensors
        grad = grads[0][:, None]
        share = grad / total[:, None]
        if ctx.needs_input_grad[1]:
            ctx.parts.products.append((exps, (h * share).to(weight.dtype)))
            ctx.parts.rows.append((targets, h * -grad))
        return back * share - weight[targets].float() * grad if back is not None else None, None, None


def _way_through(weight: Float[Tensor, "V D"]) -> type[torch.autograd.Function]:
    """The fastest way through a table of this type, place and size."""
    if weight.numel() < WALKED:
        return _Nats
    if weight.is_cuda:
        walk = kernels_of("livelm.models.ops.softmax_walk_cuda")
        return _Nats if walk is None or not walk.walkable_on_cuda(weight) else walk.WalkedNats
    return _WalkedNats if walkable(weight) else _Nats


def _row_sums(x: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Sum of each row, in float32.

    A sum of bfloat16 that is asked for in float32 first copies everything (1.4 ms against 0.3); sums of 256 are
    rounded once each, and 501 of them err by 5e-5 of the whole.
    """
    whole = x.shape[1] // 256 * 256
    return x[:, :whole].unflatten(1, (-1, 256)).sum(dim=2).float().sum(dim=1) + x[:, whole:].float().sum(dim=1)
