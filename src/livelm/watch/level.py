"""How high a score must be to be an alarm: a quantile of the scores so far, and a budget that is never exceeded."""

import math
from typing import Any

from livelm.watch.histogram import ROUNDING, Histogram
from livelm.watch.settings import WatchSettings

ALARMS_KEPT = 20
"""The histogram remembers as many documents as bring so many alarms, at least `LEAST_KEPT`."""
LEAST_KEPT = 5000
BURST = 10.0
"""Alarms that may come at once after a quiet time; of `per_day`, a day's alarms at most."""
GAP_MEMORY = 2000.0
"""Documents over which the time from one to the next is averaged."""
DAY_S = 86400.0
ORDINARY, RANK_WEIGHT = 2.0, 6.0
"""A rarity counts at most 2 bits, which anything may have, and 6 times the bits of its rank. AUROC on BGL was 0.814
with 0 and 1, 0.820 with 0 and 3."""


class Level:
    """The threshold of one kind of document.

    Scores are counted by how far they are below the ceiling, which is the rarity of something never seen: it grows with
    the logarithm of the documents seen, and with it all that is rare. The threshold is a quantile of a `Histogram` that
    forgets; it is looked up before the document is counted. Nothing is counted in the first half of the burn-in, when
    all is new.

    Apart from that, alarms are paid from a budget that grows by the target share with every document (with `per_day`,
    with time) and holds `BURST` at most: so in the long run there are never more than asked for, even where many
    documents are equally surprising and no threshold parts them.
    """

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._scores, self._rarities = Histogram(), Histogram()
        self._n_seen = 0
        self._gap_s = self._since_s = 0.0  # mean seconds from document to document, and since the last
        self._most = BURST if settings.per_day is None else max(1.0, min(BURST, settings.per_day))
        self._budget = self._most
        self.held_back = 0
        """Documents above the threshold that the budget had no alarm for."""

    @property
    def rate(self) -> float:
        """The target share of documents, now."""
        per_day = self._settings.per_day
        if per_day is None:
            return self._settings.rate
        return min(0.5, per_day * self._gap_s / DAY_S)

    def threshold(self, ceiling: float) -> float | None:
        """Bits from which a score is an alarm; None while only learning what is usual."""
        if self._settings.says_all:
            return 0.0
        if self._n_seen < max(1, self._settings.burn_in):
            return None
        return max(0.0, self._scores.quantile(self.rate) + ceiling)

    def cap(self, rarity: float, ceiling: float) -> float:
        """The rarity, but no more than ORDINARY - RANK_WEIGHT log2 of the share of documents as rare as this or rarer.

        Where every document has something never seen, as pages of prose do, that says nothing about any of them.
        """
        share = (self._rarities.above(rarity - ceiling) + 0.5) / (self._rarities.n + 1)
        return min(rarity, ORDINARY - RANK_WEIGHT * math.log2(min(1.0, share)))

    def is_alarm(self, score: float, threshold: float | None) -> bool:
        """Whether a score is above the threshold and the budget has an alarm left, which is then spent."""
        if self._settings.says_all:
            return True
        if threshold is None or score <= 0 or score < threshold - ROUNDING:
            return False
        if self._budget < 1:
            self.held_back += 1
            return False
        self._budget -= 1
        return True

    def pass_time(self, seconds: float) -> None:
        """Take that so much time went by, which matters where alarms are asked for by day."""
        if self._settings.per_day is not None:
            self._since_s += seconds
            self._budget = min(self._most, self._budget + self._settings.per_day * seconds / DAY_S)

    def count(self, score: float, rarity: float, ceiling: float) -> None:
        """Take a document's score, and its rarity as it was before `cap`."""
        self._n_seen += 1
        self._gap_s += (self._since_s - self._gap_s) / min(self._n_seen, GAP_MEMORY)
        self._since_s = 0.0
        if self._n_seen > self._settings.burn_in / 2:
            self._scores.add(score - ceiling, max(LEAST_KEPT, ALARMS_KEPT / max(self.rate, 1e-9)))
            self._rarities.add(rarity - ceiling, LEAST_KEPT)
        if self._settings.per_day is None:
            self._budget = min(self._most, self._budget + self._settings.rate)

    def state_dict(self) -> dict[str, Any]:
        """The histograms as tensors, the rest plain."""
        return {
            "scores": self._scores.state_dict(),
            "rarities": self._rarities.state_dict(),
            "n_seen": self._n_seen,
            "gap_s": self._gap_s,
            "since_s": self._since_s,
            "budget": self._budget,
            "held_back": self.held_back,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._scores.load_state_dict(state["scores"])
        self._rarities.load_state_dict(state["rarities"])
        self._n_seen, self._gap_s = state["n_seen"], state["gap_s"]
        self._since_s, self._budget, self.held_back = state["since_s"], state["budget"], state["held_back"]
