"""Going on with a run: which rows are there, and whether those to come may stand beside them in one table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.core import common
from benchmarks.core.recipes import Recipe, flag

OF_THE_MACHINE = ("device", "hardware", "processes")
"""Settings that a run may be gone on with under others."""
_OPTIONS = {  # a setting to its option, where that is not a field of the recipe
    "preset": "--preset",
    "layer": "--layer",
    "instance_lda": "--instance-lda",
    **{name: flag(name) for name in ("initial", "window", "components", "hog_size", "init", "num_starts")},
    "num_votes": "--votes",
    **{one.name: flag(one.name) for one in fields(Recipe)},
}
_SHOWN = 3  # settings that differ, in the message


def earlier_results(folder: Path, name: str, resume: bool) -> list[common.Result]:
    """The rows of the run that is gone on with.

    Args:
        folder: of the output.
        name: of the data.
        resume: whether --resume was given.

    Raises:
        FileExistsError: if the folder holds a run and --resume was not given.
        ValueError: if its rows are of other data, or the file is damaged.
    """
    path = folder / "results.json"
    if not resume:
        if path.exists() or any(folder.glob("*/checkpoint.pt")):
            raise FileExistsError(
                f"{folder} holds a run already: go on with it, or add methods to it, by --resume, or choose "
                "another --output"
            )
        return []
    results = common.read_results(path)
    others = {row.dataset for row in results} - {name}
    if others:
        raise ValueError(
            f"{path} is of other data ({', '.join(sorted(others))}, here {name}): choose another --output"
        )
    return results


def check_alike(
    results: Sequence[common.Result],
    again: Collection[tuple[str, int]],
    expected: Callable[[str], Mapping[str, Any]],
    path: Path,
) -> None:
    """See that rows that stay are of the settings that the rows to come will have.

    Args:
        results: the rows that are there.
        again: (method, seed) of those that this run makes anew.
        expected: a method to the settings that this run would give its row; those of the machine, and those
            that only one of the two has, are not compared.
        path: of the rows, for the message.

    Raises:
        ValueError: if not; the message names the options that differ.
    """
    for row in results:
        if (row.method, row.seed) in again:
            continue
        here = common.plain_values(expected(row.method))
        both = [name for name in (*_OPTIONS, *here) if name in here and name in row.settings]
        other = [
            f"{_OPTIONS.get(name, name)} {row.settings[name]!r}, here {here[name]!r}"
            for name in dict.fromkeys(both)
            if name not in OF_THE_MACHINE and row.settings[name] != here[name]
        ]
        if other:
            more = f"; and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            raise ValueError(
                f"{path} has {row.method}, seed {row.seed}, of other settings "
                f"({'; '.join(other[:_SHOWN])}{more}): give the same options, or choose another --output"
            )
