"""What learning did to what was learned before: costs of the same held-out bytes, earlier and now."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livelm.errors import ContractError


def forgetting(costs: Sequence[Sequence[float]]) -> list[float]:
    """What each domain but the last costs more at the end than right after it was learned, in bits per byte.

    `costs[i][j]` is the cost of held-out bytes of domain j after domain i was learned (a square matrix, in the order in
    which the domains came). Raises ContractError for another form.

    >>> forgetting([[2.0, 4.0], [2.5, 1.0]])
    [0.5]
    """
    n = len(costs)
    if not n or any(len(row) != n for row in costs):
        raise ContractError(f"forgetting is read off a square matrix, not rows of {[len(row) for row in costs]}.")
    return [costs[-1][j] - costs[j][j] for j in range(n - 1)]


def backward_transfer(costs: Sequence[Sequence[float]]) -> float:
    """The mean over all domains but the last of what later learning did to them, in bits per byte saved.

    Lopez-Paz and Ranzato (2017), equation 3, with bits per byte for accuracy, so with the sign turned: negative is
    forgetting, positive means that what came later helped. `costs` as for `forgetting`; 0 for a single domain.

    >>> backward_transfer([[2.0, 4.0], [2.5, 1.0]])
    -0.5
    """
    lost = forgetting(costs)
    return -sum(lost) / len(lost) if lost else 0.0


def by_parts(graded: Mapping[str, NDArray[Any]], n_parts: int) -> list[dict[str, float]]:
    """Rows for at most `n_parts` parts of the stream, oldest first, of held-out slices graded when read and again now.

    `graded` is what `learn.Holdout.grade_again` gives. A part is as many slices as any other, but for one; it has
    `from_byte` and `to_byte` of the stream, `n_slices`, `n_bytes`, `first` and `now` in bits per byte, and
    `backward_transfer` = first - now.
    """
    rows = [index for index in np.array_split(np.arange(len(graded["at"])), n_parts) if len(index)]
    return [summed({name: column[index] for name, column in graded.items()}) for index in rows]


def summed(graded: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """One such row for all of these slices. Raises ContractError for none."""
    if not len(graded["at"]):
        raise ContractError("no slice was held out, so there is nothing to compare.")
    n_bytes = int(graded["n_bytes"].sum())
    first, now = (float(graded[name].sum()) / max(n_bytes, 1) for name in ("first_bits", "now_bits"))
    return {
        "from_byte": int(graded["at"].min()),
        "to_byte": int(graded["at"].max()),
        "n_slices": len(graded["at"]),
        "n_bytes": n_bytes,
        "first": first,
        "now": now,
        "backward_transfer": first - now,
    }
