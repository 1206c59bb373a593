"""What a watch is asked for: how documents are cut, when one is an alarm, and how much is remembered."""

import re
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from livelm.config import Settings
from livelm.memory import CountMemorySettings

MAX_RATE = 1.0


class WatchSettings(Settings):
    """Everything that decides what a watch finds; where it says so does not belong here."""

    by: Literal["auto", "line", "document"] = "auto"
    """What a document is; `auto`: a line of files, `tail:` and standard input, else what the source calls one."""
    rate: float = Field(default=0.001, gt=0, le=MAX_RATE)
    """The share of documents that may be alarms; 1: every document is said, with its score."""
    per_day: float | None = Field(default=None, gt=0)
    """Alarms per day of watching, instead of `rate`."""
    group_by: str = ""
    """A regular expression for the key of a line; lines with the same key are one document."""
    groups: int = Field(default=10_000, ge=1, le=1_000_000)
    """Groups that are open at once at most; the one touched longest ago is closed."""
    idle: int = Field(default=100_000, ge=1)
    """A group is also closed when so many lines came since it was touched."""
    burn_in: int = Field(default=200, ge=0)
    """Documents (lines, or closed groups) that only teach what is usual."""
    half_life: float = Field(default=200_000, ge=100)
    """Documents after which a sighting of a word or line counts half."""
    recent: float = Field(default=100, ge=10)
    """The same for the second, short memory of words: what is rare is rare for long and was not there just now."""
    items: int = Field(default=1 << 18, ge=1024, le=1 << 24)
    """Words, or kinds of lines and pairs of them, that are counted at most; the rarest are forgotten first."""
    window_bytes: int = Field(default=2048, ge=256, le=16384)
    """Bytes of a window in which drift is looked for."""
    memory: CountMemorySettings = CountMemorySettings(budget_mib=96)
    """The count memory that predicts the bytes."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not self.group_by:
            return self
        try:
            pattern = re.compile(self.group_by.encode())
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"group_by={self.group_by!r} is not a regular expression: {error}") from None
        if pattern.groups > 1:
            raise ValueError(f"group_by={self.group_by!r} has {pattern.groups} groups; mark the key with one at most")
        if pattern.fullmatch(b""):
            raise ValueError(
                f"group_by={self.group_by!r} also fits no text at all; a key needs a byte, such as id=\\d+"
            )
        if self.by == "document":
            raise ValueError("group_by puts lines together, so it does not go with by='document'")
        return self

    @cached_property
    def key(self) -> "re.Pattern[bytes] | None":
        """The compiled `group_by`."""
        return re.compile(self.group_by.encode()) if self.group_by else None

    @property
    def says_all(self) -> bool:
        """Whether every document is said."""
        return self.per_day is None and self.rate >= MAX_RATE
