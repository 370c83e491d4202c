"""A benchmark as a command: its messages, its folders, its device, the facts of a run."""

import errno
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import pml_posets
from benchmarks.core import common


def refuse(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- a command


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("--rounds is\n- and more"), "a.py: --rounds is\n- and more"),
        (OSError("no room"), "a.py: no room"),
        (ImportError("plots need matplotlib"), "a.py: plots need matplotlib"),
        (FloatingPointError("total_loss became nan"), "a.py: total_loss became nan"),
        (
            OSError(
                "Caught UnreadableImageError in DataLoader worker process 0.\nOriginal Traceback:\n"
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
    with pytest.raises(KeyError):
        common.run_command(lambda: {}["a fault"], "a.py")


# --- the output folder


def test_the_output_folder_is_made_and_left_empty(tmp_path):
    folder = common.output_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert os.listdir(folder) == []
    (folder / "kept").write_text("x")
    assert common.output_folder(folder) == folder
    assert os.listdir(folder) == ["kept"]


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", refuse)
    text = r"cannot write to the output folder .*out \(No space left on device\): free .* another --output"
    with pytest.raises(OSError, match=text):
        common.output_folder(tmp_path / "out")


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*out \(File exists\)"):
        common.output_folder(tmp_path / "out")
    with pytest.raises(OSError, match=r"cannot write to the output folder .* or choose another --cache"):
        common.output_folder(tmp_path / "out" / "deeper", "--cache")


def test_a_run_that_fails_leaves_no_empty_folder(tmp_path):
    def fail(write=None):
        with common.no_empty_folders(tmp_path / "runs" / "olympic", tmp_path / "runs" / "cache"):
            (tmp_path / "runs" / "olympic" / "posets-seed0").mkdir(parents=True)
            (tmp_path / "runs" / "cache").mkdir()
            if write is not None:
                (tmp_path / "runs" / write).write_text("kept")
            raise ValueError("wrong input")

    with pytest.raises(ValueError, match="wrong input"):
        fail()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="wrong input"):
        fail("olympic/results.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "olympic", "results.json"]


def test_a_folder_of_before_is_kept(tmp_path):
    (tmp_path / "out" / "empty").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), common.no_empty_folders(tmp_path / "out"):
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "empty").is_dir()


# --- facts of a run


def test_the_commit_is_git_s():
    git = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(git, cwd=common.ROOT, capture_output=True, text=True, check=False)
    common.commit.cache_clear()
    assert common.commit().removesuffix("+") == ("unknown" if done.returncode else done.stdout[:12])


@pytest.mark.parametrize(("status", "expected"), [("", "0123456789ab"), (" M a.py\n", "0123456789ab+")])
def test_changed_sources_are_marked(monkeypatch, status, expected):
    def git(command, **options):
        assert options["cwd"] == common.ROOT
        out = "0123456789ab\n" if command[1] == "rev-parse" else status
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(common.subprocess, "run", git)
    common.commit.cache_clear()
    try:
        assert common.commit() == expected
        monkeypatch.setattr(common.subprocess, "run", refuse)
        assert common.commit() == expected  # that of the start, whatever happens to the checkout since
        common.commit.cache_clear()
        assert common.commit() == "unknown"  # no git
    finally:
        common.commit.cache_clear()


def test_the_command_has_no_path_of_the_interpreter(monkeypatch):
    given = ["/somewhere/bin/python3", "-m", "benchmarks.olympic", "--output", "a b"]
    monkeypatch.setattr(sys, "orig_argv", given)
    assert common.command() == "python3 -m benchmarks.olympic --output 'a b'"


def test_versions_hardware_and_device():
    found = common.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["pml-posets"] == pml_posets.__version__
    assert found["torch"] == metadata.version("torch")
    assert all(isinstance(version, str) for version in found.values())
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
