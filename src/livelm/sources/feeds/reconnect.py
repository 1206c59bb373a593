"""When to connect again: exponential back-off with full jitter, and what the server asks for."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from random import Random

LONGEST_ASKED_S = 86400.0
"""A server may ask for at most a day."""
PASSING = frozenset({408, 425, 429})
"""The 4xx statuses that pass by waiting."""


class Broken(Exception):
    """A connection that could not be made or ended."""

    def __init__(self, reason: str, *, lasting: bool = False, after_s: float = 0.0, stuck: bool = False) -> None:
        """`lasting`: trying again soon will not help. `after_s`: the server asks to wait at least so long.

        `stuck`: continuing from the same place will end the same way.
        """
        super().__init__(reason)
        self.lasting, self.after_s, self.stuck = lasting, after_s, stuck


class Backoff:
    """Waits that double from `first_s` to `longest_s` at most; each is drawn between zero and that (full jitter).

    Full jitter keeps many clients of a server that restarts from coming back together
    (aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
    """

    def __init__(self, first_s: float, longest_s: float, draw: Callable[[], float] | None = None) -> None:
        self.n_failures = 0
        """Connections in a row that brought nothing."""
        self.asked_s = 0.0
        """The least wait between connections that the server set (the `retry:` field of server-sent events)."""
        self._first_s, self._longest_s = first_s, longest_s
        self._draw = draw or Random().random  # noqa: S311 (spreads load, guards nothing)

    def succeeded(self) -> None:
        """Something new came: the next wait is short again."""
        self.n_failures = 0

    def next_s(self, after_s: float = 0.0) -> float:
        """Seconds to wait now, at least `after_s`; counts as a failure until `succeeded`."""
        bound = min(self._longest_s, self._first_s * 2.0 ** min(self.n_failures, 60))
        self.n_failures += 1
        asked = min(max(after_s, self.asked_s), LONGEST_ASKED_S)
        return max(asked, self._draw() * bound)


def refusal(status: int, reason: str, headers: Mapping[str, str], now: datetime | None = None) -> Broken:
    """What an HTTP status that brings no events means: whether it lasts, and how long to wait (`Retry-After`)."""
    lasting = status < 500 and status not in PASSING
    return Broken(
        f"the server answered {status} {reason}".rstrip(), lasting=lasting, after_s=retry_after_s(headers, now)
    )


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """Seconds that a `Retry-After` header asks for, as seconds or as a date (RFC 9110, 10.2.3); 0 when there is none.

    >>> retry_after_s({"Retry-After": "120"})
    120.0
    """
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST_ASKED_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if at.tzinfo is None:  # "-0000" means UTC without saying where
        at = at.replace(tzinfo=UTC)
    return min(max(0.0, (at - (now or datetime.now(UTC))).total_seconds()), LONGEST_ASKED_S)


def user_agent(contact: str) -> str:
    """The product, its version and whom to ask: "livelm/0.1.0 (+mailto:me@example.org)"."""
    product = f"livelm/{version('livelm')}"
    return f"{product} (+{contact})" if contact else product
