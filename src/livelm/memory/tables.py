"""Everything the count memory holds: what is learned (`Tables`) and what is known of the byte at hand (`Moment`)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from livelm.memory.contexts import CONTEXTS, N_CONTEXTS, N_SUMMARY
from livelm.memory.histories import build_histories
from livelm.memory.marks import MARK_ROWS
from livelm.memory.mixing import N_BINS, build_stretch
from livelm.memory.slots import BUCKET_WORDS, LONGEST_RUN, build_rates, update_counter

CONTEXT_INPUTS = 4
"""Opinions per context: by its history, its counter as far as it can be trusted, its counter corrected, its run."""
MATCH_INPUTS = 2
MATCH_MINIMA = (5, 12, 20)
"""Shortest match that each match model takes, in bytes; one model per entry."""
FIRST_WEIGHT = 0.035
"""Of a context's history and of its counter, before anything is learned."""
FIRST_MATCH_WEIGHT = 0.2
COUNT_CELLS = 8 * 64
"""Cells of the map that corrects counters: 8 steps of how often it was used, 64 of its probability."""
MATCH_CELLS = 128
SET_ROWS = (2048, 2048, 4096, 4096, 4096, 2048, 1024, 2048)
"""Rows of each set of mixing weights; what chooses the row is in `kernel.choose_weights`."""
N_SETS = len(SET_ROWS)
MORE_SET_ROWS = (4096, 4096, 512, 256, 3125, 3125)
"""Rows of the further sets that a memory of all contexts has; what chooses the row is in `kernel.choose_more`."""
FINAL_ROWS = (256, 256, 64, 64, 512, 128)
"""Rows of each set of weights of the final mixers; what chooses the row is in `kernel.mix_sets`."""
N_FINALS = len(FINAL_ROWS)
MAP_ROWS = 1 << 16
N_MAPS = 4
OPINIONS = 2
"""What is kept of each bit for a network to join: see `kernel.keep_opinions`."""
CHOSEN = 5
"""What is kept of each byte for that: see `kernel.keep_chosen`."""
_CACHE_LINE = 64
_FEWEST_GROUPS = 4


class Tables(NamedTuple):
    """What is learned; all of it is in a checkpoint but for the constants at the end."""

    runs: NDArray[np.uint32]
    buckets: NDArray[np.uint32]
    history_map: NDArray[np.float32]
    count_map: NDArray[np.float32]
    run_map: NDArray[np.float32]
    match_map: NDArray[np.float32]
    matches: NDArray[np.int64]
    places: NDArray[np.int64]
    ring: NDArray[np.uint8]
    summary: NDArray[np.int64]
    weights: NDArray[np.float32]
    final: NDArray[np.float32]
    maps: NDArray[np.float32]
    marks: NDArray[np.float32]
    salt: NDArray[np.int64]
    # constants
    active: NDArray[np.int64]
    run_first: NDArray[np.int64]
    run_groups: NDArray[np.int64]
    bucket_first: NDArray[np.int64]
    bucket_groups: NDArray[np.int64]
    set_first: NDArray[np.int64]
    final_first: NDArray[np.int64]
    minima: NDArray[np.int64]
    after: NDArray[np.uint8]
    rates: NDArray[np.int64]
    singles: NDArray[np.int64]
    stretch: NDArray[np.float32]


LANE = ("matches", "places", "ring", "summary")
"""What each lane has of its own: its past. What was learned is everybody's."""
CONSTANTS = Tables._fields[Tables._fields.index("active") :]


class Moment(NamedTuple):
    """What is known while one byte is predicted: per context, per match model, per bit."""

    hashes: NDArray[np.int64]
    run_at: NDArray[np.int64]
    found: NDArray[np.bool_]
    expected: NDArray[np.int64]
    length: NDArray[np.int64]
    split: NDArray[np.int64]
    row: NDArray[np.int64]
    foretold: NDArray[np.int64]
    cell: NDArray[np.int64]
    longest: NDArray[np.int64]
    chosen: NDArray[np.int64]
    inputs: NDArray[np.float32]
    words: NDArray[np.int64]
    set_rows: NDArray[np.int64]
    logits: NDArray[np.float32]
    final_rows: NDArray[np.int64]
    finals: NDArray[np.float64]
    mixed: NDArray[np.float64]
    map_rows: NDArray[np.int64]
    p: NDArray[np.float64]


