"""Kernels where there is no card: Triton's interpreter, and what it does otherwise than one."""

import os
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process interprets kernels: triton asks once, when a kernel is made."""
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def round_as_cards_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 as on a card: interpreted, Triton 3.6 truncates to it and multiplies its bits as integers."""
    if not INTERPRETED:
        return
    interpreter: Any = import_module("triton.runtime.interpreter")
    bfloat16, multiply = interpreter.tl.bfloat16, interpreter.InterpreterBuilder.create_dot

    def convert(numbers: np.ndarray, source: Any, to: Any, rounding: Any) -> np.ndarray:
        tensor = torch.from_numpy(np.array(numbers, order="C"))
        if to == bfloat16:
            return tensor.bfloat16().view(torch.uint16).numpy()
        assert source == bfloat16
        return tensor.view(torch.bfloat16).float().numpy()

    def widen(factor: Any) -> Any:
        if factor.dtype.scalar != bfloat16:
            return factor
        return interpreter.TensorHandle(convert(factor.data, bfloat16, None, None), interpreter.tl.float32)

    def dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        return multiply(builder, widen(a), widen(b), *others)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
