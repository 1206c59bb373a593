"""Grade a whole stream with what a run has learned, and say what compressors would need for its beginning."""

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from livelm.config import Budget, FeedSettings
from livelm.errors import SourceError
from livelm.evaluate.baselines import measure
from livelm.evaluate.grade import grade
from livelm.feed import Prefetch, batches
from livelm.learn import Learner, MemoryLearner
from livelm.telemetry.graded import MAX_BYTES
from livelm.tokenize.decoder import Decoder
from livelm.types import Source, Tokenizer


def grade_stream(
    learner: Learner | MemoryLearner,
    tokenizer: Tokenizer,
    source: Source,
    *,
    update_tokens: int,
    limit: Budget,
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Read `source` in one lane, `update_tokens` at a time, to its end, the limit or until `stopped`; then close it.

    Nothing is learned. Returns bits per byte, bits, bytes, tokens and documents, and the baselines over the first
    bytes. Raises SourceError where there was nothing to grade.
    """
    kept, total = bytearray(), {"bits": 0.0, "n_bytes": 0, "n_tokens": 0, "n_documents": 0}
    began = monotonic()

    def spent() -> bool:
        done = total["n_bytes"] >= (limit.n_bytes or inf) or monotonic() - began >= (limit.seconds or inf)
        return done or stopped()

    one_lane = FeedSettings(lanes=1, update_tokens=update_tokens)
    learner.reset_lanes(1)
    decoder = Decoder(tokenizer)
    feed = Prefetch(lambda: batches(source, tokenizer, one_lane, None), one_lane.prefetch)
    try:
        for scored in grade(learner, iter(lambda: feed.next(spent), None)):
            total["bits"] += scored.bits
            total["n_bytes"] += scored.n_bytes
            total["n_tokens"] += scored.n_tokens
            total["n_documents"] += len(scored.batch.begun)
            if len(kept) < MAX_BYTES:
                kept += decoder.feed(scored.batch.tokens[scored.batch.graded].tolist())
    finally:
        source.close()
        feed.close()
    if not total["n_bytes"]:
        raise SourceError(f"{source.describe()}: there was not a single byte to grade.")
    baselines = measure(bytes(kept))
    return {
        "bits_per_byte": total["bits"] / total["n_bytes"],
        **total,
        "baselines": {name: getattr(baselines, name) for name in ("uniform", "unigram", "xz", "ppmd")},
        "baselines_n_bytes": baselines.n_bytes,
    }
