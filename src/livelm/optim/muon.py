"""Muon: momentum made orthogonal, so that every direction of a matrix learns at the same speed."""

from collections import defaultdict
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from livelm.config import Settings
from livelm.optim.adamw import AdamW, AdamWConfig, Beta, Rate
from livelm.optim.grouped import Grouped, Kinds, add_scaled, group

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration (Jordan 2024): steep at zero, so five steps bring singular values to 0.7 .. 1.2."""


class MuonConfig(Settings):
    """Muon for matrices, AdamW for the rest."""

    rate: Rate = 0.02
    """Of matrices, in units of spectral norm."""
    momentum: Beta = 0.95
    n_steps: Annotated[int, Field(ge=1)] = 5
    """Iterations that make the momentum orthogonal."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    table_rate: Rate = 2e-3
    """Of token table and head (AdamW)."""
    vector_rate: Rate = 2e-3
    """Of gains and biases (AdamW)."""
    rows_rate: Rate = 0.1
    """Of tables with row-sparse gradients (Adagrad)."""
    deferred_rate: Rate = 0.02
    """Of a token table that leaves its gradient in factors (row-wise Adagrad)."""
    deferred_every: Annotated[int, Field(ge=1)] = 16
    """Updates after which the rows of such a table that were neither read nor predicted learn too."""
    beta1: Beta = 0.9
    beta2: Beta = 0.95


class Muon(Grouped):
    """Orthogonalised momentum for matrices; AdamW for tables and vectors; Adagrad for row-sparse tables."""

    Config: ClassVar[type[MuonConfig]] = MuonConfig

    def __init__(self, config: MuonConfig, kinds: Kinds) -> None:
        c = config
        rest = AdamW(
            AdamWConfig(
                rate=c.vector_rate,
                table_rate=c.table_rate,
                rows_rate=c.rows_rate,
                deferred_rate=c.deferred_rate,
                deferred_every=c.deferred_every,
                beta1=c.beta1,
                beta2=c.beta2,
            ),
            {kind: named for kind, named in kinds.items() if kind != "matrix"},
        )
        matrices = group(kinds, "matrix", c.rate)
        super().__init__([*([MuonMatrices(matrices, c)] if matrices else []), *rest.parts])


class MuonMatrices(Optimizer):
    """w <- (1 - rate * decay) w - rate * sqrt(max(1, rows / columns)) * orthogonalised Nesterov momentum."""

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig) -> None:
        c = config
        super().__init__(groups, {"momentum": c.momentum, "n_steps": c.n_steps, "weight_decay": c.weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the graded graph is the one differentiated
        """Change every matrix."""
        for settings in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in settings["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():  # one batched product instead of many small ones
                self._step_shape(weights, settings)

    def _step_shape(self, weights: list[Tensor], settings: dict[str, Any]) -> None:
        directions = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            gradient = weight.grad
            assert gradient is not None  # noqa: S101  # chosen by step
            momentum = state["momentum"].mul_(settings["momentum"]).add_(gradient)
            directions.append(gradient.add(momentum, alpha=settings["momentum"]))
        updates = orthogonalize(torch.stack(directions), settings["n_steps"])
        n_rows, n_columns = weights[0].shape
        scale = settings["lr"] * max(1.0, n_rows / n_columns) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            add_scaled(weight.mul_(1 - settings["lr"] * settings["weight_decay"]), update, -scale)


def orthogonalize(matrices: Float[Tensor, "N R C"], n_steps: int = 5) -> Float[Tensor, "N R C"]:
    """Nearly the orthogonal factor of each matrix: singular values go to about 0.7 .. 1.2, vectors stay."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    # bfloat16 is enough here and twice as fast on a GPU; on CPUs without it float32 is the faster one.
    x = x.bfloat16() if x.is_cuda else x.float()
    for _ in range(n_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalize_reference(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """The orthogonal factor itself, by singular value decomposition."""
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return left @ right
