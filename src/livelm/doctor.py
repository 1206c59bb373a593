"""What is installed, what is off, and the one line that turns it on."""

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from livelm.models.ops.native import multiplies_bfloat16

OPTIONAL = {
    "aiohttp": ("crawls, archives and feeds", "pip install 'livelm[web]'"),
    "nats-py": ("reads from NATS, and writes to it", "pip install 'livelm[nats]'"),
    "confluent-kafka": ("reads from Kafka, and writes to it", "pip install 'livelm[kafka]'"),
    "redis": ("reads from Redis streams, and writes to them", "pip install 'livelm[redis]'"),
    "pytest": ("runs livelm's own tests", "pip install 'livelm[dev]'"),
}
"""Optional packages: what each is for, and the line that installs it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    on: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; never fails and changes nothing."""
    free = shutil.disk_usage(Path.cwd()).free
    cuda = torch.cuda.is_available()
    findings = [
        Finding("python", True, platform.python_version()),
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"),
        Finding("bfloat16", *_bfloat16()),
        Finding("cuda", cuda, torch.cuda.get_device_name() if cuda else "no CUDA device; the CPU is used"),
        Finding("disk", free > 1 << 30, f"{free / 1e9:.1f} GB free here"),
    ]
    for name, (purpose, line) in OPTIONAL.items():
        try:
            findings.append(Finding(name, True, f"{version(name)}: {purpose}"))
        except PackageNotFoundError:
            findings.append(Finding(name, False, f"{purpose}; turn on with: {line}"))
    return findings


def _bfloat16() -> tuple[bool, str]:
    native = multiplies_bfloat16()
    if native is None:
        return (
            False,
            "this system does not say whether its processor multiplies bfloat16; token_table = auto is float32",
        )
    if native:
        return True, "the processor multiplies bfloat16 natively; token_table = auto is bfloat16"
    return False, "no native products: token_table = auto is float32, and bfloat16 would be many times slower"
