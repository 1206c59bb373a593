"""What learns: everything, what documents begin with, the head, the last layers, or low-rank adapters.

A policy is one word of the recipe (`learn.policy`) and works for every architecture, because each says what its layers
and its head are (`types.Model.outline`).
"""

from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn

from livelm.config import Settings
from livelm.errors import ConfigError
from livelm.models.lora import adapt, merge_adapters

TRAINED = ("offset", "learned")
"""Values of `initial_state` with which a model has a state that can be trained; what does not fade first."""


def settings_for(policy: str, model: str, settings: Settings) -> Settings:
    """Settings with which the architecture `model` has what the policy trains, if they do not say so themselves.

    Raises ConfigError for `state` and an architecture without a trained initial state.
    """
    if policy != "state":
        return settings
    field = type(settings).model_fields.get("initial_state")
    if field is None:
        raise ConfigError(
            f"learn.policy is 'state', but model {model!r} has no initial state to train. Take head, last:N or lora:R."
        )
    chosen: str = settings.initial_state  # type: ignore[attr-defined]
    if chosen not in TRAINED:
        chosen = next(value for value in TRAINED if value in get_args(field.annotation))
    return settings.model_copy(update={"initial_state": chosen})


def apply_policy(policy: str, model: Any) -> None:
    """Freeze what the policy does not train, and add adapters where it wants them.

    `model` is a `types.Model`. Raises ConfigError for what this model does not have.
    """
    if policy == "all":
        return
    name, _, number = policy.partition(":")
    outline = model.outline()
    model.requires_grad_(False)
    if name == "lora":
        learning = adapt(outline.layers, int(number))
    elif name == "state":
        learning = list(outline.initial)
    else:
        n_last = int(number) if name == "last" else 0
        if n_last > len(outline.layers):
            raise ConfigError(
                f"learn.policy is {policy!r}, but the model has {len(outline.layers)} layers. Take at most "
                f"last:{len(outline.layers)}, or all."
            )
        parts = (*outline.layers[len(outline.layers) - n_last :], *outline.head)
        learning = [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
    for parameter in learning:
        parameter.requires_grad_(True)


def learning_kinds(model: Any) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """What of `parameter_kinds` learns; thin matrices of adapters are of the kind `matrix`."""
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for kind, named in model.parameter_kinds().items():
        for name, parameter in named:
            if parameter.requires_grad:
                own = "matrix" if name.endswith((".lora_a", ".lora_b")) else kind
                kinds.setdefault(own, []).append((name, parameter))
    return kinds


def inherit(given: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights of a run with another policy as this model can take them.

    Adapters become part of the weights they adapted; adapters and initial states that are new here begin as they are.
    """
    tensors, own = merge_adapters(given), model.state_dict()
    outline: Any = model.outline()  # type: ignore[operator]
    fresh = {id(parameter) for parameter in outline.initial}
    new = {name for name, p in model.named_parameters() if id(p) in fresh or name.endswith((".lora_a", ".lora_b"))}
    return tensors | {name: own[name] for name in new - tensors.keys()}
