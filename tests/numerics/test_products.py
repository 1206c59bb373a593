"""Small products and the softmax of columns, in registers, against numpy in float64."""

import numpy as np
import pytest

from livelm.compiled import compiled
from livelm.compiled.vectors import LANES
from livelm.models.ops.products import HIGH, LARGE, SIDE, add_product
from livelm.models.ops.softmax_columns import softmax_strip


@compiled
def multiplied(shape, a, a_row, a_step, b, c):  # type: ignore[no-untyped-def]
    """c += a b, as the blocks call it."""
    add_product(shape, a.ctypes.data, a_row, a_step, b.ctypes.data, b.shape[1], c.ctypes.data, c.shape[1])


@compiled
def softmax(x):  # type: ignore[no-untyped-def]
    """Of each column, in place."""
    for column in range(0, x.shape[1], LANES):
        softmax_strip(x.ctypes.data + 4 * column, x.shape[1], x.shape[0])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("n", [1, 48, 100])
@pytest.mark.parametrize("n_columns", [LANES, 2 * LANES, 3 * LANES, 8 * LANES])
@pytest.mark.parametrize("n_rows", [1, HIGH - 1, HIGH, HIGH + 2, 2 * HIGH + 3, 64])
def test_products(n_rows: int, n_columns: int, n: int, turned: bool) -> None:
    random = np.random.default_rng(n_rows)
    a, b, c = (
        random.standard_normal(size).astype(np.float32) for size in ((n_rows, n), (n, n_columns), (n_rows, n_columns))
    )
    wanted = c + a.astype(np.float64) @ b
    stored = np.ascontiguousarray(a.T) if turned else a
    multiplied((n_rows, n_columns, n), stored, *((1, n_rows) if turned else (n, 1)), b, c)
    np.testing.assert_allclose(c, wanted, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (4 * SIDE, SIDE, 4 * SIDE),
        (4 * SIDE, 4 * SIDE, SIDE + 1),
        (4 * SIDE + 5, 4 * SIDE + LANES, 4 * SIDE - 3),
        (SIDE - 1, SIDE + LANES, LARGE // SIDE**2 + 99),
        (1, 2 * LANES, LARGE // (2 * LANES)),
    ],
)
def test_going_by_blocks_changes_no_bit(shape: tuple[int, int, int], turned: bool) -> None:
    n_rows, n_columns, n = shape
    random = np.random.default_rng(0)
    a, b, whole = (
        random.standard_normal(size).astype(np.float32) for size in ((n_rows, n), (n, n_columns), (n_rows, n_columns))
    )
    stored = np.ascontiguousarray(a.T) if turned else a
    a_row, a_step = (1, n_rows) if turned else (n, 1)
    parts, again, wanted = whole.copy(), whole.copy(), whole + a.astype(np.float64) @ b
    multiplied(shape, stored, a_row, a_step, b, whole)
    multiplied(shape, stored, a_row, a_step, b, again)
    np.testing.assert_allclose(whole, wanted, atol=2e-6 * n)
    assert np.array_equal(whole, again)
    some = (LARGE - 1) // (n_rows * n_columns)  # so few steps at a time that nothing is large
    for k in range(0, n, some):
        here = stored[k:] if turned else stored[:, k:]
        multiplied((n_rows, n_columns, min(some, n - k)), here, a_row, a_step, b[k:], parts)
    assert np.array_equal(whole, parts)


def test_parts_of_matrices_leave_the_rest_alone() -> None:
    random = np.random.default_rng(0)
    a, b = (
        random.standard_normal((8, 16)).astype(np.float32),
        random.standard_normal((16, 4 * LANES)).astype(np.float32),
    )
    c = np.zeros((8, 4 * LANES), np.float32)
    multiplied((5, 3 * LANES, 16), a, 16, 1, b, c)
    np.testing.assert_allclose(c[:5, : 3 * LANES], a[:5] @ b[:, : 3 * LANES], atol=1e-4)
    assert not c[5:].any()
    assert not c[:, 3 * LANES :].any()


@pytest.mark.parametrize("n_rows", [1, 2, 176])
def test_softmax_of_columns(n_rows: int) -> None:
    x = np.random.default_rng(0).standard_normal((n_rows, 3 * LANES)).astype(np.float32) * 20
    if n_rows > 1:
        x[0] = -np.inf
        x[1, 3] = 500.0
    wanted = np.exp(x.astype(np.float64) - x.max(axis=0))
    wanted /= wanted.sum(axis=0)
    softmax(x)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-30)
    assert n_rows == 1 or not x[0].any(), "what is masked has no share at all"


def test_softmax_of_a_column_with_nan() -> None:
    x = np.zeros((5, LANES), np.float32)
    x[2, 1] = np.nan
    softmax(x)
    assert np.isnan(x[:, 1]).all()
    assert not np.isnan(np.delete(x, 1, axis=1)).any()
