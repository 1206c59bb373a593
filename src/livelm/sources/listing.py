"""Which files a path, a directory or a glob stands for, in an order that never depends on the machine."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path

from livelm.errors import SourceError

Wanted = Callable[[str], bool]
"""Decides by its bare name whether a file, or a folder (its name ends with a slash), found in a directory is read."""


def visible(name: str) -> bool:
    """False for hidden names: version control, editors' swap files and desktop droppings are nobody's text."""
    return not name.startswith(".")


def check_exists(root: str) -> None:
    """Raises SourceError, with the nearest name beside it, when nothing is at `root` and no file matches it."""
    if os.path.lexists(root) or _matches(root):
        return
    if has_magic(root):
        raise SourceError(f"no file matches {root!r}. A glob is relative to the current directory; quote it.")
    path = Path(root)
    try:
        near = get_close_matches(path.name, sorted(p.name for p in path.parent.iterdir()), n=1, cutoff=0.5)
    except OSError:
        near = []
    advice = f"Did you mean {str(path.with_name(near[0]))!r}?" if near else "Check the path."
    raise SourceError(f"there is no file or directory {root!r}. {advice}")


def list_files(roots: Sequence[str], wanted: Wanted, skipped: Counter[str]) -> list[tuple[str, Path]]:
    """Every file under the roots, each once, as (id, path): roots in the given order, sorted inside each.

    The id is the path relative to the root: to the folder of a file, to a directory itself, to the part of a glob
    before its first wildcard; of several roots, to what these have in common. What a directory holds and is not
    read is counted in `skipped`. Symbolic links to files are followed, to directories not (they can make circles).
    Raises SourceError for what is missing or unreadable.
    """
    for root in roots:
        check_exists(root)
    folder = os.path.commonpath([_folder(root).absolute() for root in roots])
    found: dict[str, Path] = {}
    for root in roots:
        matches = [root] if os.path.lexists(root) else _matches(root)
        paths = {path for match in matches for path in _files_at(match, wanted, skipped)}
        for path in sorted(paths):
            found.setdefault(Path(os.path.relpath(path, folder)).as_posix(), Path(path))
    return list(found.items())


def _matches(root: str) -> list[str]:
    # not Path.glob, which matches hidden names with *
    return glob(root, recursive=True) if has_magic(root) else []  # noqa: PTH207


def _folder(root: str) -> Path:
    path = Path(root)
    if path.is_dir():
        return path
    if os.path.lexists(root):
        return path.parent
    fixed = next(i for i, part in enumerate(path.parts) if has_magic(part))
    return Path(*path.parts[:fixed])


def _files_at(match: str, wanted: Wanted, skipped: Counter[str]) -> Iterator[str]:
    if not Path(match).is_dir():
        yield match  # named by the user: read whatever it is called
        return
    for folder, folders, names in os.walk(match, onerror=_unreadable):
        left_out = {name for name in folders if not wanted(f"{name}/")}
        folders[:] = [name for name in folders if name not in left_out]
        left_out |= {name for name in names if not wanted(name)}
        paths = [Path(folder, name) for name in names if name not in left_out]
        regular = [str(path) for path in paths if path.is_file()]
        for reason, n in (("left out by name", len(left_out)), ("not a regular file", len(paths) - len(regular))):
            if n:
                skipped[reason] += n
        yield from regular


def _unreadable(error: OSError) -> None:
    raise SourceError(f"the directory {error.filename!r} cannot be read: {error.strerror or error}.") from None
