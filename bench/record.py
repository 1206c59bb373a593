"""Keep what a benchmark measured: a folder with the figures, the command, the machine and the versions."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from livelm.parts import installed, machine, source_commit

RECORDS = Path(__file__).parent / "records"


def keep(slug: str, question: str, figures: dict[str, Any], rows: Sequence[dict[str, Any]] = ()) -> Path:
    """Write records/<date>-<slug>/record.json and return the folder.

    `question` is the sentence that the figures answer; `rows` a table, where there is one.
    """
    folder = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-{slug}"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "question": question,
        "figures": figures,
        "rows": list(rows),
        "command": f"python -m {_module()} {shlex.join(map(_portable, sys.argv[1:]))}".strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": source_commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{n: installed(n) for n in ("livelm", "torch", "numpy")}},
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return folder


def _portable(argument: str) -> str:
    """Paths as seen from the repository: what lies elsewhere is nobody's business."""
    return os.path.relpath(argument, RECORDS.parents[1]) if argument.startswith("/") else argument


def _module() -> str:
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else os.path.basename(sys.argv[0])  # noqa: PTH119
