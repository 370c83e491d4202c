"""Fixtures of the tests of the benchmarks."""

import pytest
from scipy.io import loadmat

import benchmarks.data.files
from benchmarks.core import session


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
