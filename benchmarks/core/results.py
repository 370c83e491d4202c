"""The rows of a benchmark: their file, what they may stand beside, and the tables made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.core import common
from benchmarks.core.recipes import Recipe, flag

OF_THE_MACHINE = ("device", "hardware", "processes")
"""Settings that a run may be gone on with under others."""


@dataclass
class Result:
    """One row of `results.json`; its fields are the row's keys.

    Args:
        method: name of the method, as given to `--method`.
        dataset: name of the data.
        metrics: name of each measure to its value; NaN where it is not defined.
        settings: every option that the numbers depend on.
        seed: of the run.
        command, commit, versions: those of this process, see `common`.
        seconds: wall-clock time of the method, training and evaluation.
    """

    method: str
    dataset: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    seed: int
    command: str = field(default_factory=lambda: common.command(), kw_only=True)
    commit: str = field(default_factory=lambda: common.commit(), kw_only=True)
    versions: dict[str, str] = field(default_factory=lambda: common.versions(), kw_only=True)
    seconds: float = field(kw_only=True)


# --- The file


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write the rows as a JSON list, whole or not at all.

    A metric that is NaN or infinite is written as null, such a setting as a string: JSON has no such numbers.
    """
    rows = []
    for result in results:
        metrics = {name: float(value) for name, value in result.metrics.items()}
        row = plain_values({**asdict(result), "metrics": {}})
        row["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        rows.append(row)
    common.write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def rows_to_add_to(path: Path, resume: bool) -> list[Result]:
    """The rows of an earlier run, which only --resume may go on with; a ValueError without it."""
    results = read_results(path)
    if results and not resume:
        raise ValueError(f"{path} holds rows already: go on with --resume, or choose another --output")
    return results


def read_results(path: Path) -> list[Result]:
    """The rows of a results file; none if there is no file."""
    try:
        text = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
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


def plain_values(value: Any) -> Any:
    """A value as JSON can hold it, and as `read_results` gives it back."""
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


# --- Going on with a run


def earlier_results(folder: Path, name: str, resume: bool) -> list[Result]:
    """The rows of the run in a folder, if there is one, that is gone on with; the name is the data's.

    Raises:
        FileExistsError: if the folder holds a run and --resume was not given.
        FileNotFoundError: if --resume was given and the folder holds none.
        ValueError: if its rows are of other data, or the file is damaged.
    """
    path = folder / "results.json"
    begun = path.exists() or any(folder.glob("*/checkpoint.pt"))
    if begun and not resume:
        raise FileExistsError(
            f"{folder} holds a run already: go on with it, or add methods to it, by --resume, or choose "
            "another --output"
        )
    if resume and not begun:
        what = "holds neither results.json nor a checkpoint" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"there is nothing to resume: {folder} {what}: correct --output, or begin without --resume"
        )
    results = read_results(path)
    others = {row.dataset for row in results} - {name}
    if others:
        raise ValueError(
            f"{path} is of other data ({', '.join(sorted(others))}, here {name}): choose another --output"
        )
    return results


def check_alike(
    results: Iterable[Result],
    again: Collection[tuple[str, int]],
    expected: Callable[[str], Mapping[str, Any]],
    path: Path,
) -> None:
    """See that rows of the file at path have the settings that `expected` gives their method here.

    Not compared are settings of the machine, those that only one of the two has, and the rows that this run
    makes `again`, (method, seed).
    """
    options = {one.name: flag(one.name) for one in fields(Recipe)}
    options["num_votes"] = "--votes"
    names = (
        "preset layer instance_lda with_start init num_starts first_similarities window components hog_size"
    )
    options |= {name: flag(name) for name in names.split()}
    differ: dict[str, list[str]] = {}
    for row in results:
        if (row.method, row.seed) in again:
            continue
        here = plain_values(expected(row.method))
        for name in dict.fromkeys((*options, *here)):
            kept, new = row.settings.get(name), here.get(name)
            if name in here and name in row.settings and name not in OF_THE_MACHINE and kept != new:
                what = f"{options.get(name, name)} {kept!r}, here {new!r}"
                differ.setdefault(what, []).append(f"{row.method}, seed {row.seed}")
    if differ:
        by_rows: dict[str, list[str]] = {}
        for what, rows in differ.items():
            by_rows.setdefault("; ".join(rows), []).append(what)
        said = "; ".join(f"{rows} ({'; '.join(what)})" for rows, what in by_rows.items())
        raise ValueError(
            f"{path} has rows of other settings: {said}: give the same options, or choose another --output"
        )


# --- Tables


def distinct_names(results: Sequence[Result]) -> list[str]:
    """The method of each row, with its seed if rows have several."""
    several = len({result.seed for result in results}) > 1
    return [f"{result.method}, seed {result.seed}" if several else result.method for result in results]


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """Mean, standard deviation (over seeds, n - 1) and number of rows of each method's measures.

    Columns mean, std (both NaN if a value is) and count, by (method, measure) in the order of the rows.
    """
    datasets = {result.dataset for result in results}
    if len(datasets) > 1:
        raise ValueError(f"a summary is of one dataset, got {', '.join(sorted(datasets))}: filter the rows")
    rows = [(one.method, measure, value) for one in results for measure, value in one.metrics.items()]
    frame = pd.DataFrame(rows, columns=["method", "measure", "value"])
    return frame.groupby(["method", "measure"], sort=False)["value"].agg(
        mean=lambda values: values.mean(skipna=False),
        std=lambda values: values.std(skipna=False),
        count="size",
    )


def score_table(
    results: Sequence[Result],
    measures: Mapping[str, str],
    paper: Mapping[str, str],
    title: str,
    digits: int = 3,
) -> str:
    """Each method's measures over its seeds, beside the paper's, and the main one after rounds.

    Args:
        results: rows of one dataset.
        measures: key of each measure to its column's title; the first is the main one.
        paper, title: method to what the paper has, and the title of this column; "": there is none.
        digits: behind the point.
    """
    found = summary(results)

    def cell(method: str, key: str, spread: bool = True) -> str:
        if (method, key) not in found.index:
            return ""
        mean, deviation, count = found.loc[(method, key)]
        return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if spread and count > 1 else "")

    main = next(iter(measures))
    prefix = f"{main}_round_"
    names = dict.fromkeys(name for _, name in found.index)
    done = [int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)]
    rounds = sorted({0, 1, 2, max(done)} & {*done}) if done else []
    moments = [f"round {number}" if number else "begin" for number in rounds]
    header = ["method", *measures.values(), "seeds", *moments, *([title] if title else [])]
    rows = [
        [
            method,
            *(cell(method, key) for key in measures),
            f"{found.loc[(method, main)]['count']:.0f}",
            *(cell(method, f"{prefix}{number}", spread=False) for number in rounds),
            *([paper.get(method, "")] if title else []),
        ]
        for method in dict.fromkeys(result.method for result in results if main in result.metrics)
    ]
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header has {len(header)}: {list(row)}")
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
