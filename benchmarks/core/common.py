"""What every benchmark shares: its results file, its output folder, its tables and the facts of a run."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

import pml_posets
from pml_posets._io import atomic_write
from pml_posets.distributed.process_group import RankError

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


@dataclass
class Result:
    """One row of `results.json`; its fields are the row's keys.

    Args:
        method: name of the method, as given to `--method`.
        dataset: name of the data.
        metrics: name of each measure to its value; NaN where it is not defined.
        settings: every option that the numbers depend on.
        seed: of the run.
        command: the command line of the run. Default: that of this process.
        commit: of the checkout. Default: see `commit`.
        versions: of Python and of the packages. Default: see `versions`.
        seconds: wall-clock time of the method, training and evaluation.
    """

    method: str
    dataset: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    seed: int
    command: str = field(default_factory=lambda: command(), kw_only=True)
    commit: str = field(default_factory=lambda: commit(), kw_only=True)
    versions: dict[str, str] = field(default_factory=lambda: versions(), kw_only=True)
    seconds: float = field(kw_only=True)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write the rows as a JSON list, whole or not at all.

    Args:
        path: the file, in a folder that exists.
        results: the rows. A metric that is NaN or infinite is written as null, a setting that is as a string:
            JSON has no such numbers.

    Raises:
        OSError: if it cannot be written; an older file stays as it was.
        TypeError: for a setting that is no plain value, array, path or dtype.
    """
    rows = []
    for result in results:
        metrics = {name: float(value) for name, value in result.metrics.items()}
        row = plain_values({**asdict(result), "metrics": {}})
        row["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        rows.append(row)
    write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> list[Result]:
    """The rows of a results file; none if there is no file.

    Raises:
        ValueError: if the file is no results file.
        OSError: if it cannot be read.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OSError(
            f"cannot read the results file {path} ({error.strerror}): change its permissions, move it away, "
            "or choose another --output"
        ) from error
    names = {item.name for item in fields(Result)}
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError(f"expected a list of rows, got a {type(rows).__name__}")
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not isinstance(row.get("metrics"), dict) or set(row) != names:
                raise ValueError(f"row {number} does not have the keys {', '.join(sorted(names))}")
            row["metrics"] = {k: math.nan if v is None else float(v) for k, v in row["metrics"].items()}
        return [Result(**row) for row in rows]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no results file ({error}): move it away or choose another --output"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OSError: if it cannot be written, with its name; an older file stays as it was.
    """
    path = Path(path)
    try:
        with atomic_write(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): free some space, or change the permissions of "
            "its folder"
        ) from error


def run_command(main: Callable[[], int], name: str) -> NoReturn:
    """Run a benchmark as a command: errors that a user can mend end it with one message, and status 1.

    Of several processes each says what has ended it, with its number.

    Args:
        main: the benchmark; returns the exit status.
        name: what the message begins with.
    """
    name += f" (process {os.environ['RANK']})" if several_processes() else ""
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError, FloatingPointError, RankError) as error:
        text = str(error)
        if text.startswith("Caught "):  # in a worker process: torch puts a traceback before what was said
            text = text.rstrip().splitlines()[-1].partition(": ")[2]
        sys.exit(f"{name}: {text}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped; --resume with the same --output goes on")


def several_processes() -> bool:
    """True if torchrun has started this process beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def output_folder(path: str | Path, option: str = "--output") -> Path:
    """Make the output folder and see that it can be written to, before any work is done.

    Args:
        path: the folder.
        option: the option it was given by, for the message.

    Raises:
        OSError: if it cannot, with what to do.
    """
    folder = Path(path)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("yes\n")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({error.strerror or error}): "
            f"free some space, change its permissions, or choose another {option}"
        ) from error
    return folder


def command() -> str:
    """The command line of this process, the interpreter by its name alone."""
    interpreter, *rest = sys.orig_argv or [sys.executable, *sys.argv]
    return shlex.join([Path(interpreter).name, *rest])


def commit() -> str:
    """The commit of the checkout this runs from, "+" behind it when sources differ; "unknown" outside of one.

    It is looked up once in a process: a run that calls this as it starts is told by the code it started with.
    """
    return _commit()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
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
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def pick_device(name: str) -> str:
    """`auto` becomes cuda where there is one, else cpu.

    Raises:
        ValueError: for a device that is not there, or no device at all.
    """
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


def summary(results: Iterable[Result], metric: str) -> dict[str, tuple[float, float, int]]:
    """Mean, standard deviation (over seeds, n - 1) and number of rows of a measure, by method.

    Args:
        results: rows of one dataset; those without the measure are left out.
        metric: name of the measure.

    Returns:
        Method to (mean, standard deviation, rows), in the order of the rows; the deviation of one row is 0.

    Raises:
        ValueError: if the rows are of several datasets, whose mean would say nothing.
    """
    values: dict[str, list[float]] = {}
    datasets = set()
    for result in results:
        if metric in result.metrics:
            datasets.add(result.dataset)
            values.setdefault(result.method, []).append(result.metrics[metric])
    if len(datasets) > 1:
        raise ValueError(f"a summary is of one dataset, got {', '.join(sorted(datasets))}: filter the rows")
    return {
        method: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, len(v))
        for method, v in values.items()
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns.

    Raises:
        ValueError: for a row with more or fewer cells than the header.
    """
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header has {len(header)}: {list(row)}")
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def plain_values(value: Any) -> Any:
    """A value as JSON can hold it, and as `read_results` gives it back.

    Raises:
        TypeError: for what is no plain value, array, path, dtype or device.
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_values(item) for item in value]
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"a {type(value).__qualname__} does not go into a results file: use numbers, strings, lists or dicts"
    )


@cache
def _commit() -> str:
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "*.py", "setup.cfg")
    return "unknown" if head is None or changed is None else head + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
