"""Which tokens are workers, whom each token hears, which keys each worker sees, and by how far each is turned.

Rows of the grid: of each token, how many came before it in its document, and whom it hears: 0 to B - 1 who is carried
of a lane, B nobody, from B + 1 the workers. The tokens that are workers. The first worker of each lane. The first token
of each run of one lane and document. The last two end with how many there are.
"""

import numpy as np

from livelm.compiled import called, compiled

N_ROWS = 5


@compiled
def count_workers(starts, before, stride, grid, after):  # type: ignore[no-untyped-def]
    """Fill the (N_ROWS, B T + 1) grid, and (B,) the age of what follows; `starts` (B, T), `before` (B,) ages.

    Returns how many workers there are, how many in the lane that has most, and the number of runs.
    """
    n_lanes, n_tokens = starts.shape
    n_workers, most, n_runs = 0, 0, 0
    for lane in range(n_lanes):
        grid[3, lane], age, speaker = n_workers, before[lane], lane
        for t in range(n_tokens):
            token = lane * n_tokens + t
            if starts[lane, t]:
                age = 0
            if t == 0 or starts[lane, t]:
                grid[4, n_runs] = token
                n_runs += 1
            if age % stride == stride - 1:
                grid[2, n_workers] = token
                n_workers += 1
                speaker = n_lanes + n_workers
            grid[0, token], grid[1, token] = age, speaker if age >= stride - 1 else n_lanes
            age += 1
        after[lane] = age
        most = max(most, n_workers - grid[3, lane])
    grid[3, n_lanes], grid[4, n_runs] = n_workers, n_lanes * n_tokens
    return n_workers, most, n_runs


@called
def look_around(form, grid, frequencies, window):  # type: ignore[no-untyped-def]
    """Fill what `places.window_of` says; `frequencies` (E/2,) in float64, in which angles are computed."""
    bias, (cos, sin), (cos_of_workers, sin_of_workers) = window
    _turn(form, grid, frequencies, cos, sin)
    for n in range(form.n_working):
        for k in range(len(frequencies)):
            if n < form.n_workers:
                cos_of_workers[k, n], sin_of_workers[k, n] = cos[k, grid[2, n]], sin[k, grid[2, n]]
            else:
                cos_of_workers[k, n], sin_of_workers[k, n] = 0.0, 0.0
    n_keys = form.n_carried + form.n_tokens
    for lane in range(form.n_lanes):
        first = grid[3, lane]
        n_here = grid[3, lane + 1] - first
        bias[lane] = 0.0  # what fills up may see anything: nothing of it is looked at
        for w in range(n_here):
            place = grid[2, first + w]
            last = place - lane * form.n_tokens + form.n_carried
            farthest = last - min(grid[0, place], form.context - 1)
            for s in range(n_keys):
                bias[lane, s, w] = 0.0 if farthest <= s <= last else -np.inf


@called
def _turn(form, grid, frequencies, cos, sin):  # type: ignore[no-untyped-def]
    """Angles of all tokens: of the first of a run by themselves, then from one to the next."""
    half = len(frequencies)
    for run in range(form.n_segments):
        for k in range(half):
            angle = grid[0, grid[4, run]] * frequencies[k]
            one, other, c, s = 1.0, 0.0, np.cos(frequencies[k]), np.sin(frequencies[k])
            if angle != 0.0:
                one, other = np.cos(angle), np.sin(angle)
            for token in range(grid[4, run], grid[4, run + 1]):
                cos[k, token], sin[k, token] = one, other
                one, other = one * c - other * s, other * c + one * s
    for k in range(half):
        for token in range(form.n_lanes * form.n_tokens, form.n_columns):
            cos[k, token], sin[k, token] = 0.0, 0.0
