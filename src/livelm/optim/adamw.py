"""AdamW for everything, with its own rate for each kind of parameter."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.optim import Optimizer

from livelm.config import Settings
from livelm.kernels import kernels_of
from livelm.optim.deferred import DeferredAdagrad
from livelm.optim.grouped import Grouped, Kinds, group
from livelm.optim.rows import RowAdagrad

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Settings):
    """Rates and averages of AdamW (Loshchilov and Hutter 2019)."""

    rate: Rate = 2e-3
    """Of matrices and vectors."""
    table_rate: Rate | None = None
    """Of token table and head; by default `rate`."""
    rows_rate: Rate = 0.1
    """Of tables with row-sparse gradients (n-grams), which Adagrad trains."""
    deferred_rate: Rate = 0.02
    """Of a token table that leaves its gradient in factors (`model.token_table`), which row-wise Adagrad trains."""
    deferred_every: Annotated[int, Field(ge=1)] = 16
    """Updates after which the rows of such a table that were neither read nor predicted learn too."""
    beta1: Beta = 0.9
    beta2: Beta = 0.98
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of matrices: each step takes rate * weight_decay of the weight away."""


class DenseAdamW(torch.optim.AdamW):
    """AdamW of torch, or one kernel for all weights of a group where kernels are used."""

    def step(self, closure: Any = None) -> Any:
        """Change every weight by its gradient."""
        kernels = kernels_of("livelm.optim.adamw_cuda")
        if kernels is None or not kernels.takes(self):
            return super().step(closure)
        return kernels.step(self)


class AdamW(Grouped):
    """Fused AdamW; row-sparse Adagrad for tables that a batch touches in few rows."""

    Config: ClassVar[type[AdamWConfig]] = AdamWConfig

    def __init__(self, config: AdamWConfig, kinds: Kinds) -> None:
        c = config
        dense = [
            *group(kinds, "matrix", c.rate, weight_decay=c.weight_decay),
            *group(kinds, "table", c.table_rate or c.rate),
            *group(kinds, "vector", c.rate),
        ]
        rows = group(kinds, "rows", c.rows_rate)
        options: dict[str, Any] = {"betas": (c.beta1, c.beta2), "eps": c.eps, "weight_decay": 0.0, "fused": True}
        parts: list[Optimizer] = [DenseAdamW(dense, lr=c.rate, **options)] if dense else []
        deferred = group(kinds, "deferred", c.deferred_rate)
        parts += [RowAdagrad(rows)] if rows else []
        parts += [DeferredAdagrad(deferred, every=c.deferred_every)] if deferred else []
        super().__init__(parts)
