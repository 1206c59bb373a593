"""What the tags of a page say, read in one pass before any parsing: links, meta, base, and whether they are an attack.

A parser would give the same links, but must not see some pages at all: this pass comes before it. The patterns follow
the tokenizer of the HTML standard (13.2.5); all their loops are possessive, so their time is linear in the page.
"""

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)*+"""
_SCRIPT = r"[sS][cC][rR][iI][pP][tT]\b[^>]*+(?:>(?:[^<]++|<(?!/[sS][cC][rR][iI][pP][tT]))*+)?+"
# Letters in both cases instead of a flag: twice as fast.
_SCAN = re.compile(
    r"<(?:!--(?:[^-]++|-(?!->))*+"
    rf"|{_SCRIPT}"
    r"|((?:[aA]|[bB][aA][sS][eE]|[mM][eE][tT][aA]|[hH][tT][mM][lL])[\s/]" + _ATTRIBUTES + "))"
)
_ATTRIBUTE = re.compile(
    r"""[\s/"']([^\s/>=]++)\s*+(?:=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"'][^\s>]*+)))?+"""
)  # 1: name, 2 to 4: value
_HREF = re.compile(r"""[\s/"'][hH][rR][eE][fF]\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"'][^\s>]*+))""")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_BREAKS = str.maketrans("", "", "\t\n\r")

_NO_PAGE = ("#", "javascript:", "mailto:", "tel:", "data:", "about:", "blob:", "whatsapp:", "sms:", "ftp:", "file:")

_TAG = re.compile(r"<[a-zA-Z]" + _ATTRIBUTES)
_FORMATTING_NAMES = (
    r"(?:[bB][iI][gG]|[cC][oO][dD][eE]|[eE][mM]|[fF][oO][nN][tT]|[nN][oO][bB][rR]|[sS][mM][aA][lL][lL]"
    r"|[sS][tT][rR][iI][kK][eE]|[sS][tT][rR][oO][nN][gG]|[tT][tT]|[bBiIsSuU])"
)
_FORMATTING = re.compile(rf"<{_FORMATTING_NAMES}[\s/]")
_FORMATTING_OR_NOT = re.compile(
    r"<(?:!--(?:[^-]++|-(?!->))*+"
    rf"|{_SCRIPT}"
    rf"|(/?{_FORMATTING_NAMES})(?=[\s/>])|[a-zA-Z]" + _ATTRIBUTES + ")"
)
MAX_REOPENED = 2_000_000
"""Unclosed formatting elements times tags. A parser opens the former again in each paragraph: 2 million make at most
700,000 nodes (550 MB, 0.5 s); 781 real pages have less than 410,000 counting even those that are closed."""
MAX_ATTRIBUTES = 10_000
"""In one tag. Parsers compare each with all before it: 20,000 take 0.7 s, 200,000 over a minute."""
_LONG = 5 * MAX_ATTRIBUTES
_LOOKS = 64
"""At so many `>` of a stretch of the page, before all its tags are measured."""


@dataclass(slots=True)
class Markup:
    """What was found, in page order."""

    links: list[str] = field(default_factory=list)
    """Targets of `<a href>` as written, entities resolved, each once; without those that name no page or say
    `rel=nofollow`."""
    meta: list[tuple[str, str]] = field(default_factory=list)
    """(name, content)."""
    base: str | None = None
    """`<base href>`, as written."""
    lang: str | None = None
    """`<html lang>`, lower case."""


def read_markup(page: str, max_links: int) -> Markup:
    """Read the tags outside scripts and comments; at most `max_links` links."""
    found = Markup()
    links: dict[str, None] = {}
    for tag in _SCAN.findall(page):
        if not tag:
            continue
        if tag[0] in "aA":
            if len(links) < max_links and (link := _link(tag)) is not None:
                links[link] = None
            continue
        values = _attributes(tag)
        match tag[0]:
            case "m" | "M" if "name" in values:
                found.meta.append((values["name"].strip().lower(), values.get("content", "")))
            case "b" | "B" if found.base is None:
                found.base = values.get("href")
            case "h" | "H" if found.lang is None:
                found.lang = values.get("lang", values.get("xml:lang", "")).strip().lower() or None
    found.links = list(links)
    return found