class Said(NamedTuple):
    """What was said of n tokens, for a network that joins; arrays without rows are not filled."""

    bits: NDArray[np.float64]
    """(n,) what each token cost, the news whether a document opens included."""
    flags: NDArray[np.float64]
    """(n,) logit that a document opens here, 0 where that was not asked."""
    opinions: NDArray[np.float64]
    """(8 n, OPINIONS) of each bit of each byte."""
    inputs: NDArray[np.float32]
    """(8 n, inputs of a mixer) what each context said of each bit."""
    chosen: NDArray[np.int64]
    """(n, CHOSEN) of each byte what chooses weights: see `kernel.keep_chosen`."""
    tree: NDArray[np.float64]
    """(512 or 0,) the probability of every node of the tree of the next byte's bits (1: the root)."""
    nodes: NDArray[np.float64]
    """(256 or 0, OPINIONS) of every inner node."""
    node_inputs: NDArray[np.float32]
    """(256 or 0, inputs of a mixer) of every inner node."""


def build_tables(active: Sequence[int], n_bytes: int, history_bytes: int, salt: int = 0) -> Tables:
    """Fresh tables of at most `n_bytes` for these contexts (numbers in `CONTEXTS`), with a ring of `history_bytes`.

    `salt` decides which contexts share a place.
    """
    n, n_matches = len(active), len(MATCH_MINIMA)
    rows = set_rows(n)
    lengths = np.arange(LONGEST_RUN + 1, dtype=np.float32)
    after, guess = build_histories()
    rates = build_rates()
    fixed: dict[str, NDArray[Any]] = {
        "history_map": np.tile(guess, (n, 1)),
        "count_map": np.tile((np.arange(64, dtype=np.float32) + 0.5) / 64, (n, 8)),
        "run_map": np.tile((lengths + 0.6) / (lengths + 1.2), (n, 2, 8, 1)),
        "match_map": np.full((n_matches, MATCH_CELLS), 0.75, np.float32),
        "matches": np.zeros((n_matches, 3), np.int64),
        "places": np.zeros((n_matches, history_bytes // 4), np.int64),
        "ring": np.zeros(history_bytes, np.uint8),
        "summary": np.zeros(N_SUMMARY, np.int64),
        "weights": _first_weights(n, sum(rows)),
        "final": np.full((sum(FINAL_ROWS), len(rows)), 1 / len(rows), np.float32),
        "maps": np.tile(1 / (1 + np.exp(-(np.arange(N_BINS) - 16) / 2)), (N_MAPS, MAP_ROWS, 1)).astype(np.float32),
        "marks": np.zeros((MARK_ROWS, 2), np.float32),
        "salt": np.array([salt], np.int64),
        "set_first": np.cumsum([0, *rows[:-1]]),
        "final_first": np.cumsum([0, *FINAL_ROWS[:-1]]),
        "minima": np.array(MATCH_MINIMA, np.int64),
        "after": after,
        "rates": rates,
        "singles": _single_runs(after, rates),
        "stretch": build_stretch(),
        "active": np.array(active, np.int64),
    }
    left = n_bytes - sum(a.nbytes for a in fixed.values()) - n * _CACHE_LINE
    return Tables(**fixed, **_regions(active, left))


def build_moment(n: int) -> Moment:
    """Room for one byte of a memory of `n` contexts."""
    integers = {name: np.zeros(n, np.int64) for name in ("run_at", "expected", "length", "split", "row")}
    n_sets = len(set_rows(n))
    per_match = {name: np.zeros(len(MATCH_MINIMA), np.int64) for name in ("foretold", "cell")}
    return Moment(
        **integers,
        **per_match,
        hashes=np.zeros(len(CONTEXTS), np.int64),
        found=np.zeros(n, np.bool_),
        longest=np.zeros(2, np.int64),
        chosen=np.zeros(n_sets, np.int64),
        inputs=_aligned((8, count_inputs(n)), np.float32),
        words=np.zeros((8, n), np.int64),
        set_rows=np.zeros((8, n_sets), np.int64),
        logits=np.zeros((8, n_sets), np.float32),
        final_rows=np.zeros((8, N_FINALS), np.int64),
        finals=np.zeros((8, N_FINALS)),
        mixed=np.zeros(8),
        map_rows=np.zeros((8, N_MAPS), np.int64),
        p=np.zeros(8),
    )


def build_said(n: int, n_joined: int = 0, n_nodes: int = 0, n_inputs: int = 0) -> Said:
    """Room for what is said of `n` tokens.

    `n_joined`: n where a network will join, else 0; `n_nodes`: 256 for all inner nodes of the tree of bits, else 0;
    `n_inputs`: of a mixer, where a network will join.
    """
    return Said(
        bits=np.zeros(n),
        flags=np.zeros(n),
        opinions=np.zeros((8 * n_joined, OPINIONS)),
        inputs=np.zeros((8 * n_joined, n_inputs), np.float32),
        chosen=np.zeros((max(n_joined, n_nodes and 1), CHOSEN), np.int64),
        tree=np.zeros(2 * n_nodes),
        nodes=np.zeros((n_nodes, OPINIONS)),
        node_inputs=np.zeros((n_nodes, n_inputs), np.float32),
    )


def lane_bytes(history_bytes: int) -> int:
    """Bytes of what one more lane with a past of `history_bytes` takes."""
    n_matches = len(MATCH_MINIMA)
    return history_bytes + n_matches * (history_bytes // 4 + 3) * 8 + N_SUMMARY * 8


def fresh_rows(t: Tables) -> dict[str, NDArray[Any]]:
    """Of each large table, which begins with equal rows, such a row: what need not be saved."""
    chunks = {"runs": 4, "buckets": BUCKET_WORDS, "places": 8, "ring": 64}
    zeros = {name: np.zeros(n, getattr(t, name).dtype) for name, n in chunks.items()}
    return zeros | {"maps": t.maps[0, 0].copy(), "weights": t.weights[0].copy(), "marks": t.marks[0].copy()}


def set_rows(n: int) -> tuple[int, ...]:
    """Rows of each set of mixing weights of a memory of `n` contexts: more sets where all contexts are asked."""
    return SET_ROWS + MORE_SET_ROWS if n == N_CONTEXTS else SET_ROWS


def count_inputs(n: int) -> int:
    """Inputs of a mixer for `n` contexts, filled up to whole vectors."""
    return whole_vectors(n * CONTEXT_INPUTS + len(MATCH_MINIMA) * MATCH_INPUTS + 1)


def whole_vectors(n: int) -> int:
    """`n` numbers filled up to vectors of 16."""
    return -(-n // 16) * 16


def _regions(active: Sequence[int], n_bytes: int) -> dict[str, NDArray[Any]]:
    """Share the rest of the budget among the contexts; those that have few values take less."""
    share = max(n_bytes, 0) // len(active)
    group_bytes = 4 * 4, 4 * BUCKET_WORDS * 4
    few = {"order 0": (4, 8), "order 1": (256, 2048)}
    run_groups, bucket_groups = [], []
    for context in active:
        most_runs, most_buckets = few.get(CONTEXTS[context], (share, share))
        run_groups.append(max(_FEWEST_GROUPS, min(most_runs, share // 5 // group_bytes[0])))
        bucket_groups.append(max(_FEWEST_GROUPS, min(most_buckets, share * 4 // 5 // group_bytes[1])))
    return {
        "runs": _aligned((4 * sum(run_groups),), np.uint32),
        "buckets": _aligned((4 + 4 * sum(bucket_groups), BUCKET_WORDS), np.uint32),  # row 0 stays empty
        "run_first": np.cumsum([0, *run_groups[:-1]]) * 4,
        "run_groups": np.array(run_groups, np.int64),
        "bucket_first": 4 + np.cumsum([0, *bucket_groups[:-1]]) * 4,
        "bucket_groups": np.array(bucket_groups, np.int64),
    }


def _first_weights(n: int, n_rows: int) -> NDArray[np.float32]:
    weights = _aligned((n_rows, count_inputs(n)), np.float32)
    weights[:, 0 : n * CONTEXT_INPUTS : CONTEXT_INPUTS] = FIRST_WEIGHT
    weights[:, 2 : n * CONTEXT_INPUTS : CONTEXT_INPUTS] = FIRST_WEIGHT
    matches = n * CONTEXT_INPUTS
    weights[:, matches : matches + len(MATCH_MINIMA) * MATCH_INPUTS : MATCH_INPUTS] = FIRST_MATCH_WEIGHT
    return weights


def _single_runs(after: NDArray[np.uint8], rates: NDArray[np.int64]) -> NDArray[np.int64]:
    """(128, 2) the counter of a node that saw the same bit k times: what a run stands for while it is not split."""
    words = np.zeros((LONGEST_RUN + 1, 2), np.int64)
    for bit in (0, 1):
        for k in range(LONGEST_RUN):
            words[k + 1, bit] = update_counter.py_func(int(words[k, bit]), bit, after, rates)
    return words


def _aligned(shape: tuple[int, ...], kind: type[Any]) -> NDArray[Any]:
    """Zeros that begin at a cache line, so that a bucket is one line and a vector one load."""
    n = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = np.zeros(n + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + n].view(kind).reshape(shape)
