"""Several optimizers, each for the kind of parameter it suits, behind the face of one."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

Rate = float | Tensor
"""A learning rate: a number, or on CUDA a tensor without axes, so that a captured step reads what is in it by then."""

Kinds = dict[str, list[tuple[str, Any]]]
"""Named parameters by kind, as `Model.parameter_kinds` returns them."""


@runtime_checkable
class Deferring(Protocol):
    """An optimizer whose step has a part that is not the same each time."""

    def step_now(self) -> None:
        """The part that is."""
        ...

    def step_later(self) -> None:
        """The rest, after it."""
        ...

    def practise_later(self) -> None:
        """What the rest does when it does most; takes nothing away from what it waits for."""
        ...


class Grouped:
    """Steps its parts in turn. `param_groups` are the parts' own: a schedule sets lr = base_rate * factor in each."""

    param_groups: list[dict[str, Any]]
    """The groups of all parts; each has `params`, `lr`, `base_rate` and `kind`."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        self._deferring = [part for part in parts if isinstance(part, Deferring)]
        self._plain = [part for part in parts if part not in self._deferring]
        self._settle()

    def _settle(self) -> None:
        """Make every group fit the device of its parameters, wherever its values came from."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for group in self.param_groups:
            device = group["params"][0].device
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
            if device.type == "cuda":
                group["written"] = float(group["lr"])
                group["lr"] = torch.tensor(group["written"], device=device)

    def step(self) -> None:
        """Change every parameter by its gradient."""
        self.step_now()
        self.step_later()

    def step_now(self) -> None:
        """What of a step has the same shapes each time and waits for nothing: it can be captured as a CUDA graph."""
        for part in self._plain:
            part.step()
        for part in self._deferring:
            part.step_now()

    def step_later(self) -> None:
        """What is left of the step: what only happens every few updates."""
        for part in self._deferring:
            part.step_later()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self._plain:  # their own zero_grad takes a hundred microseconds for it
            for parameter in _parameters(part):
                parameter.grad = None
        for part in self._deferring:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on besides parameters and gradients."""
        parts = [part.state_dict() for part in self.parts]
        for group in (group for part in parts for group in part["param_groups"]):
            group["lr"] = float(group["lr"])
            group.pop("written", None)
        return {"parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the parameters must be the same in number and shape."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self._settle()

    @torch.no_grad()
    def practise(self) -> tuple[list[Tensor], list[Tensor]]:
        """Take both parts of a step and take them back; what each added to every tensor that it writes to."""
        changed = [tensor for part in self.parts for tensor in _changed(part)]
        kept = [tensor.clone() for tensor in changed]
        self.step_now()
        now = [tensor.float() - before for tensor, before in zip(changed, kept, strict=True)]
        halfway = [tensor.clone() for tensor in changed]
        for part in self._deferring:
            part.practise_later()
        later = [tensor.float() - before for tensor, before in zip(changed, halfway, strict=True)]
        for tensor, before in zip(changed, kept, strict=True):
            tensor.copy_(before)
        return now, later

    def has_state(self) -> bool:
        """Whether every parameter has the state that its first step makes."""
        return all(parameter in part.state for part in self.parts for parameter in _parameters(part))

    def state_bytes(self) -> int:
        """Bytes of state held now; parts allocate theirs at the first step."""
        return sum(_n_bytes(value) for part in self.parts for held in part.state.values() for value in held.values())


def group(kinds: Kinds, kind: str, rate: float, **options: Any) -> list[dict[str, Any]]:
    """One parameter group for a kind, none when the model has no such parameters."""
    params = [parameter for _, parameter in kinds.get(kind, [])]
    return [{"params": params, "kind": kind, "lr": rate, "base_rate": rate, **options}] if params else []


def _parameters(part: Optimizer) -> Iterator[Any]:
    return (parameter for settings in part.param_groups for parameter in settings["params"])


def _changed(part: Optimizer) -> Iterator[Tensor]:
    """All that a step writes to."""
    yield from _parameters(part)
    for held in part.state.values():
        yield from (value for value in held.values() if isinstance(value, Tensor))


def _n_bytes(value: Any) -> int:
    if isinstance(value, list):  # factors that wait
        return sum(map(_n_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def add_scaled(target: Tensor, x: Tensor, scale: Rate) -> None:
    """target += scale x, in place; one pass where the scale is a number."""
    target.add_(x * scale) if isinstance(scale, Tensor) else target.add_(x, alpha=scale)
