"""Several optimizers, each for the kind of parameter it suits, behind the face of one."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Kinds = dict[str, list[tuple[str, Any]]]
"""Named parameters by kind, as `Model.parameter_kinds` returns them."""


class Grouped:
    """Steps its parts in turn. `param_groups` are the parts' own: a schedule sets lr = base_rate * factor in each."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; each has `params`, `lr`, `base_rate` and `kind`."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Change every parameter by its gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on besides parameters and gradients."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the parameters must be the same in number and shape."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def state_bytes(self) -> int:
        """Bytes of state held now; parts allocate theirs at the first step."""
        return sum(_n_bytes(value) for part in self.parts for held in part.state.values() for value in held.values())


def group(kinds: Kinds, kind: str, rate: float, **options: Any) -> list[dict[str, Any]]:
    """One parameter group for a kind, none when the model has no such parameters."""
    params = [parameter for _, parameter in kinds.get(kind, [])]
    return [{"params": params, "kind": kind, "lr": rate, "base_rate": rate, **options}] if params else []


def _n_bytes(value: Any) -> int:
    if isinstance(value, list):  # factors that wait
        return sum(map(_n_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
