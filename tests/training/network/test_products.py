"""Products by tiles: right, and the same bits for a row however many others go with it."""

from __future__ import annotations

import numpy as np
import pytest

from training.network.products import COLUMNS, LANES, ROWS, multiply, padded


@pytest.mark.parametrize("columns", [1, LANES, LANES + 1, COLUMNS, 4 * COLUMNS])
@pytest.mark.parametrize("multiple", [LANES, COLUMNS])
@pytest.mark.parametrize("depth", [1, 7, 59])
def test_a_row_is_multiplied_alike_alone_and_among_others(columns: int, multiple: int, depth: int) -> None:
    rng = np.random.default_rng(0)
    matrix = padded(rng.standard_normal((1 + depth, columns)).astype(np.float32), multiple)
    v = rng.standard_normal((ROWS, 3 + depth)).astype(np.float32)
    together = np.empty((ROWS, matrix.shape[1]), np.float32)
    multiply(matrix, v, 3, together, ROWS)
    exact = matrix[0] + v[:, 3:].astype(np.float64) @ matrix[1:]
    np.testing.assert_allclose(together, exact, rtol=1e-5, atol=1e-5)
    for rows in range(1, ROWS):
        some = np.empty_like(together)
        multiply(matrix, np.roll(v, -1, axis=0), 3, some, rows)
        assert np.array_equal(some[:rows], np.roll(together, -1, axis=0)[:rows])


def test_nothing_else_is_written() -> None:
    matrix = padded(np.ones((3, 2), np.float32), LANES)
    z = np.full((ROWS, matrix.shape[1]), 7, np.float32)
    multiply(matrix, np.ones((ROWS, 2), np.float32), 0, z, 1)
    assert (z[0, :2] == 3).all()
    assert (z[0, 2:] == 0).all()
    assert (z[1:] == 7).all()
