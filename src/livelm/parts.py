"""Build what a recipe names: tokenizer, model, optimizer, schedule; and describe it for record 0."""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from livelm.config import Device, Part, Recipe, Settings, validate
from livelm.errors import ConfigError
from livelm.learn import (
    CAPTURED,
    BesideLearner,
    Growth,
    Holdout,
    Learner,
    MemoryLearner,
    MixedBitLearner,
    MixedLearner,
    Optimizer,
    Rehearsal,
    apply_policy,
    learning_kinds,
    settings_for,
)
from livelm.memory import MEMORIES, CountMemory
from livelm.models import MODELS
from livelm.models.practice import practise
from livelm.optim import OPTIMIZERS, SCHEDULES
from livelm.registry import choose, load_optional
from livelm.tokenize import TOKENIZERS, Bits, Bytes
from livelm.types import Capturable, Particular, Record, Source, Tokenizer

if TYPE_CHECKING:
    from livelm.telemetry.signals.monitor import Monitor

NONE = "none"
"""The name of a network or a memory that is not there."""
VERSIONED = ("livelm", "torch", "numpy", "pydantic", "safetensors", "tokenizers")

AnyLearner = Learner | MemoryLearner
"""What the loop drives."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What learns, built from a recipe whose defaults are all filled in: a network, a memory, or both."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: nn.Module | None
    memory: CountMemory | None
    optimizer: Optimizer | None
    warnings: tuple[str, ...]
    """What a person should know about these settings on this machine."""
    rate_factor: Callable[[int, float], float]
    """(updates so far, fraction of the budget spent) to the factor of every rate."""
    make_optimizer: Callable[[dict[str, Any]], Optimizer]
    """From the kinds of parameters of a model."""
    flops_per_token: int
    """Of a forward pass at full context, without what adapters add."""

    @property
    def network(self) -> tuple[nn.Module, Optimizer]:
        """The network and what changes it. Raises ConfigError for a memory alone."""
        if self.model is None or self.optimizer is None:
            raise ConfigError("model.name is 'none': a memory alone, and here a network is needed. Choose a model.")
        return self.model, self.optimizer

    def learner(self, elapsed: Callable[[], float]) -> AnyLearner:
        """A learner with the lanes of the recipe; `elapsed()` is the fraction of the budget spent, 0 without one."""
        n_lanes = self.recipe.feed.lanes
        if self.model is None or self.optimizer is None:
            if self.memory is None:
                raise ConfigError("there is neither a network nor a memory, so nothing would learn.")
            return MemoryLearner(self.memory, n_lanes)
        own = (self.model, self.optimizer, lambda n: self.rate_factor(n, elapsed()), self.recipe.learn, self._shape)
        kind, before = self._kind_of_learner()
        asked = self.recipe.run.device == "cuda" and self.recipe.run.capture
        if asked and isinstance(self.model, Capturable) and self.model.capturable:
            return CAPTURED[kind](*before, self.recipe.feed.update_tokens, *own)
        return kind(*before, *own)

    def _kind_of_learner(self) -> tuple[Any, tuple[Any, ...]]:
        """How network and memory go together, and what such a learner wants to know first."""
        if self.memory is None:
            return Learner, ()
        if isinstance(self.tokenizer, Bytes):
            return MixedLearner, (self.memory,)
        return MixedBitLearner if isinstance(self.tokenizer, Bits) else BesideLearner, (self.tokenizer, self.memory)

    def monitor(self) -> "Monitor | None":
        """What measures the signals of the stream; None where the recipe wants none."""
        settings = self.recipe.signals
        if not settings.window_bytes:
            return None
        make = load_optional("livelm.telemetry.signals.monitor:Monitor", None, "[signals]")  # a second to load
        return make(settings, self.tokenizer, self.recipe.feed.lanes)

    def growth(self, learner: AnyLearner) -> Growth | None:
        """What makes this learner's network larger, if the recipe wants that; None where there is no network.

        Raises ConfigError if it cannot become larger.
        """
        if isinstance(learner, MemoryLearner):
            return None
        return Growth(self.recipe.grow, learner, self.make_optimizer)

    def rehearsal(self, learner: AnyLearner) -> Rehearsal | None:
        """What this learner rehearses; None where the recipe wants none."""
        settings = self.recipe.rehearsal
        if not settings.share or isinstance(learner, MemoryLearner):
            return None
        return Rehearsal(settings, learner, self._shape, self.recipe.run.seed)

    def holdout(self, learner: AnyLearner) -> Holdout | None:
        """What is held out of learning; None where the recipe wants nothing held out."""
        settings = self.recipe.holdout
        if not settings.share or isinstance(learner, MemoryLearner):
            return None
        return Holdout(settings, learner, self._shape, self.recipe.run.seed)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Lanes, vocabulary size, mark."""
        return self.recipe.feed.lanes, self.tokenizer.n_vocabulary, self.tokenizer.mark


