import numpy as np
import pytest
import torch

from pml_posets._classes import row_sums


@pytest.mark.parametrize("scale", [None, 1e-3])
@pytest.mark.parametrize("size", [8, 64, 4200])
def test_distances_of_near_duplicates_far_from_zero_are_kept(size, scale):
    draw = np.random.default_rng(0).standard_normal
    pairs = np.repeat(1000 + draw((size // 2, 2)), 2, axis=0)
    rows = (pairs + 1e-3 * draw(pairs.shape)).astype(np.float32)
    distances = np.sqrt(sum(np.square(np.subtract.outer(x, x)) for x in rows.T.astype(np.float64)))
    expected = (distances if scale is None else np.exp(-distances / scale)).sum(axis=1)
    np.testing.assert_allclose(row_sums(torch.from_numpy(rows[None]), scale)[0].numpy(), expected, rtol=2e-6)