def attack(page: str) -> str | None:
    """Why parsing this page would take all memory or time: `formatting_bomb`, `attribute_bomb`; None for sane pages.

    Few bytes make many nodes: 18 KB of `<b id=1><b id=2>…` and paragraphs grew to 1,000,000 nodes and 800 MB.
    """
    n_tags = page.count("<")
    if n_tags * n_tags > MAX_REOPENED and _reopened(page, n_tags) > MAX_REOPENED:
        return "formatting_bomb"
    return "attribute_bomb" if len(page) >= _LONG and _may_hide(page) and _has_long_tag(page) else None


def attack_reference(page: str) -> str | None:
    """What `attack` says, in five times the time: every tag is measured."""
    n_tags = page.count("<")
    if n_tags * n_tags > MAX_REOPENED and _reopened(page, n_tags) > MAX_REOPENED:
        return "formatting_bomb"
    return "attribute_bomb" if _has_long_tag(page) else None


def _has_long_tag(page: str) -> bool:
    for match in _TAG.finditer(page):
        if match.end() - match.start() >= _LONG and _n_attributes(match[0]) > MAX_ATTRIBUTES:
            return True
    return False


def _may_hide(page: str) -> bool:
    """Whether a tag of `_LONG` characters may be in the page; looks at few of them.

    Such a tag covers a whole stretch of half that length, and all its `>` but the last stand in quoted values. One
    stands in none if the last quote before it, of either kind, has no `=` before it, nor blanks that may follow one.
    """
    quotes = [(quote, -1) for quote in "\"'"]
    seen = 0
    for start in range(0, len(page) - _LONG // 2 + 1, _LONG // 2):
        place = start
        for _ in range(_LOOKS):
            place = page.find(">", place, start + _LONG // 2)
            if place < 0:
                return True
            quotes = [(quote, max(last, page.rfind(quote, seen, place))) for quote, last in quotes]
            seen = place
            if not any(last > 0 and (page[last - 1] == "=" or page[last - 1].isspace()) for _, last in quotes):
                break
            place += 1
        else:
            return True
    return False


def _link(tag: str) -> str | None:
    match = _HREF.search(tag)
    if match is None:
        return None
    link = match[1] or match[2] or match[3] or ""
    link = (_ENTITY.sub(_resolve, link) if "&" in link else link).strip()
    if not link or link[0] == "#" or link.lower().startswith(_NO_PAGE):
        return None
    if "follow" in tag.lower() and "nofollow" in _attributes(tag).get("rel", "").lower():  # in a class it means nothing
        return None
    return link.translate(_BREAKS) if "\n" in link or "\t" in link or "\r" in link else link


def _attributes(tag: str) -> dict[str, str]:
    """By lower-case name; the first of a name counts."""
    values: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(tag):
        value = double or single or bare
        values.setdefault(name.lower(), _ENTITY.sub(_resolve, value) if "&" in value else value)
    return values


def _resolve(match: re.Match[str]) -> str:
    return html.unescape(match[0])


def _reopened(page: str, n_tags: int) -> int:
    """At most how many elements a parser opens again: cheaply from above first, then by counting what is closed."""
    if n_tags * (n_tags - page.count("</")) <= MAX_REOPENED:
        return 0
    # Of equal ones without attributes the standard keeps three; there are 13 names.
    if (len(_FORMATTING.findall(page)) + 3 * 13) * n_tags <= MAX_REOPENED:
        return 0
    return _most_open(_FORMATTING_OR_NOT.findall(page)) * n_tags


def _most_open(names: Iterable[str]) -> int:
    """The largest number of formatting elements open at once; a closing tag without its opening one does nothing."""
    is_open: dict[str, int] = {}
    total = most = 0
    for raw in names:
        name = raw.lower().removeprefix("/")
        if not name:
            continue
        if raw[0] != "/":
            is_open[name] = is_open.get(name, 0) + 1
            total += 1
            most = max(most, total)
        elif is_open.get(name):
            is_open[name] -= 1
            total -= 1
    return most


def _n_attributes(tag: str) -> int:
    return sum(1 for _ in _ATTRIBUTE.finditer(tag))
