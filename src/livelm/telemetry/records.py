"""Records of the journal, made from what the loop did."""

from collections.abc import Iterator
from math import isfinite

from livelm.types import LN_2, Batch, Record, Scored, Update


def document_records(batch: Batch) -> Iterator[Record]:
    """One record for each document that begins in this batch."""
    for start in batch.begun:
        yield {
            "kind": "document",
            "ordinal": start.ordinal,
            "id": start.id,
            "source": start.source,
            "at": start.at,
            "url": start.url,
        }


def scored_record(scored: Scored) -> Record:
    """What a batch cost, in all and by document as [ordinal, bits, n_bytes]."""
    batch = scored.batch
    if len(batch.spans) == 1:  # the usual case, and then the sums are at hand
        documents = [[batch.spans[0].ordinal, scored.bits, scored.n_bytes]]
    else:
        nats, n_bytes = scored.nats.numpy(), batch.n_bytes.numpy()
        documents = [
            [
                s.ordinal,
                float(nats[s.lane, s.start : s.stop].sum()) / LN_2,
                int(n_bytes[s.lane, s.start : s.stop].sum()),
            ]
            for s in batch.spans
        ]
    return {
        "kind": "scored",
        "batch": batch.index,
        "bits": scored.bits,
        **scored.alone,
        "n_bytes": scored.n_bytes,
        "n_tokens": scored.n_tokens,
        "documents": documents,
    }


def update_record(update: Update) -> Record:
    """What an update did."""
    return {
        "kind": "update",
        "batch": update.index,
        "gradient_norm": update.gradient_norm if isfinite(update.gradient_norm) else None,
        "rate": update.rate,
        "skipped": update.skipped,
    }
