"""The benchmarks under torchrun: two real processes against one, a kill, another number of processes."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from benchmark_runs import FIGURES, THIN, few_patches, quick, rows_of, weights

from benchmarks import deeppose, olympic, retrieval
from benchmarks.core import alexnet, common, losses, methods, networks, options, session
from benchmarks.core.groupings import Plan, Start
from benchmarks.core.recipes import PRESETS
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.distributed.process_group import RankError, rank
from pml_posets.training.joint import JointTrainer
from pml_posets.training.objectives import PML_LOSSES

ROOT = Path(__file__).resolve().parents[2]
# Without batch norm (of which a process takes the statistics of its part) and augmentation (drawn for
# its part) the weights of several processes are those of one, but for the order of sums.
CHOSEN = ["--figures", "tiny", "--method", "hog-lda", "start", "posets", "--seed", 0, "--no-batch-norm"]
CHOSEN += ["--brightness", 0, "--color", 0, "--gray", 0]
WATCHED = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}]
import numpy as np
import torch
from benchmark_runs import FIGURES, THIN, few_patches
from benchmarks import olympic
from benchmarks.core import alexnet, common, logs, options, session
from benchmarks.figures import dataset
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.cache import FeatureCache
from pml_posets.data.image_store import ImageStore
from pml_posets.training.joint import JointTrainer

rank, home = int(os.environ["RANK"]), Path(sys.argv[1])
if rank:  # what it says
    sys.stdout, sys.stderr = open(home / "out", "w"), open(home / "err", "w")
options.FIGURE_SIZES["tiny"], alexnet.WIDTHS = FIGURES, THIN

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
y_step = JointTrainer._y_step
def noted(joint):
    y_step(joint)
    np.save(home / f"groups-{{rank}}-{{joint.round}}.npy", joint.posets.labels)
JointTrainer._y_step = noted
BatchAugmentation._move = lambda self, images: images

def main():
    status = olympic.main(sys.argv[2:])
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads  # they would abort at the end, at times
    return status

with few_patches():
    common.run_command(main, "olympic.py")
"""


def killed(home, arguments):
    """The benchmark in this process; rank 1 kills itself after two iterations."""
    options.FIGURE_SIZES["tiny"], alexnet.WIDTHS = FIGURES, THIN
    record = JointTrainer._record

    def kill(joint, bar):
        record(joint, bar)
        if rank() == 1 and joint.global_iteration + 1 == 2:
            (home / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    BatchAugmentation._move, JointTrainer._record = (lambda self, images: images), kill
    with few_patches():
        return olympic.main(arguments)


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    """Those that are drawn, and not moved; and one thread, as the processes have."""
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)
    monkeypatch.setattr(BatchAugmentation, "_move", lambda self, images: images)
    torch.set_num_threads(1)


@dataclass
class Run:
    """Rows of a run, its groups by round, and where it lies."""

    folder: Path
    rows: dict
    groups: list


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    home, groups = tmp_path_factory.mktemp("one"), []
    y_step = JointTrainer._y_step

    def noted(joint):
        y_step(joint)
        groups.append(joint.posets.labels)

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, few_patches():
        patch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)
        patch.setattr(BatchAugmentation, "_move", lambda self, images: images)
        patch.setattr(JointTrainer, "_y_step", noted)
        torch.set_num_threads(1)
        assert olympic.main(quick(home / "cache", home / "run", *CHOSEN)) == 0
    torch.set_num_threads(threads)
    return Run(home / "run", rows_of(home / "run"), groups)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The run of two processes, with a cache of its own; and what was printed."""
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
    groups = [[np.load(home / f"groups-{r}-{n}.npy") for n in range(2)] for r in range(2)]
    return Run(home / "run", rows_of(home / "run"), groups), home, done


# --- Two processes are one


def test_the_rows_of_two_processes_are_those_of_one(two, alone):
    found, expected = two[0].rows, alone.rows
    assert list(found) == list(expected) == [("hog-lda", 0), ("start", 0), ("posets", 0)]
    for key in (("hog-lda", 0), ("start", 0)):
        assert found[key]["metrics"] == expected[key]["metrics"]  # bit for bit
        assert found[key]["settings"] == expected[key]["settings"]
    posets = found["posets", 0]
    assert posets["settings"] == {**expected["posets", 0]["settings"], "processes": 2}
    assert posets["metrics"] == pytest.approx(expected["posets", 0]["metrics"], abs=2e-3)


def test_the_groups_are_equal_on_all_ranks_and_those_of_one_process(two, alone):
    assert len(alone.groups) == 2
    assert alone.groups[0].max() > 1
    for of_rank in two[0].groups:
        np.testing.assert_array_equal(of_rank[0], alone.groups[0])
        np.testing.assert_array_equal(of_rank[1], two[0].groups[0][1])


def test_rank_0_alone_writes_prints_and_shows_progress(two, alone):
    run, home, done = two
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
    there = {
        str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if "tfevents" not in path.name
    }
    assert there == {
        str(path.relative_to(alone.folder)) for path in alone.folder.rglob("*") if "tfevents" not in path.name
    }
    logged = (run.folder / "posets-seed0" / "logs" / "losses.csv").read_text().splitlines()
    assert len(logged) == 1 + 2


def test_a_killed_rank_ends_the_run_and_one_process_goes_on(two, alone, tmp_path):
    arguments = quick(two[1] / "cache", tmp_path / "run", *CHOSEN)
    first, second = ranks.run(2, killed, tmp_path, arguments, joined=False)
    assert time.time() - float((tmp_path / "killed").read_text()) < 30
    assert second == ("dead", -signal.SIGKILL)
    assert first[0] == "error"
    assert "RankError: rank 0 of 2 goes no further" in first[1]
    assert list(rows_of(tmp_path / "run")) == [("hog-lda", 0), ("start", 0)]
    assert not list((two[1] / "cache").glob(".*"))  # nothing half made
    with few_patches():
        assert olympic.main([*arguments, "--resume"]) == 0
    rows = rows_of(tmp_path / "run")
    assert "processes" not in rows["posets", 0]["settings"]
    assert rows["posets", 0]["metrics"] == pytest.approx(alone.rows["posets", 0]["metrics"], abs=2e-3)
    found, expected = (weights(run / "posets-seed0") for run in (tmp_path / "run", alone.folder))
    for name, value in expected.items():
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
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((24, 6)).astype(np.float32)
    start = Start(rows, labels=np.arange(24) % 3, num_clusters=3)
    recipe = replace(PRESETS["tiny"], batch_size=12, fc_dim=8, mirror_images=False, samples_per_cluster=2)
    models = networks.build(recipe.architecture, 0)
    models["trunk"] = torch.nn.Sequential(torch.nn.Identity(), models["trunk"])
    found = []
    for name in methods.LEARNED:
        parts = losses.build(name, Plan(start, recipe, models, 0))
        if any(one not in PML_LOSSES for one in parts.losses):
            found.append(name)
    assert sorted(found) == sorted(methods.OF_ONE_PROCESS)


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
