"""Grade a stream without learning from it: each byte once, by weights that do not change."""

from collections.abc import Iterator

import torch

from livelm.learn import Learner, MemoryLearner
from livelm.types import Batch, Scored


def grade(learner: Learner | MemoryLearner, feed: Iterator[Batch]) -> Iterator[Scored]:
    """Yield every batch graded; the lanes of the learner move on, weights and counts stay (it is frozen)."""
    learner.freeze()
    with torch.no_grad():
        for batch in feed:
            scored = learner.score(batch)
            learner.drop(scored)
            yield scored
