import numpy as np
import pytest
import torch

from pml_posets._classes import row_sums


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("size", [8, 64, 4200])
@pytest.mark.parametrize(("place", "gap"), [(1e3, 1e-3), (1e7, 4)])  # float64 alone, and with centers
def test_distances_of_near_duplicates_far_from_zero_are_kept(size, scaled, place, gap):
    scale = 10 * gap if scaled else None
    draw = np.random.default_rng(0).standard_normal
    pairs = np.repeat(place + 1000 * gap * draw((size // 2, 64)), 2, axis=0)
    rows = (pairs + gap * draw(pairs.shape)).astype(np.float32)
    distances = np.sqrt(sum(np.square(np.subtract.outer(x, x)) for x in rows.T.astype(np.float64)))
    expected = (distances if scale is None else np.exp(-distances / scale)).sum(axis=1)
    np.testing.assert_allclose(row_sums(torch.from_numpy(rows[None]), scale)[0].numpy(), expected, rtol=2e-6)
