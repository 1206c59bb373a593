"""What robots.txt allows us (RFC 9309), read kindly: in doubt the answer is no."""

import re
from dataclasses import dataclass, field

from protego import Protego

from livelm.sources.web.optout import AI_AGENTS, product_token, refuses_training

MAX_BYTES = 500 << 10
"""RFC 9309, 2.5: at least 500 KiB must be parsed; what comes after is ignored."""

_AGENT = re.compile(r"user[- ]?agent\s*[:\s]\s*(.*)", re.IGNORECASE)
_RULE = re.compile(r"(?:allow|diss?all?[ao]w|disalow|diasllow|crawl[- ]delay)\s*[:\s]", re.IGNORECASE)
_SITEMAP = re.compile(r"site-?maps?\s*[:\s]\s*(\S+)", re.IGNORECASE)
_PREFERENCE = re.compile(r"content-(?:signal|usage)\s*:\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rules:
    """What one origin allows one crawler."""

    crawl_delay: float | None = None
    """Seconds between two requests that the origin asks for."""
    sitemaps: tuple[str, ...] = ()
    later: bool = False
    """Whether these are no rules but a failure to get them: everything is refused, and they must be asked for again
    soon, where true rules may be kept for 24 hours."""
    _refusals: tuple[tuple[str, Protego], ...] = field(default=(), repr=False)
    """(Reason, rules of one group); the first that disallows an address gives the reason."""

    def refuses(self, url: str) -> str | None:
        """Why `url` (of this origin) must not be fetched: `robots`, `robots_ai` or `content_signal`; None: it may."""
        for reason, group in self._refusals:
            if not group.can_fetch(url, "us"):
                return reason
        return None

    def allowed(self, url: str) -> bool:
        """Whether `url` may be fetched."""
        return self.refuses(url) is None


_NOTHING = Protego.parse("User-agent: *\nDisallow: /")
ALLOW_ALL = Rules()
DISALLOW_ALL = Rules(_refusals=(("robots", _NOTHING),))
UNREACHABLE = Rules(later=True, _refusals=(("robots_unreachable", _NOTHING),))


def rules_for(status: int | None, body: bytes, agent: str, *, honour_ai_groups: bool = True) -> Rules:
    """The rules that follow from the answer to a request for robots.txt, redirects already followed.

    `status` None: there was no answer. RFC 9309, 2.3.1: a success is parsed, 4xx allows all, 5xx and silence disallow
    all. Kinder than that: 401 and 403 disallow, 429 is silence. A redirect left over (too many hops) counts as 404.
    """
    if status is None or status == 429 or status >= 500 or status < 200:
        return UNREACHABLE
    if status in (401, 403):
        return DISALLOW_ALL
    if status >= 300:
        return ALLOW_ALL
    return parse_robots(body, agent, honour_ai_groups=honour_ai_groups)


def parse_robots(body: bytes, agent: str, *, honour_ai_groups: bool = True) -> Rules:
    """Rules for `agent` (its product token counts); never raises, whatever the bytes are.

    A group that names us decides alone. Else the group `*` counts and, with `honour_ai_groups`, also each group that
    names a known training crawler: what one of them may not fetch, we do not fetch.
    """
    groups, sitemaps = _groups(_decode(body))
    ours = groups.get(product_token(agent))
    rules = ours if ours is not None else groups.get("*", [])
    # Group names are matched here, as whole tokens; Protego matches addresses. It would take "live" for "livelm".
    own = Protego.parse("\n".join(["User-agent: *", *(line for line in rules if _RULE.match(line))]))
    refusals = [("robots", own)]
    if (preferences := _preferences(rules)) is not None:
        refusals.append(("content_signal", preferences))
    if honour_ai_groups and ours is None:
        others = {"\n".join(groups[name]) for name in AI_AGENTS & groups.keys()}  # most sites repeat one group
        refusals += [("robots_ai", Protego.parse(f"User-agent: *\n{text}")) for text in sorted(others)]
    return Rules(own.crawl_delay("us"), tuple(sitemaps), _refusals=tuple(refusals))


def _decode(body: bytes) -> str:
    if len(body) > MAX_BYTES:
        body = body[:MAX_BYTES].rpartition(b"\n")[0]  # half a rule is another rule
    return body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def _groups(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """Rule lines by lower-case agent (groups of the same agent merged), and the sitemaps."""
    groups: dict[str, list[str]] = {}
    sitemaps: list[str] = []
    current: list[list[str]] = []
    in_rules = False
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if match := _AGENT.match(line):
            if in_rules:
                current, in_rules = [], False
            current += [groups.setdefault(name, []) for name in _agent_names(match[1])]
        elif _RULE.match(line) or _PREFERENCE.match(line):
            in_rules = True
            for group in current:
                group.append(line)
        elif match := _SITEMAP.match(line):  # belongs to no group and ends none
            sitemaps.append(match[1])
    return groups, sitemaps


def _agent_names(value: str) -> set[str]:
    """The names a User-agent line may mean: "GPTBot/1.0", "GPTBot*" and "GPTBot (all)" mean gptbot."""
    if value.strip() == "*":
        return {"*"}
    name = value.partition("/")[0].replace("*", "").strip().lower()
    return {name, name.partition(" ")[0]} - {""}


def _preferences(rules: list[str]) -> Protego | None:
    """Content-Signal and Content-Usage lines as rules on paths: `Content-Usage: /blog train-ai=n`; None without any."""
    lines: list[str] = []
    for line in rules:
        if match := _PREFERENCE.match(line):
            path = match[1].split()[0] if match[1].startswith("/") else "/"
            if re.search(r"ai-train|train-ai", match[1], re.IGNORECASE):
                lines.append(f"{'Disallow' if refuses_training(match[1]) else 'Allow'}: {path}")
    return Protego.parse("\n".join(["User-agent: *", *lines])) if lines else None
