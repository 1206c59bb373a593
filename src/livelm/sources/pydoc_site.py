"""The site that pydoc makes of this Python's standard library, served on loopback. Run as a program, not imported.

`python pydoc_site.py PORT` (0: any free one) prints the port and serves until its standard input ends, so it cannot
outlive whoever began it. It needs the standard library only. pydoc imports what it documents, and some modules do
things when they are imported (open a browser, start a game, run tests): those are neither listed nor served.
"""

import os
import pydoc
import re
import sys

_ACTING = ["__main__", "antigravity", "ensurepip", "idlelib", "pip", "this", "tkinter", "turtle", "turtledemo", "venv"]
_TESTS = ["idle_test", "lib2to3", "test", "test_support", "tests"]
LEFT_OUT = frozenset(_ACTING + _TESTS)
"""Names, at any place of a dotted one, of modules that act when imported, draw windows, or are tests."""
ROBOTS = "User-agent: *\nDisallow: /get\nDisallow: /search\nDisallow: /keywords.html\n"
"""Looking things up again and again is for people."""

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}|(?<=handle )[0-9a-f]{6,}")
_LINK = re.compile(r'<a href="([\w.]+)\.html(?:#[^"]*)?">(.*?)</a>')
_PAGE = re.compile(r"/(?:([\w.]+)\.html|topic\?key=[\w.%+=<>!*/-]+)?", re.ASCII)
_OWN = frozenset(("index", "topics"))


def is_served(name: str) -> bool:
    """Whether the page of this module is part of the site."""
    parts = name.split(".")
    return name in _OWN or (parts[0] in sys.stdlib_module_names and not LEFT_OUT.intersection(parts))


def render(path: str, content_type: str) -> str:
    """One page as pydoc writes it, without what differs from run to run and without links that lead nowhere."""
    if path == "/robots.txt":
        return ROBOTS
    page = _PAGE.fullmatch(path)
    if page is None or (page[1] is not None and not is_served(page[1])):
        return f"<!doctype html><title>not here</title><p>There is no page {pydoc.html.escape(path)}.</p>"
    text = pydoc._url_handler("/index.html" if path == "/" else path, content_type)  # type: ignore[attr-defined]
    return _ADDRESS.sub("0x", _LINK.sub(_kept, text))


def _kept(link: "re.Match[str]") -> str:
    return link[0] if is_served(link[1]) else link[2]


def main() -> None:
    """Serve until standard input ends."""
    says = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what modules print when they are imported
    os.dup2(1, 2)
    server = pydoc._start_server(render, "127.0.0.1", int(sys.argv[1]))  # type: ignore[attr-defined]
    says.write(f"{server.port if server.serving else server.error}\n")
    says.flush()
    while os.read(0, 1024):
        pass
    os._exit(0)  # a page may be in the middle of being rendered


if __name__ == "__main__":
    main()
