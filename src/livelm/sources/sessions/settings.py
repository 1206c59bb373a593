"""How sessions are read."""

from typing import Literal

from pydantic import Field

from livelm.config import Settings


class SessionsSettings(Settings):
    """What of the sessions is read, graded and kept out."""

    follow: bool | None = None
    """Go on with appended lines and new files; None: when the target is a folder. Off: one pass, which ends."""
    grade: Literal["assistant", "all"] = "assistant"
    """What is graded and learned: texts and tool calls of the assistant, or every byte."""
    thinking: Literal["omit", "context", "graded"] = "context"
    """Whether the assistant's thoughts are left out, only read, or learned too."""
    redact: bool = True
    """Replace keys, passwords, mail addresses and home folders before anything leaves the source."""
    recall_bytes: int = Field(default=2048, ge=0, le=1 << 20)
    """When a conversation is taken up after another one came between, this much of what was said last is repeated as
    context."""
    settle_s: float = Field(default=3.0, ge=0, le=3600)
    """An answer counts as complete when the file has not grown for so long, if nothing has come after it."""
    poll_s: float = Field(default=1.0, ge=0.01, le=3600)
    """Seconds between two looks at the folder."""
    line_bytes: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    """A longer line is skipped and counted."""
    part_bytes: int = Field(default=1 << 20, ge=64)
    """Of a longer text or tool call the middle is left out."""
    result_bytes: int = Field(default=32 << 10, ge=64)
    """Of a longer tool result the middle is left out."""
    piece_bytes: int = Field(default=64 << 10, ge=64)
    """Documents are delivered in pieces of at most this many bytes."""
    max_files: int = Field(default=100_000, ge=1)
    """Further files of the folder are not read, and counted."""
    max_known_lines: int = Field(default=1_000_000, ge=1)
    """So many lines are remembered to recognise their copies in other files (about 100 bytes each)."""
