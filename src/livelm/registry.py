"""From the names in a recipe to what they name: a registry's entries, other people's classes, what an extra brings."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from livelm.errors import ConfigError, Unavailable


def choose(registry: Mapping[str, Any], name: str, where: str) -> Any:
    """The registry's entry, or for a name with a colon the class at `package.module:Class`.

    Raises ConfigError with the nearest known name.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{where} is {name!r}, which cannot be imported: {error}.") from None
    if name not in registry:
        near = get_close_matches(name, list(registry), n=1, cutoff=0.4)
        advice = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{where} is {name!r}. {advice}Known: {', '.join(sorted(registry))}.")
    return registry[name]


def load_optional(path: str, extra: str | None, purpose: str) -> Any:
    """What `package.module:name` names, imported only now, because it needs what may not be installed.

    Raises Unavailable, with the line that installs it.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if extra is None or missing == "livelm":
            raise
        raise Unavailable(f"{purpose} needs {missing}, which is not installed: pip install 'livelm[{extra}]'") from None
