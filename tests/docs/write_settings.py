"""Write docs/settings.md: every setting of a recipe with its default, bounds and meaning, from its class."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from livelm.config import Part, Recipe, Settings
from livelm.memory import MEMORIES
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS, SCHEDULES
from livelm.sources import SOURCES
from livelm.tokenize import TOKENIZERS

TARGET = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Every setting there is, written by `make docs` from the classes that check them; each can stand in a recipe under its
section or on the command line as `--set SECTION.KEY=VALUE`. Text in a value needs no quotes on the command line; lists
do: `--set 'source.mix.weights=[3, 1]'`."""
REGISTRIES: dict[str, dict[str, Any]] = {
    "tokenizer": TOKENIZERS,
    "model": MODELS,
    "memory": MEMORIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if kind is Part:
            for entry, cls in REGISTRIES[name].items():
                title = f'{name}, with `{name}.name = "{entry}"`'
                parts.append(_section(title, cls if _is(cls) else cls.Config, name))
        elif _is(kind):
            parts.append(_section(name, kind, name))
    parts += [
        _section(f"source.{name}, for `{kind.written}`", kind.load().Config, f"source.{name}")
        for name, kind in SOURCES.items()
        if name in Recipe.model_fields["source"].annotation.model_fields  # type: ignore[union-attr]
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, kind: type[BaseModel], path: str) -> str:
    rows = _rows(kind, "")
    if not rows:
        return ""
    table = "\n".join(f"| `{key}` | {default} | {meaning} |" for key, default, meaning in rows)
    return f"\n## {title}\n\n{_cell(kind.__doc__ or '')}\n\n| {path}. | default | meaning |\n|---|---|---|\n{table}\n"


def _rows(kind: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in kind.model_fields.items():
        if _is(field.annotation):
            rows += _rows(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif field.annotation != dict[str, Any]:
            rows.append((prefix + name, _default(field), _cell(" ".join([field.description or "", _bounds(field)]))))
    return rows


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "obligatory" if field.default_factory is None else f"`{field.default_factory()!r}`"  # type: ignore[call-arg]
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text = repr(value).replace("'", '"')
    return f"`{text if len(text) < 60 else text[:57] + '...'}`"


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [f"{word} {getattr(m, key):,}" for m in field.metadata for key, word in words.items() if hasattr(m, key)]
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    found += ["one of " + ", ".join(f"`{choice}`" for choice in choices)] if choices else []
    return f"({'; '.join(found)})" if found else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _is(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


if __name__ == "__main__":
    TARGET.write_text(page(), "utf-8")
