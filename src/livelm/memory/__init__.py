"""What learns from one look: counts of bytes in many contexts, mixed, alone or with a network."""

from typing import Any

from livelm.memory.counts import Costs, CountMemory, CountMemorySettings
from livelm.memory.kernel import GRADE, LEARN, MARK, MARKS

__all__ = [
    "GRADE",
    "LEARN",
    "MARK",
    "MARKS",
    "MEMORIES",
    "Costs",
    "CountMemory",
    "CountMemorySettings",
]

MEMORIES: dict[str, type[Any]] = {"counts": CountMemory}
"""Memories by recipe name; each is built from (its Config, lanes)."""
