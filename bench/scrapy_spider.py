"""A link-following Scrapy spider as people write them, for `bench.crawl --scrapy`: run by a Python that has Scrapy.

It reads the start addresses from standard input, one a line, obeys robots.txt, waits nowhere and follows every link
on the hosts of its start addresses. Its text is all that `::text` selects: no main text, no filters, no duplicates,
no tokens. At the end it writes one line of JSON: pages and characters read, and of those that are timed the number, the
seconds and the seconds of CPU.
"""

import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import scrapy  # pyright: ignore[reportMissingImports]  (no dependency of livelm)
from scrapy.crawler import CrawlerProcess  # pyright: ignore[reportMissingImports]
from scrapy.exceptions import CloseSpider  # pyright: ignore[reportMissingImports]
from scrapy.linkextractors import LinkExtractor  # pyright: ignore[reportMissingImports]


class LinkSpider(scrapy.Spider):
    """Follows links until `n_pages` were read; the first fifth is not timed."""

    name = "links"
    custom_settings = {  # noqa: RUF012  (as Scrapy has it)
        "ROBOTSTXT_OBEY": True,
        "DOWNLOAD_DELAY": 0,
        "CONCURRENT_REQUESTS": 64,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 64,
        "COOKIES_ENABLED": False,
        "RETRY_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "LOG_LEVEL": "ERROR",
    }

    def __init__(self, seeds: list[str], n_pages: int) -> None:
        super().__init__()
        self.seeds, self.n_pages = seeds, n_pages
        self.allowed_domains = sorted({urlsplit(seed).hostname or "" for seed in seeds})
        self.links = LinkExtractor()
        self.n = self.n_characters = self.first = 0
        self.begin = self.end = self.begin_cpu = 0.0

    async def start(self) -> AsyncIterator[Any]:
        """Every seed."""
        for seed in self.seeds:
            yield scrapy.Request(seed)

    def parse(self, response: Any) -> Iterator[Any]:
        """One page: its text, and a request for each link."""
        self.n_characters += len("".join(response.css("::text").getall()))
        self.n += 1
        self.end = time.perf_counter()
        if not self.first and self.n >= self.n_pages // 5:
            self.first, self.begin, self.begin_cpu = self.n, self.end, time.process_time()
        if self.n >= self.n_pages:
            raise CloseSpider("enough")
        for link in self.links.extract_links(response):
            yield response.follow(link)


def main() -> None:
    """Run the spider for as many pages as the first argument says."""
    process = CrawlerProcess()
    crawler = process.create_crawler(LinkSpider)
    counted: dict[str, float] = {}

    def count(spider: LinkSpider) -> None:
        # at `enough`: what is in flight may still come in, but is not counted
        counted.update(n=spider.n, n_characters=spider.n_characters)
        counted.update(timed_pages=spider.n - spider.first, timed_s=spider.end - spider.begin)
        counted.update(timed_cpu_s=time.process_time() - spider.begin_cpu)

    crawler.signals.connect(count, scrapy.signals.spider_closed)
    process.crawl(crawler, seeds=sys.stdin.read().split(), n_pages=int(sys.argv[1]))
    process.start()
    sys.stdout.write(json.dumps(counted) + "\n")


if __name__ == "__main__":
    main()
