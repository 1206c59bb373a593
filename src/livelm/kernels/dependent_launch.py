"""Kernels that begin while the one before them ends: programmatic dependent launch, on Hopper and later.

A small kernel spends its first microsecond on being launched and on loading weights that have been there for long. A
kernel launched with `DEPENDENT` does that while its predecessor still runs, and then waits for it. The rule: before
`wait_for_last` it writes nothing, and reads nothing that its immediate predecessor wrote; what earlier kernels wrote is
there, because a predecessor lets the next one begin only after its own wait. (CUDA C++ Programming Guide, "Programmatic
Dependent Launch and Synchronization".)
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before Triton 3.4
    gdc_launch_dependents: Any = None
    gdc_wait: Any = None

jit: Any = triton.jit
"""What it makes is launched as kernel[grid](...), which types do not know."""


def _overlap() -> bool:
    """Whether kernels can begin early: not under the interpreter, nor on cards before Hopper."""
    if os.environ.get("TRITON_INTERPRET") == "1" or gdc_wait is None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] >= 9  # none: compiled for Hopper


OVERLAP = tl.constexpr(_overlap())
DEPENDENT: dict[str, Any] = {"launch_pdl": True} if OVERLAP.value else {}
"""Options of a launch that may begin before the kernel before it has ended."""


@jit
def wait_for_last():
    """Wait until all that the kernel before this one wrote is there; then let the next one begin."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