def build_parts(recipe: Recipe) -> Parts:
    """Build everything the recipe names, with its seed and threads. Raises ConfigError naming what does not fit."""
    _refuse_conflicts(recipe)
    torch.set_num_threads(recipe.run.threads or os.cpu_count() or 1)
    _require_device(recipe.run.device)
    make_tokenizer, tokenizer_settings = _resolve(TOKENIZERS, recipe.tokenizer, "tokenizer")
    tokenizer = make_tokenizer(tokenizer_settings)
    memory, memory_part = _build_memory(recipe, tokenizer)
    network = _build_network(recipe, tokenizer)
    make_optimizer, optimizer_settings = _resolve(OPTIMIZERS, recipe.optimizer, "optimizer")
    schedule_kind = choose(SCHEDULES, recipe.schedule.name, "schedule.name")
    schedule = validate(schedule_kind, recipe.schedule.settings(), "schedule")
    if schedule.needs_budget and not recipe.run.budget:
        raise ConfigError(
            f"schedule.name is {recipe.schedule.name!r}, which falls towards the end of a budget, but there is none. "
            "Give --for, or take schedule.name=constant."
        )
    resolved = recipe.model_copy(
        update={
            "tokenizer": _part(recipe.tokenizer.name, tokenizer_settings),
            "model": network.part,
            "memory": memory_part,
            "optimizer": _part(recipe.optimizer.name, optimizer_settings),
            "schedule": _part(recipe.schedule.name, schedule),
        }
    )
    made = partial(make_optimizer, optimizer_settings)
    return Parts(
        recipe=resolved,
        tokenizer=tokenizer,
        model=network.model,
        memory=memory,
        optimizer=_optimizer(made, network, memory is not None and isinstance(tokenizer, Bytes | Bits)),
        warnings=network.warnings,
        rate_factor=schedule.factor,
        make_optimizer=made,
        flops_per_token=network.flops_per_token,
    )


def run_record(parts: Parts, source: Source, run: str) -> Record:
    """Record 0: everything that is needed to say what the numbers after it mean. `run` is the run's identity."""
    model: Any = parts.model
    parameters = list(model.parameters()) if model is not None else []
    return {
        "kind": "run",
        "schema": 1,
        "run": run,
        "recipe": parts.recipe.model_dump(mode="json"),
        "n_parameters": sum(p.numel() for p in parameters),
        "n_trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "memory_bytes": parts.memory.bytes_of_state if parts.memory is not None else 0,
        "n_vocabulary": parts.tokenizer.n_vocabulary,
        "flops_per_token": parts.flops_per_token,
        "context_reach": model.context_reach if model is not None else None,
        "stream": source.describe(),
        "bounded": source.bounded,
        "replayable": source.replayable,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in VERSIONED}},
        "machine": machine(),
        "commit": source_commit(),
    }


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that names it."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"cuda": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}),
        "system": platform.system(),
    }


def installed(name: str) -> str | None:
    """The version of a package; None where it is not installed, as livelm run from its source need not be."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit of the source tree that runs, with + when it has changes; None for an installed package."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _refuse_conflicts(recipe: Recipe) -> None:
    """Raise ConfigError for sections that cannot go together."""
    if recipe.signals.gate != "off" and recipe.feed.lanes > 1:
        raise ConfigError(
            f"signals.gate is {recipe.signals.gate!r} and feed.lanes is {recipe.feed.lanes}: lanes learn together, so "
            "none of them can be refused alone. Take feed.lanes=1, or signals.gate=off."
        )
    if recipe.grow.steps and recipe.learn.policy != "all":
        raise ConfigError(
            f"grow.steps is {list(recipe.grow.steps)} and learn.policy {recipe.learn.policy!r}: a model can only grow "
            "while all of it learns. Leave grow.steps empty, or take learn.policy=all."
        )
    if recipe.model.name == NONE and (recipe.grow.steps or recipe.learn.policy != "all"):
        raise ConfigError(
            f"model.name is {NONE!r}, so grow.steps={list(recipe.grow.steps)} and learn.policy={recipe.learn.policy!r} "
            "mean nothing: counts neither grow nor learn in parts. Leave both out, or name a model."
        )
    for name, share in (("rehearsal", recipe.rehearsal.share), ("holdout", recipe.holdout.share)):
        if recipe.model.name == NONE and share:
            raise ConfigError(
                f"{name}.share is {share}, but model.name is {NONE!r}: only a network rehearses and forgets, counts do "
                f"neither. Name a model, or take {name}.share=0."
            )
    if recipe.model.name == NONE and recipe.memory.name == NONE:
        raise ConfigError(
            "model.name and memory.name are both 'none', so nothing would learn. Take memory.name=counts."
        )


def _require_device(device: Device) -> None:
    """Raise ConfigError for a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is 'cuda', but torch finds no CUDA device here. Take run.device=cpu.")


