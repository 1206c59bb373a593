"""Where text comes from: the registry of sources, and how a SOURCE on the command line names one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from livelm.config import SourceSettings, validate
from livelm.errors import ConfigError
from livelm.registry import load_optional
from livelm.sources.files import Files, FilesSettings
from livelm.sources.mix import Mix, MixSettings
from livelm.sources.stdin import Stdin
from livelm.sources.tail import Tail, TailSettings
from livelm.types import Source

__all__ = [
    "PUBLISHERS",
    "SCHEMES",
    "SOURCES",
    "Files",
    "FilesSettings",
    "Mix",
    "MixSettings",
    "SourceKind",
    "Stdin",
    "Tail",
    "TailSettings",
    "absolute",
    "open_publisher",
    "open_source",
    "open_sources",
]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source: where its class is, how one writes it, and what must be installed for it."""

    path: str
    """`package.module:Class`, imported when it is first opened: who reads a file need not load a crawler."""
    written: str
    """How a SOURCE of this kind looks."""
    extra: str | None = None
    """The optional dependencies it needs: `pip install 'livelm[EXTRA]'`."""
    is_path: bool = False
    """Whether what follows the colon is a path, unless it is a URL."""

    def load(self) -> Any:
        """The class. Raises Unavailable, with the line that installs what is missing."""
        return load_optional(self.path, self.extra, self.written)


SOURCES: dict[str, SourceKind] = {
    "crawl": SourceKind("livelm.sources.web.crawl:Crawl", "crawl:URL", "web"),
    "demo": SourceKind("livelm.sources.demo:Demo", "demo:", "web"),
    "files": SourceKind("livelm.sources.files:Files", "files:PATH", is_path=True),
    "kafka": SourceKind("livelm.sources.brokers.kafka:Kafka", "kafka://HOST/TOPIC", "kafka"),
    "mix": SourceKind("livelm.sources.mix:Mix", "mix: SOURCE SOURCE"),
    "nats": SourceKind("livelm.sources.brokers.nats:Nats", "nats://HOST/STREAM/SUBJECT", "nats"),
    "redis": SourceKind("livelm.sources.brokers.redis:Redis", "redis://HOST/STREAM", "redis"),
    "sessions": SourceKind("livelm.sources.sessions:Sessions", "sessions:PATH", is_path=True),
    "sse": SourceKind("livelm.sources.feeds:Sse", "sse:URL", "web"),
    "stdin": SourceKind("livelm.sources.stdin:Stdin", "-"),
    "tail": SourceKind("livelm.sources.tail:Tail", "tail:PATH", is_path=True),
    "warc": SourceKind("livelm.sources.archives:Archives", "warc:PATH", "web", is_path=True),
    "ws": SourceKind("livelm.sources.feeds:WebSocket", "wss://HOST/PATH", "web"),
}
"""Every source by the name that its documents and cursors carry."""

SCHEMES = {name: name for name in SOURCES if name != "stdin"} | {"wss": "ws"}
"""What stands before the colon of a SOURCE, and the source it means."""

PUBLISHERS: dict[str, str] = {
    "kafka": "livelm.sources.brokers.kafka:KafkaPublisher",
    "nats": "livelm.sources.brokers.nats:NatsPublisher",
    "redis": "livelm.sources.brokers.redis:RedisPublisher",
}
"""What documents can be sent to, by the scheme of its address; each is also in SOURCES."""

DEFAULTS = SourceSettings()


def open_source(uri: str, settings: SourceSettings = DEFAULTS) -> Source:
    """The source that a SOURCE names: a path, directory or glob; `-`; or something with a scheme of SCHEMES.

    Raises ConfigError for an unknown scheme, with the nearest; Unavailable for what is not installed; SourceError
    for a path where nothing is.
    """
    name, rest = _split(uri)
    if name == "files":
        return Files([_path(uri, rest)], FilesSettings(text_field=settings.text_field))
    if name == "tail":
        return Tail(_path(uri, rest), TailSettings(from_end=settings.from_end))
    if name == "stdin":
        return Stdin()
    if name == "mix":
        raise ConfigError(f"{uri!r} mixes the sources that follow it. Write: mix: SOURCE SOURCE")
    kind = SOURCES[name].load()
    target = uri if "//" in SOURCES[name].written else rest  # brokers and sockets are addressed by their whole URI
    return kind(target, validate(kind.Config, getattr(settings, name), f"source.{name}"))


