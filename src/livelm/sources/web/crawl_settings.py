"""What a crawl is told: who asks, how kindly, how far, and what text is wanted."""

import re
from importlib.metadata import version
from typing import Literal

from pydantic import Field, field_validator

from livelm.config import Settings
from livelm.sources.web.address import AddressSettings
from livelm.sources.web.duplicates import DuplicateSettings
from livelm.sources.web.fetch import FetchSettings
from livelm.sources.web.filters import FilterSettings
from livelm.sources.web.frontier import FrontierSettings
from livelm.sources.web.page import PageSettings

_CONTACT = re.compile(r"https?://[^\s()]+\.[^\s()]+|[^\s()@]+@[^\s()@]+\.[^\s()@]+")


class CrawlSettings(Settings):
    """How a site, or the web from some sites on, is crawled. The defaults are those of a polite guest."""

    contact: str
    """A web address or a mail address where the operator of a site reaches you; sent with every request. Obligatory."""
    product: str = Field(default="livelm", pattern=r"^[A-Za-z_-]{1,40}$")
    """The name that robots.txt knows the crawler by; letters, `_` and `-` only (RFC 9309, section 2.2.1)."""
    scope: Literal["site", "links"] = "site"
    """`site` stays on the registrable domains of the start addresses; `links` follows every link."""
    max_pages: int = Field(default=0, ge=0)
    """Documents after which the crawl ends; 0: when the frontier has run dry."""
    processes: int = Field(default=1, ge=1, le=64)
    """Worker processes; sites are divided among them. A crawl that goes on keeps the number that it began with."""
    in_flight: int = Field(default=600, ge=1, le=65536)
    """Most pages of one process that are being fetched or wait for their text to be read."""
    gap_s: float = Field(default=1.0, ge=0, le=60)
    """Least seconds between two requests to one site, and to one address."""
    answer_factor: float = Field(default=5.0, ge=0, le=100)
    """The gap is also at least this many times as long as the last answer took, up to `max_gap_s`."""
    max_gap_s: float = Field(default=30.0, ge=0, le=600)
    """Where the gap stops growing with slow answers."""
    max_crawl_delay_s: float = Field(default=60.0, ge=0, le=3600)
    """A host whose robots.txt asks for a longer gap is left out."""
    max_sitemap_urls: int = Field(default=50_000, ge=0, le=1_000_000)
    """Addresses taken from one sitemap; 0: sitemaps are not read."""
    honour_ai_groups: bool = True
    """Also obey what robots.txt tells the known crawlers that collect training text, and `noai` on pages."""
    honour_tdmrep: bool = True
    """Ask each host for `/.well-known/tdmrep.json` (W3C TDMRep) and leave alone what it reserves: one small request and
    one gap more for each host. The same reservation in headers and `<meta>` tags is heeded in any case."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How far the worker processes step back when the learner wants the processor (POSIX nice)."""
    backlog: int = Field(default=256, ge=1, le=100_000)
    """Documents of one process that may wait for the learner; then it fetches nothing more until there are fewer."""
    stall_s: float = Field(default=60.0, ge=1, le=3600)
    """A worker process that says nothing for so long is killed and started again."""
    restarts: int = Field(default=20, ge=0, le=1000)
    """How often, in all, worker processes are started again after they died, before the crawl is given up."""
    allow: tuple[str, ...] = ()
    """Hosts, as "host" or "host:port", that may be crawled although private or on a port other than 80 and 443."""
    frontier: FrontierSettings = FrontierSettings()
    fetch: FetchSettings = FetchSettings(user_agent="set from contact and product")
    page: PageSettings = PageSettings()
    filters: FilterSettings = FilterSettings()
    duplicates: DuplicateSettings = DuplicateSettings()

    @field_validator("contact")
    @classmethod
    def _reachable(cls, contact: str) -> str:
        if not _CONTACT.fullmatch(contact) or not contact.isascii():
            raise ValueError("give a web address (https://…) or a mail address where you can be reached")
        return contact

    def user_agent(self) -> str:
        """What every request says about who asks."""
        return f"{self.product}/{version('livelm')} (+{self.contact})"

    def fetching(self) -> FetchSettings:
        """The settings of the fetcher, with the name, the width and the exceptions of this crawl."""
        address: AddressSettings = self.fetch.address
        address = address.model_copy(update={"allow": (*address.allow, *self.allow)})
        changes = {"user_agent": self.user_agent(), "in_flight": self.in_flight, "address": address}
        return self.fetch.model_copy(update=changes)
