"""The rules of a comparison: what is equal for all models, and what is tried for each."""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from livelm.config import Budget, parse_budget
from livelm.errors import ConfigError


class Equal(StrEnum):
    """What every model has as much of."""

    TIME = "time"
    BYTES = "bytes"
    PARAMETERS = "parameters"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is equal for all, and what is tried."""

    equal: Equal
    budget: str
    """Of each run, as in --for; with equal FLOPs: bytes of the first arm."""
    seeds: int
    rates: tuple[float, ...]
    """The grid, for all arms; empty: each keeps the rate of its recipe. One: that one for all."""
    pilot: str
    """Of each pilot run, as in --for."""

    def limit(self) -> Budget:
        """The budget as numbers. Raises ConfigError when it does not fit what is equal."""
        limit = parse_budget(self.budget)
        if self.equal is Equal.TIME and limit.seconds is None:
            raise ConfigError(
                f"--for is {self.budget!r}; equal time needs a time, such as 300s, or give --equal bytes."
            )
        if self.equal in (Equal.BYTES, Equal.FLOPS) and limit.n_bytes is None:
            what = "the bytes that the first model reads" if self.equal is Equal.FLOPS else "an amount"
            raise ConfigError(f"--for is {self.budget!r}; --equal {self.equal} needs {what}, such as 500KB.")
        if limit.seconds is None and limit.n_bytes is None:
            raise ConfigError("--for is missing; give each run a time or an amount, such as 300s or 1MB.")
        return limit

    def pilot_limit(self) -> Budget:
        """The budget of a pilot run: as given, else a tenth of a run's."""
        if self.pilot:
            return parse_budget(self.pilot)
        limit = self.limit()
        return Budget(
            seconds=limit.seconds / 10 if limit.seconds else None,
            n_bytes=max(1, limit.n_bytes // 10) if limit.n_bytes else None,
        )


def parse_rates(text: str) -> tuple[float, ...]:
    """The grid of `--rates`: numbers between commas, in rising order; `recipe` for none. Raises ConfigError.

    >>> parse_rates("4e-3,1e-3")
    (0.001, 0.004)
    """
    if text.strip() == "recipe":
        return ()
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(isfinite(rate) and rate > 0 for rate in rates):
        raise ConfigError(f"--rates is {text!r}; give numbers above 0, such as 1e-3,2e-3,4e-3, or the word recipe.")
    return tuple(rates)
