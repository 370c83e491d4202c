"""The benchmarks under torchrun: two real processes against one, a kill, another number of processes."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from benchmark_runs import as_of_several_processes, quick, rows_of, weights
from learning_runs import SHORT, START

from benchmarks import deeppose, olympic, retrieval
from benchmarks.core import common, losses, methods, networks, session
from benchmarks.core.groupings import Plan
from pml_posets.distributed.process_group import RankError, rank
from pml_posets.training.joint import JointTrainer
from pml_posets.training.objectives import PML_LOSSES

ROOT = Path(__file__).resolve().parents[2]
# Without batch norm (of which a process takes the statistics of its part) and augmentation (drawn for
# its part) the weights of several processes are those of one, but for the order of sums.
CHOSEN = ["--figures", "tiny", "--method", "hog-lda", "start", "posets", "--seed", 0]
CHOSEN += ["--trunk", "benchmark_runs:without_norm", "--brightness", 0, "--color", 0, "--gray", 0]
WATCHED = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}]
from benchmark_runs import as_of_several_processes
from benchmarks import olympic
from benchmarks.core import common, logs, session
from benchmarks.figures import dataset
from pml_posets.data.cache import FeatureCache
from pml_posets.data.image_store import ImageStore

rank, home = int(os.environ["RANK"]), Path(sys.argv[1])
if rank:  # what it says
    sys.stdout, sys.stderr = open(home / "out", "w"), open(home / "err", "w")

def watch(owner, name):
    function = getattr(owner, name)
    def watched(*given, **more):
        with open(home / f"writes-{{rank}}", "a") as file:
            print(name, file=file)
        return function(*given, **more)
    setattr(owner, name, watched)

watch(dataset, "_render")
watch(ImageStore, "_make")
watch(FeatureCache, "save")
watch(session, "write_results")
watch(common, "write_text")
watch(logs.RunLog, "__init__")

def main():
    status = olympic.main(sys.argv[2:])
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads  # they would abort at the end, at times
    return status

with as_of_several_processes(home):
    common.run_command(main, "olympic.py")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the run of one process."""
    home = tmp_path_factory.mktemp("one")
    with as_of_several_processes(home):
        assert olympic.main(quick(home / "cache", home / "run", *CHOSEN)) == 0
    return home


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the run of two processes, with a cache of its own; and what was printed."""
    home = tmp_path_factory.mktemp("two")
    arguments = [a for a in quick(home / "cache", home / "run", *CHOSEN) if a != "--quiet"]
    script = home / "watched.py"
    script.write_text(WATCHED)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(home)]
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},  # says where a rank aborts
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = (home / "err").read_text() if (home / "err").exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n\n{said}"
    return home, done


# --- Two processes are one


def test_the_rows_of_two_processes_are_those_of_one(two, alone):
    found, expected = rows_of(two[0] / "run"), rows_of(alone / "run")
    assert list(found) == list(expected) == [("hog-lda", 0), ("start", 0), ("posets", 0)]
    for key in (("hog-lda", 0), ("start", 0)):
        assert found[key]["metrics"] == expected[key]["metrics"]  # bit for bit
        assert found[key]["settings"] == expected[key]["settings"]
    posets, wanted = found["posets", 0], expected["posets", 0]
    assert posets["settings"] == {**wanted["settings"], "processes": 2}
    assert posets["metrics"] == pytest.approx(wanted["metrics"], abs=2e-3)


def test_the_groups_are_equal_on_all_ranks_and_those_of_one_process(two, alone):
    first = np.load(alone / "groups-0-0.npy")
    assert first.max() > 1
    for of_rank in (0, 1):
        np.testing.assert_array_equal(np.load(two[0] / f"groups-{of_rank}-0.npy"), first)
    second = [np.load(two[0] / f"groups-{of_rank}-1.npy") for of_rank in (0, 1)]
    np.testing.assert_array_equal(*second)


def test_rank_0_alone_writes_prints_and_shows_progress(two, alone):
    home, done = two
    writes = (home / "writes-0").read_text().split()
    for name in ("_render", "_make", "save", "__init__"):
        assert writes.count(name) == (2 if name == "save" else 1)  # HOG, and what motion shows
    assert writes.count("write_results") == 3
    assert not (home / "writes-1").exists()
    assert done.stdout.count("36 frames, 2 categories") == 1
    assert len(re.findall(r"^posets +seed 0  AUC", done.stdout, flags=re.MULTILINE)) == 1
    assert done.stdout.count("after round 1") == 1
    assert "round 2 of 2" in done.stderr
    assert (home / "out").read_text() == ""
    assert "%|" not in (home / "err").read_text()
    there, expected = (
        {str(path.relative_to(one)) for path in one.rglob("*") if "tfevents" not in path.name}
        for one in (home / "run", alone / "run")
    )
    assert there == expected
    logged = (home / "run" / "posets-seed0" / "logs" / "losses.csv").read_text().splitlines()
    assert len(logged) == 1 + 2


def killed(home, arguments):
    """The benchmark in this process; rank 1 kills itself after two iterations."""
    record = JointTrainer._record

    def kill(joint, bar):
        record(joint, bar)
        if rank() == 1 and joint.global_iteration + 1 == 2:
            (home / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    with as_of_several_processes(home) as patch:
        patch.setattr(JointTrainer, "_record", kill)
        return olympic.main(arguments)


def test_a_killed_rank_ends_the_run_and_one_process_goes_on(two, alone, tmp_path):
    arguments = quick(two[0] / "cache", tmp_path / "run", *CHOSEN)
    first, second = ranks.run(2, killed, tmp_path, arguments, joined=False)
    assert time.time() - float((tmp_path / "killed").read_text()) < 30
    assert second == ("dead", -signal.SIGKILL)
    assert first[0] == "error"
    assert "RankError: rank 0 of 2 goes no further" in first[1]
    assert list(rows_of(tmp_path / "run")) == [("hog-lda", 0), ("start", 0)]
    assert not list((two[0] / "cache").glob(".*"))  # nothing half made
    with as_of_several_processes(tmp_path):
        assert olympic.main([*arguments, "--resume"]) == 0
    posets, expected = (rows_of(home / "run")["posets", 0] for home in (tmp_path, alone))
    assert "processes" not in posets["settings"]
    assert posets["metrics"] == pytest.approx(expected["metrics"], abs=2e-3)
    found, wanted = (weights(home / "run" / "posets-seed0") for home in (tmp_path, alone))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


# --- What several processes cannot do


@pytest.mark.parametrize("method", methods.OF_ONE_PROCESS)
def test_objectives_are_refused_before_any_work(method, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "world_size", lambda: 2)
    monkeypatch.setattr(retrieval, "prepare", None)
    text = rf"--method {re.escape(method)}: an objective .* of the 2 processes alone: .* without torchrun"
    with pytest.raises(ValueError, match=text):
        retrieval.main(quick(tmp_path / "cache", tmp_path / "run", "--method", "hog", method))
    assert list(tmp_path.iterdir()) == []


def test_batches_that_cannot_be_shared_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "world_size", lambda: 3)
    monkeypatch.setattr(olympic, "prepare", None)
    arguments = quick(tmp_path / "cache", tmp_path / "run", "--batch-size", 16, "--method")
    with pytest.raises(ValueError, match=r"a multiple of the 3 processes, .* got 16: use 15"):
        olympic.main([*arguments, "posets"])
    with pytest.raises(TypeError):  # the data are read then, which are None here
        olympic.main([*arguments, "hog"])


def test_the_methods_of_one_process_are_those_with_an_objective():
    models = networks.build(SHORT.architecture, 0)
    models["trunk"] = torch.nn.Sequential(torch.nn.Identity(), models["trunk"])
    plan = Plan(START, SHORT, models, 0)
    parts = {name: losses.build(name, plan).losses for name in methods.LEARNED}
    assert tuple(name for name, found in parts.items() if {*found} - {*PML_LOSSES}) == methods.OF_ONE_PROCESS


def test_a_regressor_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in one process: start it by python, without torchrun"):
        deeppose.main([])


# --- Each process


def test_each_process_takes_its_own_device_and_the_first_one_s_folder(tmp_path, monkeypatch):
    class Read(Exception):
        pass

    def prepare(given):
        assert (given.device, given.output, given.progress) == ("cuda:1", tmp_path / "of-0", True)
        raise Read

    given = olympic.parse(["--method", "hog", "--device", "cpu", "--output", str(tmp_path / "o")])

    @contextmanager
    def joined(device):
        assert device == "cpu"
        yield torch.device("cuda", 1)  # as LOCAL_RANK says

    monkeypatch.setattr(session, "from_environment", joined)
    monkeypatch.setattr(session, "broadcast_object", lambda one: replace(one, output=tmp_path / "of-0"))
    with pytest.raises(Read):
        session.run(given, "figures-full", prepare)


def test_errors_say_whose_they_are(monkeypatch):
    def fail():
        raise RankError("rank 1 of 2 goes no further: rank 0 has failed")

    with pytest.raises(SystemExit, match=r"^olympic.py: rank 1 of 2"):
        common.run_command(fail, "olympic.py")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"^olympic.py \(process 1\): rank 1 of 2 goes no further"):
        common.run_command(fail, "olympic.py")
