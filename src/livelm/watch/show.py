"""Surprises for people to read, and for programs."""

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from livelm.telemetry.frame import amount, printable

MARKED = "bold red"
FAINT = "dim"
BRACKETS = {True: ("\u2039", "\u203a"), False: ("<<", ">>")}
"""What marks a span where there is no colour: in Unicode, or without."""
SIGNALS = {
    "bits_per_byte": "bits per byte",
    "negentropy": "K (how uneven its bytes are)",
    "complexity": "C (how varied its phrases are)",
    "symbiosis": "S (what its predictions are worth)",
}


class TextView:
    """Each surprise in a few lines, what cost most bits marked; drift in one."""

    def __init__(self, console: Console | None = None) -> None:
        """`console`: where to write; by default standard output, with colours if it is a terminal."""
        self._console = console or Console()
        self._unicode = self._console.encoding.lower().startswith("utf")

    def take(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        match record["kind"]:
            case "surprise":
                self._say(self._surprise(record))
            case "drift":
                self._say(self._drift(record))
            case "watched":
                self._say(self._summary(record))

    def _surprise(self, r: Mapping[str, Any]) -> Text:
        head = Text.assemble((f"{r['score']:.1f} bits", "bold"), "  ", self._name(r))
        limit = "" if r["threshold"] is None else f", alarm from {r['threshold']:.1f}"
        excess = f"{r['bits_per_byte']:.2f} bits per byte ({r['excess']:+.2f} against expected){limit}"
        head.append(f"  {excess}", FAINT)
        if "group" not in r:
            head.append("\n  ").append_text(self._marked(r["text"], r["spans"]))
            reasons = [f"{word} {bits:.1f}" for word, bits in r["rare"]]
            if reasons:
                head.append(f"\n  rare, in bits: {self._safe('  '.join(reasons))}", FAINT)
        for line in r.get("lines", ()):
            head.append(f"\n  {line['line']:>4}: ", FAINT).append_text(self._marked(line["text"], line["spans"]))
        for text in r["missing"] if "group" in r else [" ".join(r["missing"])]:
            head.append(f"\n  missing: {self._safe(text)}" if text else "", FAINT)
        return head

    def _name(self, r: Mapping[str, Any]) -> str:
        if "group" in r:
            how = "closed" if r["closed"] else "still open"
            return self._safe(f"{r['group']} ({r['n_lines']} lines, {how})")
        return self._safe(r["id"]) + (
            f":{r['line']}" if "line" in r else "" if r["part"] == 1 else f" part {r['part']}"
        )

    def _drift(self, r: Mapping[str, Any]) -> Text:
        what = f"{SIGNALS[r['signal']]} went {r['direction']} from {r['before']:.3f} to {r['now']:.3f}"
        return Text(
            f"drift: {what}, {r['n_windows']} windows ago, noticed at line or document {r['document']:,}", "yellow"
        )

    def _summary(self, r: Mapping[str, Any]) -> Text:
        said = [f"{amount(r['documents'])} documents, {amount(r['n_bytes'], 'B')}", f"{r['surprises']} surprises"]
        said += [f"{r['held_back']} more held back"] if r["held_back"] else []
        said += [f"{r['open_groups']} groups still open"] if r["open_groups"] else []
        said.append(f"{r['bits_per_byte']:.2f} bits per byte of late")
        return Text(f"{r['reason']}: {', '.join(said)}", FAINT)

    def _marked(self, text: str, spans: list[list[float]]) -> Text:
        """The text with its spans marked, and nothing in it that a terminal would obey."""
        left, right = ("", "") if self._console.color_system else BRACKETS[self._unicode]
        out, at = Text(), 0
        for start, stop, _ in spans:
            out.append(self._safe(text[at : int(start)]))
            out.append(left + self._safe(text[int(start) : int(stop)]) + right, MARKED)
            at = int(stop)
        return out.append(self._safe(text[at:]))

    def _safe(self, text: str) -> str:
        return printable(text, ascii_only=not self._unicode)

    def _say(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)
        self._console.file.flush()


class JsonView:
    """Every record as one line of JSON."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def take(self, record: Mapping[str, Any]) -> None:
        """Write one record, at once."""
        self._out.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        self._out.flush()
