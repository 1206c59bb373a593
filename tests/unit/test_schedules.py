"""Schedules are pure functions with the values their sentences promise."""

import pytest

from livelm.config import validate
from livelm.errors import ConfigError
from livelm.optim import SCHEDULES


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_warm_up_rises_in_a_line_to_one(name: str) -> None:
    schedule = SCHEDULES[name](warmup=10)
    assert [schedule.factor(n, 0.0) for n in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_without_warm_up_the_first_update_is_full(name: str) -> None:
    assert SCHEDULES[name](warmup=0).factor(0, 0.0) == 1.0


def test_constant_never_falls() -> None:
    assert SCHEDULES["constant"]().factor(10**9, 1.0) == 1.0


def test_inverse_square_root_halves_at_four_times_the_hold() -> None:
    schedule = SCHEDULES["inverse_sqrt"](warmup=0, hold=100)  # type: ignore[call-arg]
    assert [schedule.factor(n, 0.0) for n in (99, 399, 9999)] == pytest.approx([1.0, 0.5, 0.1])


def test_cooldown_falls_in_a_line_to_its_floor() -> None:
    schedule = SCHEDULES["cooldown"](warmup=0, share=0.4, floor=0.1)  # type: ignore[call-arg]
    factors = [schedule.factor(0, elapsed) for elapsed in (0.0, 0.6, 0.8, 1.0, 1.5)]
    assert factors == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


def test_the_schedules_are_sorted_and_refuse_nonsense() -> None:
    assert list(SCHEDULES) == sorted(SCHEDULES)
    with pytest.raises(ConfigError, match="share"):
        validate(SCHEDULES["cooldown"], {"share": 0.0}, "schedule")
