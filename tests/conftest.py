"""Fixtures and options for all tests."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="of the tests marked gpu; cpu (default) skips them")
    parser.addoption("--fast", action="store_true", help="leave out the tests marked slow")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and config.getoption("--fast"):
            item.add_marker(pytest.mark.skip(reason="slow: left out by --fast"))
        if item.get_closest_marker("gpu") and config.getoption("--device") == "cpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU: give --device cuda"))
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found: {SHARED_DATA} is no folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """The device of `--device`."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def number_of_threads():
    """A test that computes on one thread leaves the others as many as they had: sums depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
