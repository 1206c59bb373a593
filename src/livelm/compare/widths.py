"""Equal parameters: widths at which architectures have as many dense parameters as the first of them."""

from bisect import bisect_left
from collections.abc import Sequence

from livelm.compare.arms import MODELS, Arm, count_dense, sketch
from livelm.errors import ConfigError
from livelm.registry import choose

WIDTHS = range(8, 4097, 2)
"""Widths of the stream that are tried."""


def match_parameters(arms: Sequence[Arm]) -> list[Arm]:
    """The arms with `model.d_model`, then `model.d_ff`, chosen so that dense parameters agree with the first arm's.

    The width is the one whose count comes nearest; what it still lacks or has too much goes into the feed-forward
    layer, whose width costs few parameters per step. Everything else stays as the recipe has it, n-gram tables
    included (whose size follows the width but is not counted). Raises ConfigError for a model without `d_model`.
    """
    wanted = count_dense(sketch(arms[0].recipe)[1])
    return [arms[0], *(_match(arm, wanted) for arm in arms[1:])]


def _match(arm: Arm, wanted: int) -> Arm:
    known = choose(MODELS, arm.recipe.model.name, "model.name").Config.model_fields
    if "d_model" not in known:
        raise ConfigError(f"{arm.name} has no setting model.d_model, so its parameters cannot be made equal.")
    widths = [d for d in WIDTHS if _fits(arm, d)]
    if not widths:
        raise ConfigError(f"{arm.name}: no width from {WIDTHS[0]} to {WIDTHS[-1]} fits its other settings.")
    place = bisect_left(widths, wanted, key=lambda d: _count(arm.change({"model.d_model": d})))
    near = widths[max(0, place - 1) : place + 1]
    arm = min((arm.change({"model.d_model": d}) for d in near), key=lambda a: abs(_count(a) - wanted))
    return _fill(arm, wanted) if "d_ff" in known else arm


def _fill(arm: Arm, wanted: int) -> Arm:
    """The arm with the feed-forward width that brings it nearest: its count is linear in that width."""
    one, two = (_count(arm.change({"model.d_ff": n})) for n in (1, 2))
    if two == one:
        return arm
    return arm.change({"model.d_ff": max(1, 1 + round((wanted - one) / (two - one)))})


def _fits(arm: Arm, width: int) -> bool:
    config = choose(MODELS, arm.recipe.model.name, "model.name").Config
    try:
        config.model_validate({**arm.recipe.model.settings(), "d_model": width})
    except ValueError:  # pydantic's ValidationError
        return False
    return True


def _count(arm: Arm) -> int:
    return count_dense(sketch(arm.recipe)[1])
