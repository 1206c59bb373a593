"""What learns from one look: counts of bytes in many contexts, mixed, alone or with a network."""

from typing import Any

from livelm.memory.counts import Costs, CountMemory, CountMemorySettings
from livelm.memory.join import costs_of_counts, logits_of_marks
from livelm.memory.kernel import AHEAD, GRADE, LEARN, MARK, MARKS

__all__ = [
    "AHEAD",
    "GRADE",
    "LEARN",
    "MARK",
    "MARKS",
    "MEMORIES",
    "Costs",
    "CountMemory",
    "CountMemorySettings",
    "costs_of_counts",
    "logits_of_marks",
]

MEMORIES: dict[str, type[Any]] = {"counts": CountMemory}
"""Memories by recipe name; each is built from (its Config, lanes)."""
