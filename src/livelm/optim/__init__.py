"""Learning rules: optimizers built from a model's parameter kinds, and the schedules of their rates."""

from livelm.optim.adamw import AdamW
from livelm.optim.muon import Muon
from livelm.optim.schedules import SCHEDULES, set_rates

__all__ = ["OPTIMIZERS", "SCHEDULES", "set_rates"]

OPTIMIZERS: dict[str, type[AdamW | Muon]] = {
    "adamw": AdamW,
    "muon": Muon,
}
"""Optimizers by recipe name; each is built from (its Config, parameter kinds)."""
