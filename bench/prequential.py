"""One pass over a stream without a run directory: grade, learn, forget; for benchmarks of many short runs.

What `livelm run` adds (journal, checkpoints, baselines in their idle process) would cost each of them more than the
learning does on a busy machine. The numbers are those of a run: a test compares them.
"""

from dataclasses import dataclass
from math import inf

from livelm.config import Recipe, parse_budget
from livelm.feed import batches
from livelm.parts import build_parts
from livelm.sources import open_sources


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass cost."""

    bits: float
    n_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Average code length over everything graded."""
        return self.bits / self.n_bytes


def read_once(recipe: Recipe) -> Pass:
    """Read the recipe's source up to its budget of bytes, grading each batch before it is learned."""
    parts = build_parts(recipe)
    limit = parse_budget(recipe.run.budget).n_bytes or inf
    learner = parts.learner(lambda: 0.0)
    source = open_sources(recipe.source.uris, recipe.source)
    bits, n_bytes = 0.0, 0
    try:
        for batch in batches(source, parts.tokenizer, recipe.feed, None):
            scored = learner.score(batch)
            bits, n_bytes = bits + scored.bits, n_bytes + scored.n_bytes
            learner.update(scored)
            if n_bytes >= limit:
                break
    finally:
        source.close()
    return Pass(bits, n_bytes)