def open_sources(uris: Sequence[str], settings: SourceSettings = DEFAULTS) -> Source:
    """One source of several SOURCE arguments: paths are read one after another; after `mix:` anything, in turns.

    Raises ConfigError for none or for what cannot be combined, and what `open_source` raises.
    """
    if not uris:
        raise ConfigError("no source is given. Name a file, a directory, `-`, `tail:PATH`, `crawl:URL` or `demo:`.")
    if uris[0] == "mix:":
        return _mixed(uris[1:], settings)
    if len(uris) == 1:
        return open_source(uris[0], settings)
    parts = [(uri, *_split(uri)) for uri in uris]
    for uri, name, _ in parts:
        if name != "files":
            raise ConfigError(
                f"{uri!r} cannot be combined with other sources; only files can. Run it by itself, or put mix: first."
            )
    return Files([_path(uri, rest) for uri, _, rest in parts], FilesSettings(text_field=settings.text_field))


def open_publisher(uri: str, settings: SourceSettings = DEFAULTS) -> Any:
    """The broker at `uri`, to write to: a `sources.brokers.message.Publisher`. Raises ConfigError and Unavailable."""
    scheme = uri.partition("://")[0]
    if scheme not in PUBLISHERS:
        known = ", ".join(SOURCES[name].written for name in PUBLISHERS)
        raise ConfigError(f"{uri!r} cannot be written to. Known: NAME.jsonl.zst, NAME.warc.gz, {known}.")
    kind = load_optional(PUBLISHERS[scheme], SOURCES[scheme].extra, SOURCES[scheme].written)
    return kind(uri, validate(SOURCES[scheme].load().Config, getattr(settings, scheme), f"source.{scheme}"))


def absolute(uri: str) -> str:
    """The SOURCE with its path made absolute, so that a run finds it again from anywhere."""
    if uri == "-":
        return uri
    scheme, colon, rest = uri.partition(":")
    if colon and not Path(uri).exists():
        is_path = scheme in SCHEMES and SOURCES[SCHEMES[scheme]].is_path and rest and "://" not in rest
        return f"{scheme}:{Path(rest).expanduser().absolute()}" if is_path else uri
    return str(Path(uri).expanduser().absolute())


def _mixed(uris: Sequence[str], settings: SourceSettings) -> Source:
    if len(uris) < 2:
        raise ConfigError("mix: needs at least two sources after it. Write: mix: SOURCE SOURCE")
    mix = validate(MixSettings, settings.mix, "source.mix")
    weights = mix.weights or (1.0,) * len(uris)
    return Mix([open_source(uri, settings) for uri in uris], weights, uris, mix.turn_bytes)


def _split(uri: str) -> tuple[str, str]:
    """The name in `SOURCES` and what follows the colon."""
    if uri == "-":
        return "stdin", ""
    match = re.match(r"([a-z][a-z0-9+]*):", uri)
    if match is None or Path(uri).exists():
        return "files", uri
    scheme = match[1]
    if scheme in ("http", "https"):
        raise ConfigError(
            f"{uri!r}: say what it is: crawl:{uri} for a site, warc:{uri} for an archive, sse:{uri} for events."
        )
    if scheme not in SCHEMES:
        near = get_close_matches(scheme, list(SCHEMES), n=1, cutoff=0.5)
        advice = f"Did you mean {SOURCES[SCHEMES[near[0]]].written!r}? " if near else ""
        known = ", ".join(kind.written for kind in SOURCES.values())
        raise ConfigError(f"{uri!r}: there is no source {scheme!r}. {advice}Known: a path, {known}.")
    return SCHEMES[scheme], uri[match.end() :]


def _path(uri: str, path: str) -> str:
    if not path:
        raise ConfigError(f"{uri!r} names no path. Write it as scheme:PATH, or just the path of a file.")
    return str(Path(path).expanduser())
