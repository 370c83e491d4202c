"""What a y-step is expected to need, what the machine or its container has left, and what is freed."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from refusals import no_warning

from pml_posets import _memory as memory
from pml_posets.distributed import process_group
from pml_posets.grouping.surrogate import SurrogateGrouping

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GiB in all and 6 to be had, and a container to be described by the test."""
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 5 kB\nMemAvailable: 6291456 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    names = [tuple(names) for _, *names in memory._CGROUPS]
    monkeypatch.setattr(memory, "_CGROUPS", tuple((tmp_path, *pair) for pair in names))

    def contained(version, limit, used, **stat):
        limit_file, used_file = names[version]
        (tmp_path / limit_file).write_text(f"{limit}\n")
        (tmp_path / used_file).write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))

    return contained


@pytest.mark.parametrize(
    ("version", "stat"),
    [
        (0, {"anon": 90 * MIB, "active_file": 300 * MIB, "inactive_file": 600 * MIB}),
        (1, {"total_inactive_file": 600 * MIB, "total_active_file": 300 * MIB, "inactive_file": 7}),
    ],
)
def test_pages_of_files_are_not_in_use(machine, version, stat):
    machine(version, 1024 * MIB, 1000 * MIB, **stat)
    assert memory.available_bytes() == 924 * MIB
    with no_warning():
        memory.warn_if_short(900 * MIB, "a y-step")


def test_without_a_limit_the_machine_counts(machine):
    assert memory.available_bytes() == 6144 * MIB
    for version, limit in ((0, "max"), (1, 2**63 - 4096)):
        machine(version, limit, 1000 * MIB, active_file=0)
        assert memory.available_bytes() == 6144 * MIB


def test_a_shortage_is_warned_of_and_only_the_impossible_refused(machine):
    machine(0, 1024 * MIB, 1000 * MIB, active_file=0, inactive_file=0)
    with pytest.warns(ResourceWarning, match="a y-step needs about 104,857,600 bytes, and 25,165,824 seem"):
        memory.warn_if_short(100 * MIB, "a y-step")
    with pytest.warns(ResourceWarning, match="seem to be available"):
        memory.warn_if_short(5000 * MIB, "a y-step", certain=1024 * MIB)
    text = "takes 1,073,741,825 bytes at least, and this machine has 1,073,741,824 in all: give shorter"
    with pytest.raises(MemoryError, match=text):
        memory.warn_if_short(5000 * MIB, "a y-step", certain=1024 * MIB + 1)


def test_the_ranks_of_a_machine_share_it(machine, monkeypatch):
    monkeypatch.setattr(process_group, "world_size", lambda: 4)
    memory.warn_if_short(1500 * MIB, "a y-step")
    with pytest.warns(ResourceWarning):
        memory.warn_if_short(1600 * MIB, "a y-step")


def test_the_unknown_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUPS", ())
    assert memory.available_bytes() is None
    memory.warn_if_short(10**18, "a y-step", certain=10**18)


def test_a_grouping_warns_and_goes_on(machine):
    features = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    machine(0, 1024 * MIB, 1024 * MIB, active_file=0, inactive_file=0)
    with pytest.warns(ResourceWarning, match="a y-step of 200 x 8 features needs about"):
        labels = SurrogateGrouping().fit_predict(features)
    machine(0, 1024 * MIB, 1024 * MIB, active_file=1000 * MIB, inactive_file=0)
    with no_warning():
        np.testing.assert_array_equal(SurrogateGrouping().fit_predict(features), labels)
    machine(0, 1000, 0, active_file=0, inactive_file=0)
    with pytest.raises(MemoryError, match="this machine has 1,000 in all"):
        SurrogateGrouping().fit(features)


def test_what_is_needed_grows_with_samples_and_dimensions():
    small = memory.y_step_bytes(1000, 64)
    assert memory.y_step_bytes(2000, 64) == 2 * small
    assert memory.y_step_bytes(1000, 64, 64) - small == memory.list_bytes(1000, 32) == 13 * 1000 * 32
    assert memory.y_step_bytes(113_516, 4096) < 4 * 113_516 * 4096


# --- Memory that is freed

PAGES = """
import resource, sys, torch
from pml_posets._memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.zeros(40 * 2**20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(40 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again():
    pages = {
        how: int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, check=True).stdout)
        for how in ("give-back", "keep")
    }
    if pages["give-back"] < 1000:
        pytest.skip("this system gives freed memory back in large pages, or has no glibc")
    assert pages["keep"] < pages["give-back"] / 2


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_keep_their_ways(monkeypatch, error):
    def fails(name):
        raise error("no such library")

    monkeypatch.setattr(ctypes, "CDLL", fails)
    memory.keep_freed_memory()
