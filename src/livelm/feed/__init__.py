"""Documents to batches: lanes that carry state, exact cursors, a durable spool, and prefetch."""

from livelm.feed.assemble import batches
from livelm.feed.cursor import FeedCursor, OpenDocument, Stretch
from livelm.feed.prefetch import Prefetch

__all__ = ["FeedCursor", "OpenDocument", "Prefetch", "Stretch", "batches"]
