"""Who does not want to be learned from: what pages and answers say about indexing, following and training."""

import re
from collections.abc import Iterable, Mapping

AI_AGENTS = frozenset({
    "ai2bot", "ai2bot-dolma", "amazonbot", "anthropic-ai", "applebot-extended", "bytespider", "ccbot", "claude-web",
    "claudebot", "cohere-ai", "cohere-training-data-crawler", "deepseekbot", "diffbot", "facebookbot",
    "google-extended", "googleother", "gptbot", "img2dataset", "laion-huggingface-processor", "laiondownloader",
    "meta-externalagent", "omgili", "omgilibot", "pangubot", "timpibot", "webzio-extended",
})  # fmt: skip
"""Product tokens (lower case) of crawlers that gather text for training: a site that turns them away means us too."""

_REASONS = {"noindex": "noindex", "none": "noindex", "noai": "noai", "noarchive": "noarchive"}
"""Directives that forbid to keep the text. `noimageai` is about pictures, which are never taken."""
_NOT_AGENTS = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TRAINING = re.compile(r"\b(?:ai-train|train-ai)\s*=\s*(?:no?\b|\?0)", re.IGNORECASE)


def product_token(agent: str) -> str:
    """The name by which robots rules call us, lower case.

    >>> product_token("LiveLM/0.1 (+https://example.org/bot)")
    'livelm'
    """
    return agent.partition("/")[0].strip().lower()


def refuses_training(preference: str) -> bool:
    """Whether a Content-Signal (`ai-train=no`) or Content-Usage (`train-ai=n`) value says no.

    Norms: contentsignals.org; IETF draft-ietf-aipref-attach.
    """
    return _TRAINING.search(preference) is not None


def opt_out(
    headers: Mapping[str, str], meta: Iterable[tuple[str, str]], agent: str, *, honour_ai: bool = True
) -> str | None:
    """Why the text of a page must not be learned from; None when nobody objects.

    `headers` have lower-case names; `meta` are (name, content) pairs of the page. Read: X-Robots-Tag and
    `<meta name=robots>` (or our name, or with `honour_ai` the name of a known training crawler), the TDM reservation
    protocol (W3C community report, 10 May 2024) and Content-Usage. The reasons are `noindex`, `noai`, `noarchive`,
    `tdm_reservation` and `content_usage`.
    """
    pairs = list(meta)
    for directive in _directives(headers, pairs, agent, honour_ai=honour_ai):
        if directive in _REASONS:
            return _REASONS[directive]
    reservations = [value for name, value in pairs if name.lower() == "tdm-reservation"]
    if any(value.strip() == "1" for value in [*reservations, headers.get("tdm-reservation", "")]):
        return "tdm_reservation"
    return "content_usage" if refuses_training(headers.get("content-usage", "")) else None


def nofollow(
    headers: Mapping[str, str], meta: Iterable[tuple[str, str]], agent: str, *, honour_ai: bool = True
) -> bool:
    """Whether none of the page's links may be followed (`nofollow` or `none`)."""
    return not {"nofollow", "none"}.isdisjoint(_directives(headers, meta, agent, honour_ai=honour_ai))


def _directives(
    headers: Mapping[str, str], meta: Iterable[tuple[str, str]], agent: str, *, honour_ai: bool
) -> list[str]:
    """All robots directives that are addressed to us, lower case."""
    names = {"robots", product_token(agent)} | (AI_AGENTS if honour_ai else frozenset())
    found = _header_directives(headers.get("x-robots-tag", ""), names)
    for name, content in meta:
        if name.strip().lower() in names:
            found += _words(content)
    return found


def _header_directives(value: str, names: set[str]) -> list[str]:
    """Those of an X-Robots-Tag; `name:` addresses what follows it to one crawler, until the next name."""
    found: list[str] = []
    ours = True
    for part in value.lower().split(","):
        name, colon, rest = part.strip().partition(":")
        if colon and name.strip() not in _NOT_AGENTS:
            ours = name.strip() in names
            part = rest
        if ours:
            found += _words(part)
    return found


def _words(value: str) -> list[str]:
    return re.split(r"[,\s]+", value.strip().lower())
