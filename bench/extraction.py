"""Main text of real pages against what people marked (F1), and the time of each step of the text pipeline.

The annotations are trafilatura's evaluation set: pieces of text that must come out, and pieces that must not. A step's
time is processor time, as it is in a crawl: each page goes through all steps, refused ones stop. Pages without
annotation are timed too.
"""

import argparse
import json
import statistics
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resiliparse.parse.html import HTMLTree

from bench.record import keep
from livelm.sources.web.duplicates import Duplicates, DuplicateSettings
from livelm.sources.web.filters import FilterSettings, TextFilter
from livelm.sources.web.markup import attack, read_markup
from livelm.sources.web.page import Page, PageReader, PageSettings, decode
from livelm.sources.web.urls import parse_url

PAGES = Path(__file__).parents[2] / "shared" / "data" / "pages" / "trafilatura-eval"
HEADERS = {"content-type": "text/html"}
BAR = 0.849
"""resiliparse's main content as it comes, on all 990 annotated pages."""
T = TypeVar("T")


class Clock:
    """Adds up processor time by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.pages: list[float] = []

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        begin = time.process_time()
        result = work()
        self.seconds[name] += time.process_time() - begin
        return result


def score(pages: dict[str, bytes], annotations: dict[str, Any], reader: PageReader) -> dict[str, float]:
    """Precision, recall and F1 over all annotated pieces. A page's opt-out is not asked here: this is about finding."""
    found = missed = wrong = n_pages = 0
    for wanted in annotations.values():
        if wanted["file"] not in pages:
            continue
        n_pages += 1
        text = reader.extract(decode(pages[wanted["file"]])).text
        found += sum(piece in text for piece in wanted["with"])
        missed += sum(piece not in text for piece in wanted["with"])
        wrong += sum(piece in text for piece in wanted["without"])
    precision, recall = found / (found + wrong), found / (found + missed)
    f1 = 2 * precision * recall / (precision + recall)
    return {"f1": f1, "precision": precision, "recall": recall, "pages": n_pages}


def measure(pages: dict[str, bytes], reader: PageReader) -> tuple[Clock, Counter[str]]:
    """Send every page through the whole pipeline once, then once more through the parts of reading alone."""
    clock, drops = Clock(), Counter[str]()
    chosen, duplicates = TextFilter(FilterSettings()), Duplicates(DuplicateSettings())
    for name, body in pages.items():
        begin = time.process_time()
        page = clock("read", lambda body=body, name=name: reader.read(body, HEADERS, f"https://example.org/{name}"))
        clock("resolve links", lambda page=page: [parse_url(link, page.base) for link in page.links])
        drops[_judge(page, clock, chosen, duplicates) or "kept"] += 1
        clock.pages.append(time.process_time() - begin)
    for body in pages.values():
        text = clock("  decode", lambda body=body: decode(body))
        clock("  guard", lambda text=text: attack(text))
        clock("  links and meta", lambda text=text: read_markup(text, 2000))
        clock("  parse", lambda text=text: HTMLTree.parse(text))
        clock("  parse, depth, main text", lambda text=text: reader.extract(text))
    return clock, drops


def _judge(page: Page, clock: Clock, chosen: TextFilter, duplicates: Duplicates) -> str | None:
    if page.reason:
        return page.reason
    return clock("filter", lambda: chosen.reason(page.text)) or clock(
        "duplicates", lambda: duplicates.reason(page.text)
    )


def main() -> None:
    """Parse the command line, score and time, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="?", default=PAGES, help="folder of eval-pages.zip, evaldata.json")
    parser.add_argument("--extractor", choices=["resiliparse", "trafilatura"], default="resiliparse")
    parser.add_argument("--passes", type=int, default=3, help="the fastest counts")
    parser.add_argument("--keep", action="store_true", help="keep a record")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.pages / "eval-pages.zip") as files:
        pages = {name: files.read(name) for name in files.namelist() if name.endswith(".html")}
    annotations = json.loads((arguments.pages / "evaldata.json").read_text("utf-8"))
    reader = PageReader(PageSettings(extractor=arguments.extractor), "livelm")
    found = score(pages, annotations, reader)
    clock, drops = min(
        (measure(pages, reader) for _ in range(arguments.passes)), key=lambda result: sum(result[0].pages)
    )
    ms = {name: 1000 * seconds / len(pages) for name, seconds in clock.seconds.items()}
    each = sorted(1000 * seconds for seconds in clock.pages)
    figures = {
        **{name: round(value, 4) for name, value in found.items()},
        "bar_f1": BAR,
        "mean_page_bytes": round(statistics.mean(map(len, pages.values()))),
        "ms_per_page": round(statistics.mean(each), 3),
        "ms_p99": round(each[int(0.99 * len(each))], 3),
        "ms_max": round(each[-1], 3),
        **{f"ms {name.strip()}": round(value, 3) for name, value in ms.items()},
    }
    print("\n".join(f"{name:30} {value}" for name, value in figures.items()))
    print(f"dropped: {dict(drops.most_common())}")
    if arguments.keep:
        keep(
            f"extraction-{arguments.extractor}" if arguments.extractor != "resiliparse" else "extraction",
            "How well and how fast is the text of real pages found?",
            figures,
            [{"reason": reason, "pages": n} for reason, n in drops.most_common()],
        )


if __name__ == "__main__":
    main()
