"""Recipes: TOML files turned into frozen, validated settings; unknown keys are refused with the nearest name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from livelm.errors import ConfigError


class Settings(BaseModel):
    """Base of every group of settings: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


def validate(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Build settings from plain values; `where` is their dotted place in the recipe, such as `model`.

    Raises ConfigError that names the key, the value and what would be right.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, where, e) for e in error.errors())) from None


def _explain(kind: type[Settings], where: str, error: Any) -> str:
    place = ".".join([where, *map(str, error["loc"])]).strip(".")
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, error["loc"][:-1]))
        near = get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        advice = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
        return f"unknown setting {place!r} (= {error['input']!r}). {advice}"
    if error["type"] == "missing":
        return f"{place!r} is missing: it has no default, so the recipe must set it."
    message = error["msg"].removeprefix("Value error, ")
    return f"{place!r} is {error['input']!r}: {message[0].lower()}{message[1:]}."


def _fields_at(kind: type[Settings], path: tuple[Any, ...]) -> set[str]:
    for name in path:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            return set()
        kind = inner
    return set(kind.model_fields)
