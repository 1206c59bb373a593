"""Where text comes from: the registry of sources, and how a SOURCE on the command line names one."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from livelm.config import SourceSettings
from livelm.errors import ConfigError
from livelm.sources.demo import Demo
from livelm.sources.files import Files, FilesSettings
from livelm.sources.stdin import Stdin
from livelm.sources.tail import Tail, TailSettings
from livelm.types import Source

__all__ = [
    "SOURCES",
    "Demo",
    "Files",
    "FilesSettings",
    "Stdin",
    "Tail",
    "TailSettings",
    "open_source",
    "open_sources",
]

SOURCES: dict[str, Callable[..., Source]] = {"demo": Demo, "files": Files, "stdin": Stdin, "tail": Tail}
"""Every source by the name that its documents and cursors carry."""

DEFAULTS = SourceSettings()


def open_source(uri: str, settings: SourceSettings = DEFAULTS) -> Source:
    """The source that a SOURCE names: a path, directory or glob; `-`; `files:PATH`; `tail:PATH`; `demo:`.

    Raises ConfigError for an unknown scheme, with the nearest; SourceError for a path where nothing is.
    """
    scheme, rest = _split(uri)
    if scheme == "files":
        return Files([_path(uri, rest)], FilesSettings(text_field=settings.text_field))
    if scheme == "tail":
        return Tail(_path(uri, rest), TailSettings(from_end=settings.from_end))
    if rest:
        raise ConfigError(f"{uri!r}: {scheme} takes nothing after the colon. Write {_written(scheme)!r}.")
    return SOURCES[scheme]()


def open_sources(uris: Sequence[str], settings: SourceSettings = DEFAULTS) -> Source:
    """One source of several SOURCE arguments: paths are read one after another; nothing else can be combined yet.

    Raises ConfigError for none or for what cannot be combined, and what `open_source` raises.
    """
    if not uris:
        raise ConfigError("no source is given. Name a file, a directory, `-`, `tail:PATH` or `demo:`.")
    if len(uris) == 1:
        return open_source(uris[0], settings)
    parts = [(uri, *_split(uri)) for uri in uris]
    for uri, scheme, _ in parts:
        if scheme != "files":
            raise ConfigError(f"{uri!r} cannot be combined with other sources; only files can. Run it by itself.")
    return Files([_path(uri, rest) for uri, _, rest in parts], FilesSettings(text_field=settings.text_field))


def _split(uri: str) -> tuple[str, str]:
    """The name in `SOURCES` and what follows it."""
    if uri == "-":
        return "stdin", ""
    match = re.match(r"([a-z][a-z0-9+]*):", uri)
    if match is None or Path(uri).exists():
        return "files", uri
    scheme = match[1]
    if scheme not in SOURCES:
        near = get_close_matches(scheme, list(SOURCES), n=1, cutoff=0.5)
        advice = f"Did you mean {_written(near[0])!r}? " if near else ""
        raise ConfigError(
            f"{uri!r}: there is no source {scheme!r}. {advice}Known: a path, {', '.join(map(_written, SOURCES))}."
        )
    return scheme, uri[match.end() :]


def _written(scheme: str) -> str:
    return {"demo": "demo:", "files": "files:PATH", "stdin": "-", "tail": "tail:PATH"}[scheme]


def _path(uri: str, path: str) -> str:
    if not path:
        raise ConfigError(f"{uri!r} names no path. Write it as scheme:PATH, or just the path of a file.")
    return str(Path(path).expanduser())
