"""The contestants of a comparison: for each architecture its own recipe, and where every setting of it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from livelm.config import SHIPPED, Recipe, load_recipe, load_toml, validate
from livelm.errors import ConfigError
from livelm.memory import MEMORIES
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS, SCHEDULES
from livelm.registry import choose
from livelm.tokenize import TOKENIZERS
from livelm.types import Tokenizer

REGISTRIES = {
    "tokenizer": TOKENIZERS,
    "model": MODELS,
    "memory": MEMORIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""Sections whose settings belong to what their `name` picks."""
FORBIDDEN = {
    "model.name": "--models says which architectures are compared",
    "run.seed": "every model takes seeds 0, 1, 2, ...; --seeds says how many",
    "run.budget": "give --for",
    "source.uris": "give the SOURCE after the options",
    "feed.lanes": "every model reads one lane, so that all read the same bytes in the same order",
    "optimizer.rate": "give --rates, which holds for all",
}
"""Settings that a comparison decides itself, and what to do instead."""
ALONE = "memory.name=none"
"""What is compared is networks, without the counts that a run mixes in by default."""
HOMES = (Path("recipes"), SHIPPED)
"""Where `NAME.toml` is looked for: beside where the command is given, then among those that livelm ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One architecture with the settings it is compared with."""

    name: str
    recipe: Recipe
    origin: str
    """Where its settings come from, for people."""

    def change(self, settings: Mapping[str, Any]) -> "Arm":
        """The same with other values, by `section.key`. Raises ConfigError for what does not fit."""
        values = self.recipe.model_dump(mode="json", exclude_none=True)
        for path, value in settings.items():
            section, _, key = path.partition(".")
            values[section] = {**values[section], key: value}
        return replace(self, recipe=validate(Recipe, values, ""))


def make_arms(models: Sequence[str], size: str, changes: Sequence[str], sources: Sequence[str]) -> list[Arm]:
    """One arm for each model: a name of MODELS, or a recipe file ending in .toml.

    A name takes `recipes/NAME.toml` where there is one, else the sections of `--size` with the model's own defaults.
    Networks are compared without a memory, unless a recipe file has a section for one or `changes` name one.
    `changes` are `--set` settings: `model.context=128` for every arm that has such a setting, `worker.model.stride=4`
    for one arm. Raises ConfigError for unknown names and settings (with the nearest), and for what would make the
    comparison unfair.
    """
    arms = [_arm(model, size) for model in models]
    names = [arm.name for arm in arms]
    if len(arms) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"--models is {','.join(models)!r}; give at least two different ones, such as worker,rwkv7.")
    shared = [c for c in changes if c.partition(".")[0] not in names]
    for change in shared:
        _check(change, arms)
    made = []
    for arm, model in zip(arms, models, strict=True):
        own = [c.removeprefix(f"{arm.name}.") for c in changes if c.startswith(f"{arm.name}.")]
        for change in own:
            _check(change, [arm])
        known = [c for c in shared if _knows(arm, c)]
        arm = _arm(model, size, [*known, *own])
        made.append(arm.change({"source.uris": list(sources), "feed.lanes": 1}))
    return made


def unknown_settings(arms: Sequence[Arm], changes: Sequence[str]) -> list[str]:
    """A sentence for each `--set` that some arm has no setting for."""
    names = [arm.name for arm in arms]
    sentences = []
    for change in changes:
        key = change.partition("=")[0].strip()
        without = [arm.name for arm in arms if not _knows(arm, change)]
        if without and key.partition(".")[0] not in names:
            sentences.append(f"{key}: {', '.join(without)} has no such setting and runs without it.")
    return sentences


def sketch(recipe: Recipe) -> tuple[Tokenizer, Any]:
    """The tokenizer of a recipe, and its model in shapes only (no memory, no numbers)."""
    make_tokenizer = choose(TOKENIZERS, recipe.tokenizer.name, "tokenizer.name")
    tokenizer = make_tokenizer(validate(make_tokenizer.Config, recipe.tokenizer.settings(), "tokenizer"))
    make_model = choose(MODELS, recipe.model.name, "model.name")
    settings = validate(make_model.Config, recipe.model.settings(), "model")
    with torch.device("meta"):
        return tokenizer, make_model(settings, tokenizer.n_vocabulary)


def count_dense(model: Any) -> int:
    """Parameters that every update moves: all but the tables of which it touches a few rows (n-grams)."""
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = model.parameter_kinds()
    return sum(p.numel() for kind, named in kinds.items() if kind != "rows" for _, p in named)


def _arm(model: str, size: str, changes: Sequence[str] = ()) -> Arm:
    alone = [ALONE, *changes]
    if model.endswith(".toml"):
        path = Path(model)
        recipe = load_recipe(path, size, changes if "memory" in load_toml(path) else alone)
        if recipe.model.name == "none":
            raise ConfigError(
                f"{model} has no network, and networks are what --models compares. Let it run by itself, and compare "
                "runs: livelm compare RUN RUN."
            )
        return Arm(name=path.stem, recipe=recipe, origin=model)
    choose(MODELS, model, "--models")
    path = next((home / f"{model}.toml" for home in HOMES if (home / f"{model}.toml").exists()), None)
    if path is not None:
        return Arm(name=model, recipe=load_recipe(path, size, alone), origin=f"recipes/{model}.toml")
    recipe = load_recipe(None, size)
    if recipe.model.name == model:
        return Arm(name=model, recipe=load_recipe(None, size, alone), origin=f"--size {size}")
    recipe = load_recipe(None, size, [f"model.name={model}", *alone])
    return Arm(name=model, recipe=recipe, origin=f"--size {size} with the defaults of {model}")


def _check(change: str, arms: Sequence[Arm]) -> None:
    _forbid(change)
    if not any(_knows(arm, change) for arm in arms):
        key = change.partition("=")[0].strip()
        section, _, name = key.partition(".")
        # the same sentence as for a run, with the nearest name of the first arm
        validate(_kind(arms[0], section).Config, {name: 0}, section)


def _forbid(change: str) -> None:
    key = change.partition("=")[0].strip()
    if key in FORBIDDEN:
        raise ConfigError(f"--set {change!r}: {FORBIDDEN[key]}.")


def _knows(arm: Arm, change: str) -> bool:
    """Whether this arm has the setting; sections that all share answer for themselves when they are loaded."""
    section, _, key = change.partition("=")[0].strip().partition(".")
    if section not in REGISTRIES or key == "name":
        return True
    return key in _kind(arm, section).Config.model_fields


def _kind(arm: Arm, section: str) -> Any:
    """What a section's `name` picks; where an arm has no memory, what another setting may give it."""
    name = getattr(arm.recipe, section).name
    if section == "memory" and name == "none":
        return next(iter(MEMORIES.values()))
    return choose(REGISTRIES[section], name, f"{section}.name")
