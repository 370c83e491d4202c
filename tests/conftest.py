"""What every test may ask for."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips, with a reason, where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found: {SHARED_DATA} is no folder")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def number_of_threads():
    """A test that computes on one thread leaves the others as many as they had: sums depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
