"""Fixtures of the tests of the benchmarks."""

import pytest
from scipy.io import loadmat

import benchmarks.data.files


@pytest.fixture(autouse=True)
def no_processes_for_matlab_files(request, monkeypatch):
    """Whole .mat files are read in this process, which is faster; `test_damaged_files` reads as users do."""
    if not request.module.__name__.endswith("test_damaged_files"):
        monkeypatch.setattr(
            benchmarks.data.files, "_load_matlab", lambda path, options: loadmat(path, **options)
        )
