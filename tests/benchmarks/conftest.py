"""Fixtures of the tests of the benchmarks."""

import pytest
from benchmark_runs import THIN
from scipy.io import loadmat

import benchmarks.data.files
from benchmarks.core import alexnet, session

SAVE_PICTURES = session.save_pictures


@pytest.fixture(scope="module", autouse=True)
def thin_networks(request):
    """AlexNet with few maps, which trains in a fraction of the time; `test_networks` tests the whole one."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.endswith("test_networks"):
            patch.setattr(alexnet, "WIDTHS", THIN)
        yield


@pytest.fixture(autouse=True)
def no_processes_for_matlab_files(request, monkeypatch):
    """Whole .mat files are read in this process, which is faster; `test_damaged_files` reads as users do."""
    if not request.module.__name__.endswith("test_damaged_files"):
        monkeypatch.setattr(
            benchmarks.data.files, "_load_matlab", lambda path, options: loadmat(path, **options)
        )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Those of runs that a module shares are enough: they are made before, and take as long as a training."""
    monkeypatch.setattr(session, "save_pictures", lambda *given: None)


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    """Pictures after all."""
    monkeypatch.setattr(session, "save_pictures", SAVE_PICTURES)
