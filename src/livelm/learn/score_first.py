"""Score first: what was graded, and nothing else, may teach, each thing once, in order."""

from livelm.errors import ContractError
from livelm.types import Batch, Scored, Update


class ScoreFirst:
    """The contract that every learner keeps, whatever learns in it.

    Weights are graded by whole batches: `score` leaves them alone, `update` changes them, by what was just scored.
    Counts are graded byte by byte: inside `score` each byte is graded first and learned then, before the next byte is
    graded, so that they too never learn what was not graded; `update` has nothing left to do for them. A learner that
    must only grade is frozen first: then neither changes. Rehearsal (`learn.rehearsal`) lets a network learn again from
    what was graded and learned by this rule, and grades nothing.
    """

    def __init__(self) -> None:
        self._seal = object()
        self._pending: Scored | None = None
        self.frozen = False
        """Whether nothing is learned any more."""

    def freeze(self) -> None:
        """From now on only grade: what is scored must be dropped, and teaches nothing. For good."""
        self.frozen = True

    def score(self, batch: Batch, refusal: str | None = None) -> Scored:
        """Grade every token of the batch before anything learns from it, and move the lanes on.

        `refusal`: why nothing should be learned from it, where that is known before it is read; counts, which would
        learn in here, then only read. Raises ContractError for ids outside the vocabulary or another number of lanes
        than the learner has.
        """
        if self._pending is not None:
            raise ContractError(
                f"batch {batch.index} would be scored before batch {self._pending.batch.index} was learned or dropped."
            )
        self._pending = self._grade(batch, learns=not self.frozen and refusal is None)
        return self._pending

    def update(self, scored: Scored) -> Update:
        """Learn from what was just scored. Raises ContractError for anything else, or for the same thing twice."""
        self._spend(scored)
        update = self._learn(scored)
        scored.loss = None  # whoever keeps what was scored keeps its numbers, not its graph
        return update

    def refuse(self, scored: Scored, reason: str) -> Update:
        """Learn nothing (more) from what was just scored, and say why; the lanes have read it. Raises as `update` does.

        What counts learned while it was scored stays learned: pass the reason to `score` where it is known by then.
        """
        self._spend(scored)
        scored.loss = None
        return self._refuse(scored, reason)

    def drop(self, scored: Scored) -> None:
        """Score without learning (`eval`): forget the graph.

        Raises ContractError where bytes were learned as they were graded: freeze such a learner before it scores.
        """
        if scored.taught:
            raise ContractError(
                f"batch {scored.batch.index} was learned byte by byte and cannot be dropped; freeze the learner first."
            )
        scored.spent, scored.loss, self._pending = True, None, None

    def _spend(self, scored: Scored) -> None:
        if not isinstance(scored, Scored) or scored.seal is not self._seal:
            raise ContractError(f"update takes what this learner scored, not {type(scored).__name__}.")
        if scored.spent or scored is not self._pending:
            raise ContractError(f"batch {scored.batch.index} was learned from already; each batch teaches once.")
        if self.frozen:
            raise ContractError(
                f"batch {scored.batch.index} was scored by a frozen learner, which only grades; drop it."
            )
        scored.spent, self._pending = True, None

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        """Grade; `learns`: whether what is learned byte by byte may be."""
        raise NotImplementedError

    def _learn(self, scored: Scored) -> Update:
        raise NotImplementedError

    def _refuse(self, scored: Scored, reason: str) -> Update:
        raise NotImplementedError
