"""AdamW for everything, with its own rate for each kind of parameter."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.optim import Optimizer

from livelm.compiled import compiles
from livelm.config import Settings
from livelm.kernels import kernels_of
from livelm.optim.adamw_compiled import Places
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
    """AdamW of torch; where kernels are used one for all weights of a group, on a CPU one pass for small ones."""

    _places: Places | None = None
    """Of the state as it is now; not part of it."""

    def step(self, closure: Any = None) -> Any:
        """Change every weight by its gradient."""
        kernels = kernels_of("livelm.optim.adamw_cuda")
        if kernels is not None and kernels.takes(self):
            return kernels.step(self)
        if closure is None and compiles() and self._step_on_cpu():
            return None
        return super().step(closure)

    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]  # for torch: not to wrap it in a profiler's span

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take more weights."""
        self._places = None
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._places = None  # other tensors take the place of those that it knows
        super().__setstate__(state)

    def _step_on_cpu(self) -> bool:
        """Whether the step was done by one pass over the weights where they lie."""
        if self._places is not None and (not self._places.fit or self._places.step()):
            return self._places.fit
        self._places = Places(self) if self.state else None
        return self._places is not None and self._places.step()


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
