"""What learns from one look: counts of bytes in many contexts, mixed."""

from livelm.memory.counts import Costs, CountMemory, CountMemorySettings

__all__ = ["Costs", "CountMemory", "CountMemorySettings"]
