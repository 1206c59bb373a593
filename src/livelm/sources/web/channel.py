"""What a worker process and the crawl say to each other.

Standard input of the worker is a socket to the crawl: orders come as lines of JSON, documents go back as frames. The
socket holds little, so a worker waits when the crawl reads no more, and its end tells each that the other is gone.
Standard error carries lines of JSON (reports and log records) and whatever a dying process writes.
"""

import json
import logging
import struct
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

FRAME = struct.Struct(">QI")
"""Number of the document in the outbox of its shard, and how many bytes follow."""
MARK = "livelm"
"""The key that distinguishes our lines on standard error from a traceback."""
LOGGER = "livelm.sources.web"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The first line: what a worker is to do."""

    folder: str
    shard: int
    n_shards: int
    seeds: list[str]
    settings: dict[str, Any]
    after: int
    """The last document of this shard that the crawl has; those after it are sent again."""
    quota: int | None
    """How many documents are still wanted; None: all."""


@dataclass(slots=True, kw_only=True)
class Report:
    """How a worker fares; counts are since the process began."""

    idle: bool = False
    """Nothing waits, nothing is in flight, nothing is unsent."""
    activity: int = 0
    """Grows whenever something happened."""
    round: int = 0
    """The last question that this answers."""
    counts: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    """The message of the error that ended the worker."""
    failure_kind: str = ""
    """The name of its class in `livelm.errors`."""


def write_order(order: Order) -> bytes:
    """The line that `read_order` takes."""
    return json.dumps(asdict(order)).encode() + b"\n"


def read_order(line: bytes) -> Order:
    """The order that begins a worker."""
    return Order(**json.loads(line))


def write_report(report: Report) -> None:
    """Put a report on standard error, as one write so that lines stay whole."""
    sys.stderr.write(json.dumps({MARK: "report", **asdict(report)}) + "\n")
    sys.stderr.flush()


def read_line(line: bytes) -> Report | logging.LogRecord | str:
    """What a line of a worker's standard error is: a report, a log record, or text that nobody meant to send."""
    try:
        values = json.loads(line) if line.startswith(b'{"' + MARK.encode()) else {}
    except ValueError:
        values = {}
    kind = values.pop(MARK, None)
    if kind == "report":
        return Report(**values)
    if kind == "log":
        return logging.LogRecord(values["name"], values["level"], "", 0, values["text"], None, None)
    return line.decode("utf-8", "replace").rstrip()


class LogToCrawl(logging.Handler):
    """Sends what a worker logs to the crawl."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        line = {MARK: "log", "level": record.levelno, "name": record.name, "text": self.format(record)}
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
