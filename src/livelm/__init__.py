"""livelm: small language models that learn from live streams, graded before they learn."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# After each operation of torch the workers of OpenMP spin for milliseconds, on a core that the feed, the sources and
# the walk over a large table (`models.ops.softmax_walk`, a quarter slower beside them) can use. This is long enough
# for the next operation of a model to find them awake. OpenMP reads it when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from livelm.config import Recipe, Settings, load_recipe
    from livelm.errors import LivelmError
    from livelm.evaluate.generate import generate
    from livelm.learn import Learner
    from livelm.run import fork, load, resume, run_session, start
    from livelm.session import Stop
    from livelm.telemetry.fold import Fold, fold_journal
    from livelm.types import Batch, Cursor, Document, Model, Scored, Source, Tokenizer, Update

_HOMES = {
    "Batch": "livelm.types",
    "Cursor": "livelm.types",
    "Document": "livelm.types",
    "Fold": "livelm.telemetry.fold",
    "Learner": "livelm.learn",
    "LivelmError": "livelm.errors",
    "Model": "livelm.types",
    "Recipe": "livelm.config",
    "Scored": "livelm.types",
    "Settings": "livelm.config",
    "Source": "livelm.types",
    "Stop": "livelm.session",
    "Tokenizer": "livelm.types",
    "Update": "livelm.types",
    "fold_journal": "livelm.telemetry.fold",
    "fork": "livelm.run",
    "generate": "livelm.evaluate.generate",
    "load": "livelm.run",
    "load_recipe": "livelm.config",
    "resume": "livelm.run",
    "run_session": "livelm.run",
    "start": "livelm.run",
}
__all__ = [
    "Batch",
    "Cursor",
    "Document",
    "Fold",
    "Learner",
    "LivelmError",
    "Model",
    "Recipe",
    "Scored",
    "Settings",
    "Source",
    "Stop",
    "Tokenizer",
    "Update",
    "fold_journal",
    "fork",
    "generate",
    "load",
    "load_recipe",
    "resume",
    "run_session",
    "start",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use: the baselines' process imports livelm and must not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'livelm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
