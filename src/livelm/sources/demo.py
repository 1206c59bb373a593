"""A real crawl that needs no network: the documentation that pydoc serves of this Python's standard library."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from livelm.config import Settings
from livelm.errors import ConfigError, SourceError
from livelm.sources.web.crawl import Crawl
from livelm.sources.web.crawl_settings import CrawlSettings
from livelm.sources.web.fetch import FetchSettings
from livelm.sources.web.filters import FilterSettings
from livelm.sources.web.frontier import FrontierSettings
from livelm.types import Cursor, Document, Json

NAME = "demo"
SITE = Path(__file__).with_name("pydoc_site.py")
CONTACT = "https://docs.python.org/3/library/pydoc.html"
"""The site is our own; whoever looks into its log finds out what it is."""
START_S = 30.0


class DemoSettings(Settings):
    """How much of the site is read."""

    max_pages: int = Field(default=0, ge=0)
    """Pages after which the demo ends; 0: all, several hundred."""


class Demo:
    """Starts pydoc's own HTTP server on loopback, crawls it with `Crawl`, and delivers its pages.

    The server is a process that ends when this one does, however it ends.
    """

    Config: ClassVar[type[Settings]] = DemoSettings
    bounded = True
    replayable = False

    def __init__(self, target: str = "", settings: DemoSettings | None = None) -> None:
        """Nothing is started before `read`. Raises ConfigError for a target: there is only one demo."""
        if target:
            raise ConfigError(f"demo:{target}: the demo takes nothing after the colon. Write demo:.")
        self._settings = settings or DemoSettings()
        self._folder: Path | None = None
        self._crawl: Crawl | None = None
        self._closed = threading.Event()

    def keep(self, folder: Path) -> None:
        """Use this folder for the frontier of the crawl."""
        self._folder = folder

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield the pages. Raises SourceError when the site cannot be served, and what `Crawl.read` raises."""
        if cursor is not None and cursor.source != NAME:
            raise SourceError(f"a cursor of {cursor.source!r} ({dict(cursor.at)}) does not belong to the demo.")
        folder = self._folder or Path(tempfile.mkdtemp(prefix="livelm-demo-"))
        try:
            with _Site(folder) as site:
                self._crawl = crawl = _crawl(site.url, self._settings)
                crawl.keep(folder)
                if self._closed.is_set():
                    return
                inner = None if cursor is None else Cursor("crawl", cursor.at)
                for item, after in crawl.items(inner):
                    parts = urlsplit(item.url)  # without the port, which is another one each time
                    name = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
                    document = Document(text=item.text, id=f"pydoc/{name}", source=NAME, at=item.at)
                    yield document, Cursor(NAME, after.at)
        finally:
            if self._folder is None:
                shutil.rmtree(folder, ignore_errors=True)

    def commit(self, cursor: Cursor) -> None:
        """Everything up to `cursor` is durable elsewhere."""
        if self._crawl is not None:
            self._crawl.commit(Cursor("crawl", cursor.at))

    def observe(self) -> dict[str, Json]:
        """What the crawl has to say."""
        return {} if self._crawl is None else self._crawl.observe()

    def close(self) -> None:
        """End `read` within a second, and the site with it."""
        self._closed.set()
        if self._crawl is not None:
            self._crawl.close()

    def describe(self) -> str:
        """One line for people."""
        return "demo, a crawl of pydoc's site on loopback: ends by itself, cannot be read again (kept in the spool)"


def _crawl(url: str, settings: DemoSettings) -> Crawl:
    # The rules of quality are made for prose on the web; these are manuals, and lines of code end without a full stop.
    filters = FilterSettings(
        min_words_with_letter=0.5,
        max_short_lines=1.0,
        min_punctuated_lines=0.0,
        max_duplicate_lines=1.0,
        max_repetition=1.0,
    )
    crawl = CrawlSettings(
        contact=CONTACT,
        allow=(urlsplit(url).netloc,),
        gap_s=0.0,
        answer_factor=0.0,
        max_pages=settings.max_pages,
        frontier=FrontierSettings(max_query_variants=1000),  # pydoc's topics
        filters=filters,
        fetch=FetchSettings(user_agent="set by the crawl", min_bytes_per_s=0.0),  # a page is written while it is sent
    )
    return Crawl(url, crawl)


class _Site:
    """The process that serves; the port is kept in the folder, because the frontier is full of it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.json"
        try:
            port = json.loads(path.read_text("utf-8"))["port"] if path.exists() else 0
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"{str(path)!r} cannot be used ({error}). Begin the demo in a new folder.") from None
        self._process = subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-s", "-S", "-P", "-u", "-W", "ignore", str(SITE), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.sep,
            env={"PYTHONHASHSEED": "0", "PATH": os.defpath},  # some pages show the environment, or the order of a set
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101  (for the type checker: it was asked for)
        said = self._process.stdout.readline().decode().strip()
        if not said.isdigit():
            self.__exit__()
            raise SourceError(f"pydoc's site cannot be served on port {port} of 127.0.0.1: {said or 'it ended'}.")
        path.write_text(json.dumps({"port": int(said)}), "utf-8")
        self.url = f"http://127.0.0.1:{said}/index.html"

    def __enter__(self) -> "_Site":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
