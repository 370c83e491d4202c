"""A benchmark as a command: its messages, its folders, its device, and the facts of a run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NoReturn, TypeVar

from pml_posets._io import atomic_write, check_folder
from pml_posets._memory import keep_freed_memory

T = TypeVar("T")
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-metric-learning",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "pillow",
    "scikit-image",
    "scikit-learn",
)
ROOT = Path(__file__).resolve().parents[2]


def run_command(main: Callable[[], int], name: str) -> NoReturn:
    """Run a benchmark as a command; `main` returns the exit status, errors are told as by `told`."""
    keep_freed_memory()
    sys.exit(told(main, name))


def told(function: Callable[[], T], name: str) -> T:
    """Call a function; an error that a user can mend ends the command with one message, and status 1.

    The message begins with the name; of several processes each says what has ended it, with its number.
    """
    name += f" (process {os.environ['RANK']})" if several_processes() else ""
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped; --resume with the same --output goes on")
    except Exception as error:
        of_ranks = type(error).__name__ == "RankError"  # whose module imports torch
        if not isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)) and not of_ranks:
            raise
        text = str(error)
        if text.startswith("Caught "):  # in a worker process: torch puts a traceback before the message
            text = text.rstrip().splitlines()[-1].partition(": ")[2]
        sys.exit(f"{name}: {text}")


def several_processes() -> bool:
    """True if torchrun has started this process beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


# --- Files and folders


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    try:
        with atomic_write(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): free some space, or change the permissions of "
            "its folder"
        ) from error


def output_folder(path: str | Path, option: str = "--output") -> Path:
    """Make a folder, given by an option, and see that it can be written to, before any work is done."""
    try:
        return check_folder(path)
    except OSError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise OSError(
            f"cannot write to the output folder {path} ({reason}): free some space, change its permissions, "
            f"or choose another {option}"
        ) from error


@contextmanager
def no_empty_folders(*folders: Path) -> Iterator[None]:
    """After an error, remove those of the folders and their parents that are new and empty."""
    made = {one for folder in folders for one in (folder, *folder.parents) if not one.exists()}
    try:
        yield
    except BaseException:
        inside = {path for folder in folders if folder in made for path in folder.rglob("*") if path.is_dir()}
        for folder in sorted(made | inside, key=lambda one: len(one.parts), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # it was not made, or is not empty
                continue
        raise


# --- Facts of a run


def command() -> str:
    """The command line of this process, the interpreter by its name alone."""
    interpreter, *rest = sys.orig_argv or [sys.executable, *sys.argv]
    return shlex.join([Path(interpreter).name, *rest])


@cache
def commit() -> str:
    """The commit of the checkout this runs from, "+" behind it when sources differ; "unknown" outside of one.

    It is looked up once in a process: call it at the start of a run, for the code that the run began with.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "*.py", "setup.cfg")
    return "unknown" if head is None or changed is None else head + ("+" if changed else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    import pml_posets

    found = {"python": platform.python_version(), "pml-posets": pml_posets.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> str:
    """What a run ran on, in words."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str) -> str:
    """`auto` becomes cuda if this machine has it, else cpu."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:0, cuda:1, ..., got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: {count or 'no'} CUDA device(s) found; use --device cpu")
    return name


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
