"""Write docs/numbers.md from bench/records: every figure with its command, machine and versions."""

import json
from pathlib import Path
from typing import Any

from bench.record import RECORDS

TARGET = Path(__file__).parents[1] / "docs" / "numbers.md"
MAX_ROWS = 24
HEAD = """# Numbers

Written by `python -m bench.numbers` from [bench/records](../bench/records); each section is one record. Machines are
shared and noisy: compare within one record, not across them.
"""


def section(folder: Path) -> str:
    """One record as Markdown."""
    record = json.loads((folder / "record.json").read_text("utf-8"))
    machine, versions = record["machine"], record["versions"]
    card = f", {machine['cuda']}" if "cuda" in machine else ""
    figures = record["figures"]
    nested = [{"of": name, **value} for name, value in figures.items() if isinstance(value, dict)]
    lines = [f"## {record['question']}"]
    for rows in _alike([{k: v for k, v in figures.items() if not isinstance(v, dict)}, *nested]):
        lines += ["", *_table(rows)] if rows[0] else []
    if 0 < len(record["rows"]) <= MAX_ROWS:  # longer tables are for machines, and stand in the record
        for rows in _alike([{k: v for k, v in row.items() if not isinstance(v, dict)} for row in record["rows"]]):
            lines += ["", *_table(rows)]
    lines += ["", *[f"- {note}" for note in record.get("notes", [])]]
    lines += [
        "",
        f"`{record['command']}` · {record['date']} · {machine['processor']}, {machine['cores']} cores{card} · "
        f"torch {versions['torch']} · commit {record['commit']} · [record](../bench/records/{folder.name})",
    ]
    return "\n".join(lines)


def _alike(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows with the same columns together, in the order in which the columns first came."""
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        tables.setdefault(tuple(row), []).append(row)
    return list(tables.values())


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def text() -> str:
    """The whole page."""
    folders = sorted(p for p in RECORDS.iterdir() if (p / "record.json").exists())
    return "\n\n".join([HEAD.rstrip(), *map(section, folders)]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
