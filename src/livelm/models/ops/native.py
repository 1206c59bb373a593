"""What the processor multiplies natively."""

from functools import cache
from pathlib import Path

import torch

from livelm.config import Device

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Linux' names of instructions that multiply bfloat16: two of x86, two of ARM."""


@cache
def multiplies_bfloat16() -> bool | None:
    """Whether the processor does; None where the system does not say.

    Without such instructions torch's bfloat16 products take many times as long as those of float32: on two AVX2 cores
    a run of 6,000 tokens of the wire-speed recipe did not end within ten minutes.
    """
    try:
        words = Path("/proc/cpuinfo").read_text("utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return not BFLOAT16_FLAGS.isdisjoint(words)


def table_type(device: Device = "cpu") -> torch.dtype:
    """What a large table should be stored and multiplied in here: bfloat16 where it is native, else float32."""
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32
