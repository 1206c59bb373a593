"""Plans: which weights a model has, and where they lie. Looked up once, checked at each pass for a tenth of that."""

import operator
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn


class Plan:
    """What a compiled pass needs to know of a model, as long as every part of that stays what and where it was."""

    fits: bool
    """Whether the model can go that way at all."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """`modules`: those whose parameters and own modules must stay the same."""
        held: list[Any] = [parts for module in modules for parts in (module._parameters, module._modules)]
        found = [(parts, name, part) for parts in held for name, part in parts.items()]
        self._holders, self._names, self._parts = zip(*found, strict=True)
        self._there: list[Tensor] = []
        self._places: list[int] = []

    def settle(self, weights: Sequence[Tensor | None]) -> None:
        """These must stay where they are, too."""
        self._there = [weight for weight in weights if weight is not None]
        self._places = list(map(Tensor.data_ptr, self._there))

    def stands(self) -> bool:
        """Whether all is as it was. (Loops in C: a model has some hundred parts.)"""
        same = all(map(operator.is_, map(dict.get, self._holders, self._names), self._parts))
        return same and list(map(Tensor.data_ptr, self._there)) == self._places


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def remembered(make: Callable[[Any], AnyPlan]) -> Callable[[nn.Module], AnyPlan]:
    """What returns the plan for a model as it is now, and makes one only where none stands."""
    plans: WeakKeyDictionary[nn.Module, AnyPlan] = WeakKeyDictionary()

    def plan_of(model: nn.Module) -> AnyPlan:
        plan = plans.get(model)
        if plan is None or not plan.stands():
            plan = plans[model] = make(model)
        return plan

    return plan_of


def as_array(tensor: Tensor | None) -> np.ndarray:
    """The same memory for numba; nothing where there is none."""
    return np.empty(0, np.float32) if tensor is None else tensor.detach().numpy()


def addresses(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """Of some tensors; 0 where there is none."""
    return np.frombuffer(array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors]), np.int64)