def _require(model: Any, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a model that would misread what this tokenizer writes."""
    if isinstance(model, Particular):
        model.require(tokenizer)


class _Network(NamedTuple):
    """A network, or that there is none, and what is to be known of it."""

    model: Any
    part: Part
    """Its resolved section."""
    warnings: tuple[str, ...] = ()
    flops_per_token: int = 0


def _build_network(recipe: Recipe, tokenizer: Tokenizer) -> _Network:
    """The network under the recipe's policy."""
    if recipe.model.name == NONE:
        return _Network(None, _absent(recipe.model, "model"))
    device = recipe.run.device
    make_model, settings = _resolve(MODELS | {NONE: None}, recipe.model, "model", device)
    settings = settings_for(recipe.learn.policy, recipe.model.name, settings)
    _refuse_giant(lambda: make_model(settings, tokenizer.n_vocabulary), device)
    torch.manual_seed(recipe.run.seed)
    model = make_model(settings, tokenizer.n_vocabulary)
    _require(model, tokenizer)
    flops_per_token = model.flops_per_token()
    apply_policy(recipe.learn.policy, model)
    model.to(device)  # made on the CPU, so that every device begins with the same numbers
    practise(model)  # on nobody's clock
    return _Network(model, _part(recipe.model.name, settings), settings.warnings(device), flops_per_token)


def _build_memory(recipe: Recipe, tokenizer: Tokenizer) -> tuple[Any, Part]:
    """The memory and its resolved section; None where there is to be none."""
    if recipe.memory.name == NONE:
        return None, _absent(recipe.memory, "memory")
    make_memory, settings = _resolve(MEMORIES | {NONE: None}, recipe.memory, "memory")
    if recipe.model.name == NONE and not isinstance(tokenizer, Bytes):
        raise ConfigError(
            f"tokenizer.name is {recipe.tokenizer.name!r}, and a memory alone reads bytes. Take tokenizer.name=bytes."
        )
    memory = make_memory(settings, recipe.feed.lanes)
    memory.prepare()  # on nobody's clock
    return memory, _part(recipe.memory.name, settings)


def _optimizer(make: Callable[[dict[str, Any]], Optimizer], network: _Network, mixes: bool) -> Optimizer | None:
    """The optimizer of a network; None without one. Raises ConfigError for one whose predictions cannot be mixed."""
    if network.model is None:
        return None
    kinds = network.model.parameter_kinds()
    if mixes and "deferred" in kinds:
        raise ConfigError(
            f"model.token_table is {network.part.settings().get('token_table')!r}, whose gradient stays in factors; "
            "mixing with a memory needs whole predictions. Take model.token_table=plain or memory.name=none."
        )
    return make(learning_kinds(network.model))


def _absent(part: Part, where: str) -> Part:
    """The section of what is not there. Raises ConfigError where it has settings all the same."""
    if given := part.settings():
        raise ConfigError(f"{where}.name is {NONE!r}, so {where}.{next(iter(given))} means nothing. Delete it.")
    return part


def _refuse_giant(make_model: Callable[[], nn.Module], device: Device) -> None:
    """Raise ConfigError for a model that cannot fit in memory, before minutes go into filling it."""
    with torch.device("meta"):  # shapes only
        n_parameters = sum(p.numel() for p in make_model().parameters())
    needed, there = 2 * 4 * n_parameters, _memory_bytes(device)  # weights and at least as much for learning, float32
    if there and needed > there:
        where = "this machine" if device == "cpu" else torch.cuda.get_device_name()
        raise ConfigError(
            f"this model has {n_parameters:,} parameters and needs {needed / 1e9:,.0f} GB or more to learn; "
            f"{where} has {there / 1e9:,.0f} GB. Take a smaller --size or smaller model settings."
        )


def _memory_bytes(device: Device) -> int:
    """Physical memory, of the card or of the machine; 0 where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _resolve(registry: Any, part: Part, where: str, device: Device = "cpu") -> tuple[Any, Settings]:
    kind = choose(registry, part.name, f"{where}.name")
    return kind, validate(kind.Config, part.settings(), where).resolved(device)


def _part(name: str, settings: Settings) -> Part:
    return Part(name=name, **settings.model_dump(mode="json", exclude_none=True))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
