"""The house keeps its floors: imports go down only, siblings stay apart, nothing is imported inside a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "livelm"
FLOORS = [
    {"types", "errors", "registry", "compiled", "kernels"},
    {"config"},
    {"sources", "tokenize", "models", "memory", "optim"},
    {"feed", "learn"},
    {"telemetry", "artifact"},
    {"evaluate"},
    {"serve", "scale"},
    {"folder", "parts", "session", "run"},
    {"compare", "watch"},
    {"doctor", "cli", "__main__"},
]
# the files of the loop build on one another in this order, as do the two below; elsewhere siblings never meet
IN_ORDER = ["errors", "types", "registry"], ["folder", "parts", "session", "run"], ["doctor", "cli", "__main__"]
FILES = sorted(SOURCE.rglob("*.py"))


def floor(package: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if package in names)


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def own_imports(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.ImportFrom) and (child.level or (child.module or "").split(".")[0] == "livelm"):
            assert not child.level, "relative imports hide where a name lives"
            parts = (child.module or "").split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in child.names]
        if isinstance(child, ast.Import):
            yield from (a.name.split(".")[1] for a in child.names if a.name.startswith("livelm."))


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if any(importer in order and imported in order[: order.index(importer)] for order in IN_ORDER):
        return True
    return floor(imported) < floor(importer)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return
    wrong = {name for name in own_imports(ast.parse(path.read_text())) if not may_import(package_of(path), name)}
    assert not wrong, f"{path.name} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_of_ours_is_imported_inside_a_function(path: Path) -> None:
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [name for function in functions for name in own_imports(function)]


def test_every_module_has_a_floor() -> None:
    known = set().union(*FLOORS) | {"__init__"}
    assert {package_of(p) for p in FILES} <= known


def test_a_wrong_import_would_be_found() -> None:
    assert not may_import("models", "optim")
    assert not may_import("learn", "telemetry")
    assert not may_import("parts", "run")
    assert may_import("run", "parts")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    printing = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not printing or path.name == "cli.py"
