"""Leave out what was read before: the same text, or nearly the same, within a bounded window."""

import logging
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)
from xxhash import xxh3_128_digest

from livelm.config import Settings
from livelm.sources.web.shingles import shingles

PERMUTATIONS = 128
BANDS = 16
"""Of 8 rows each: a text with 0.8 of its shingles in common is found with probability 0.95, with 0.85 with 0.99."""
SEED = 42
_BANDS = np.arange(BANDS)
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, PERMUTATIONS // BANDS + 1, dtype=np.uint64)

log = logging.getLogger(__name__)


class DuplicateSettings(Settings):
    """How long, and how exactly, texts are remembered."""

    window: int = Field(default=1 << 16, ge=16, le=1 << 24)
    """Texts that near-duplicates are searched among; memory is about 320 bytes each."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Share of the 5-word runs of both texts together that must be common to them (Jaccard)."""


class Duplicates:
    """MinHash with banded locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998) over a sliding window.

    Memory is constant: sketches lie in a ring, and each band's table holds the last text of each bucket, checked
    against its sketch, so a bucket taken over by another text costs one of sixteen chances, never a false alarm.
    """

    def __init__(self, settings: DuplicateSettings) -> None:
        self._settings = settings
        n_buckets = 1 << (2 * settings.window - 1).bit_length()
        self._sketches = np.zeros((settings.window, PERMUTATIONS), np.uint8)  # 8 bits say enough: Li and König 2010
        self._buckets = np.full((BANDS, n_buckets), -1, np.int32)
        self._exact = np.zeros((2 * n_buckets, 2), np.uint64)
        self._n_seen = 0

    def reason(self, text: str) -> str | None:
        """`exact_duplicate`, `near_duplicate`, or None for a text that is new and from now on remembered.

        Case and white space do not count.
        """
        view = shingles(text)
        digest = np.frombuffer(xxh3_128_digest(view.normal), np.uint64)
        slot = self._exact[int(digest[0]) % len(self._exact)]
        if np.array_equal(slot, digest):
            return "exact_duplicate"
        if len(view.hashes):
            sketch = _sketch(view.hashes)
            buckets = _band_hashes(sketch) % np.uint64(self._buckets.shape[1])
            low = sketch.astype(np.uint8)
            if self._is_near(low, buckets):
                return "near_duplicate"
            self._remember(low, buckets)
        slot[:] = digest
        return None

    def save(self, path: Path) -> None:
        """Write everything remembered to `path`, whole or not at all."""
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(
                file, sketches=self._sketches, buckets=self._buckets, exact=self._exact, n_seen=np.int64(self._n_seen)
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    @classmethod
    def load(cls, path: Path, settings: DuplicateSettings) -> "Duplicates":
        """What `save` wrote; empty when there is no such file, or, with a warning, when it cannot be used."""
        duplicates = cls(settings)
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = [stored[name] for name in ("sketches", "buckets", "exact")]
                n_seen = int(stored["n_seen"])
        except FileNotFoundError:
            return duplicates
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: what was read before is forgotten, the file is damaged: %s", path, error)
            return duplicates
        own = [duplicates._sketches, duplicates._buckets, duplicates._exact]
        fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(arrays, own, strict=True))
        if not fits or arrays[1].max() >= settings.window:
            log.warning("%s: what was read before is forgotten, the window is now %d texts", path, settings.window)
            return duplicates
        duplicates._sketches, duplicates._buckets, duplicates._exact = arrays
        duplicates._n_seen = n_seen
        return duplicates

    def _is_near(self, sketch: NDArray[np.uint8], buckets: NDArray[np.uint64]) -> bool:
        found = self._buckets[_BANDS, buckets]
        found = found[found >= 0]
        if not len(found):
            return False
        same = (self._sketches[found] == sketch).mean(axis=1)
        return bool(same.max() >= self._settings.similarity)

    def _remember(self, sketch: NDArray[np.uint8], buckets: NDArray[np.uint64]) -> None:
        place = self._n_seen % self._settings.window
        self._sketches[place] = sketch
        self._buckets[_BANDS, buckets] = place
        self._n_seen += 1


def _sketch(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    bounds = np.array([0, len(hashes)], np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, bounds, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows()[0], np.uint32)


def _band_hashes(sketch: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """(BANDS,) one number for each band of rows."""
    rows = sketch.reshape(BANDS, -1).astype(np.uint64)
    mixed = (rows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    return mixed ^ (mixed >> np.uint64(32))
