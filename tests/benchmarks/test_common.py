"""What the benchmarks share: the results file, the output folder, the facts of a run, tables."""

import errno
import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import pml_posets
from benchmarks.core import common
from benchmarks.core.common import Result, read_results, write_results

KEYS = ["method", "dataset", "metrics", "settings", "seed", "command", "commit", "versions", "seconds"]


def result(method="posets", auc=0.5, seed=0, dataset="figures", **rest):
    return Result(
        method, dataset, {"auc": auc}, rest.pop("settings", {"rounds": 3}), seed, seconds=1.5, **rest
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.json"


def refuse(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- results.json


def test_the_file_is_a_list_of_rows_with_exactly_these_keys(path):
    write_results(path, [result(), result("hog", 0.6, 1)])
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [KEYS, KEYS]
    row = rows[1]
    assert (row["method"], row["dataset"], row["metrics"], row["settings"], row["seed"], row["seconds"]) == (
        "hog", "figures", {"auc": 0.6}, {"rounds": 3}, 1, 1.5,
    )  # fmt: skip
    assert row["command"] == common.command()
    assert row["commit"] == common.commit()
    assert row["versions"] == common.versions()


def test_what_is_written_is_read(path):
    results = [result(auc=0.1 + 0.2), result(commit="abc", command="c", versions={"python": "3"})]
    write_results(path, results)
    assert read_results(path) == results
    write_results(path, [])
    assert path.read_text() == "[]\n"
    assert read_results(path) == []


def test_no_file_is_no_rows(path):
    assert read_results(path) == []


def test_settings_become_plain(path):
    settings = {
        "path": Path("a/b"),
        "lr": np.float32(0.5),
        "ids": np.arange(3),
        "sizes": (1, np.int64(2)),
        "range": range(2),
        "none": None,
        "on": True,
        "dtype": torch.bfloat16,
        "tensor": torch.tensor([1.5]),
        "deep": {1: [np.bool_(False)], "inf": math.inf},
    }
    write_results(path, [result(auc=np.float32(0.25), settings=settings)])
    row = json.loads(path.read_text())[0]
    assert row["metrics"] == {"auc": 0.25}
    assert row["settings"] == {
        "path": "a/b",
        "lr": 0.5,
        "ids": [0, 1, 2],
        "sizes": [1, 2],
        "range": [0, 1],
        "none": None,
        "on": True,
        "dtype": "torch.bfloat16",
        "tensor": [1.5],
        "deep": {"1": [False], "inf": "inf"},
    }


def test_a_setting_that_is_not_plain_is_refused(path):
    with pytest.raises(TypeError, match="a Linear does not go into a results file"):
        write_results(path, [result(settings={"model": torch.nn.Linear(1, 1)})])
    assert not path.exists()


def test_measures_that_are_not_defined_are_null_and_read_as_nan(path):
    write_results(path, [result(auc=math.nan)])

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=no_constant)[0]["metrics"] == {"auc": None}
    assert math.isnan(read_results(path)[0].metrics["auc"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"3",
        b'{"method": "posets"}',
        b"[3]",
        b'[{"method": "posets"}]',
    ],
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is no results file \(.+\): move it away or choose"):
        read_results(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", [lambda row: row.pop("commit"), lambda row: row.update(auc=0.5)])
def test_rows_with_other_keys_are_refused(path, change):
    write_results(path, [result(), result()])
    rows = json.loads(path.read_text())
    change(rows[1])
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="row 1 does not have the keys command, commit, dataset"):
        read_results(path)


@pytest.mark.parametrize("metrics", [{"auc": "high"}, {"auc": [1]}, 0.5])
def test_rows_with_other_measures_are_refused(path, metrics):
    write_results(path, [result()])
    rows = json.loads(path.read_text())
    rows[0]["metrics"] = metrics
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="is no results file"):
        read_results(path)


def test_a_file_that_cannot_be_read_is_told(path, monkeypatch):
    def denied(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(OSError, match=r"cannot read the results file .*results\.json \(Permission denied\)"):
        read_results(path)
    monkeypatch.undo()
    path.mkdir()
    with pytest.raises(OSError, match=r"cannot read the results file"):
        read_results(path)


# --- whole or not at all


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch, step):
    write_results(path, [result()])
    before = path.read_bytes()
    monkeypatch.setattr(common.os, step, refuse)
    with pytest.raises(OSError, match=r"cannot write .*results.json \(No space left on device\): free some"):
        write_results(path, [result("hog")] * 5)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_row_that_fails_leaves_the_old_file(path):
    write_results(path, [result()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_results(path, [result(), result(settings={"bad": object()})])
    assert path.read_bytes() == before


def test_the_file_appears_whole(path, monkeypatch):
    seen = []
    replace = os.replace

    def watching(source, target):
        seen.append((Path(target).exists(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(common.os, "replace", watching)
    common.write_text(path, "all of it: ü\n")
    assert seen == [(False, "all of it: ü\n")]
    assert path.read_text(encoding="utf-8") == "all of it: ü\n"


def test_others_may_read_the_file(path):
    before = os.umask(0o022)
    try:
        write_results(path, [result()])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


# --- a command


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("--rounds must be 1 or more\n- and more"),
            "a.py: --rounds must be 1 or more\n- and more",
        ),
        (OSError("no room"), "a.py: no room"),
        (ImportError("plots need matplotlib"), "a.py: plots need matplotlib"),
        (FloatingPointError("total_loss became nan"), "a.py: total_loss became nan"),
        (
            OSError(
                "Caught UnreadableImageError in DataLoader worker process 0.\nOriginal Traceback (most "
                'recent call last):\n  File "x.py", line 1\nOSError: it\n\nThe above exception was ...\n'
                "pml_posets.data.datasets.UnreadableImageError: frame 5 cannot be read (a.jpg): cut off\n"
            ),
            "a.py: frame 5 cannot be read (a.jpg): cut off",
        ),
        (KeyboardInterrupt(), "a.py: stopped; --resume with the same --output goes on"),
    ],
)
def test_a_command_ends_with_a_message(error, said):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        common.run_command(main, "a.py")
    assert stop.value.code == said


def test_a_command_passes_its_status_and_faults_of_its_own_on():
    with pytest.raises(SystemExit) as stop:
        common.run_command(lambda: 0, "a.py")
    assert stop.value.code == 0

    def main():
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        common.run_command(main, "a.py")


# --- the output folder


def test_the_output_folder_is_made_and_left_empty(tmp_path):
    folder = common.output_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert os.listdir(folder) == []
    (folder / "kept").write_text("x")
    assert common.output_folder(folder) == folder
    assert os.listdir(folder) == ["kept"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device")]
)
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch, code, words):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(common, "open", fail, raising=False)
    with pytest.raises(
        OSError, match=rf"cannot write to the output folder .*out \({words}\): free .* another --output"
    ):
        common.output_folder(tmp_path / "out")


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*out \(File exists\)"):
        common.output_folder(tmp_path / "out")
    with pytest.raises(OSError, match=r"cannot write to the output folder .* or choose another --cache"):
        common.output_folder(tmp_path / "out" / "deeper", "--cache")


# --- facts of a run


def test_the_commit_is_git_s():
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=common.ROOT, capture_output=True, text=True, check=False
    )
    common._commit.cache_clear()
    if git.returncode:
        assert common.commit() == "unknown"
    else:
        assert common.commit().removesuffix("+") == git.stdout[:12]


@pytest.mark.parametrize(("status", "expected"), [("", "0123456789ab"), (" M a.py\n", "0123456789ab+")])
def test_changed_sources_are_marked(monkeypatch, status, expected):
    def git(command, **options):
        assert options["cwd"] == common.ROOT
        out = "0123456789ab\n" if command[1] == "rev-parse" else status
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(common.subprocess, "run", git)
    common._commit.cache_clear()
    try:
        assert common.commit() == expected
        monkeypatch.setattr(common.subprocess, "run", refuse)
        assert common.commit() == expected  # that of the start, whatever happens to the checkout since
        common._commit.cache_clear()
        assert common.commit() == "unknown"  # no git
    finally:
        common._commit.cache_clear()


def test_the_command_has_no_path_of_the_interpreter(monkeypatch):
    monkeypatch.setattr(
        sys, "orig_argv", ["/somewhere/bin/python3", "-m", "benchmarks.olympic", "--output", "a b"]
    )
    assert common.command() == "python3 -m benchmarks.olympic --output 'a b'"
    assert result().command == common.command()


def test_versions():
    found = common.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["pml-posets"] == pml_posets.__version__
    assert found["torch"] == metadata.version("torch")
    assert all(isinstance(version, str) for version in found.values())


def test_hardware_and_device():
    assert "CPU" in common.hardware("cpu")
    assert common.pick_device("cpu") == "cpu"
    assert common.pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"--device must be auto, cpu, cuda or .* got 'gpu'"):
        common.pick_device("gpu")
    with pytest.raises(ValueError, match=r"--device cuda:99: .* CUDA device\(s\) found; use --device cpu"):
        common.pick_device("cuda:99")


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    assert [common.pick_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    assert common.hardware("cuda:1") == "a GPU at cuda:1"
    with pytest.raises(ValueError, match=r"--device cuda:2: 2 CUDA"):
        common.pick_device("cuda:2")


# --- summaries and tables


def test_summary_is_the_mean_and_deviation_over_seeds():
    rows = [result("posets", auc, seed) for seed, auc in enumerate((0.5, 0.6, 0.7))] + [result("hog", 0.4)]
    rows.append(Result("none", "other data", {"pcp": 1.0}, {}, 0, seconds=0))
    found = common.summary(rows, "auc")
    assert list(found) == ["posets", "hog"]
    assert found["posets"] == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert found["hog"] == (0.4, 0.0, 1)
    assert common.summary(rows, "map") == {}


def test_a_summary_over_several_datasets_is_refused():
    with pytest.raises(ValueError, match="a summary is of one dataset, got a, b: filter the rows"):
        common.summary([result(dataset="b"), result(dataset="a")], "auc")


def test_a_table_is_aligned_markdown():
    assert common.table(["method", "a"], [["posets", "0.61"], ["x|y", "1"]]).splitlines() == [
        "| method | a    |",
        "|--------|------|",
        "| posets | 0.61 |",
        "| x\\|y   | 1    |",
    ]
    assert common.table(["a"], []) == "| a   |\n|-----|"


@pytest.mark.parametrize("row", [["one"], ["one", "two", "three"]])
def test_rows_that_do_not_fit_the_header_are_refused(row):
    with pytest.raises(ValueError, match=r"row 1 has \d cells, the header has 2"):
        common.table(["a", "b"], [["1", "2"], row])
