"""What the benchmarks' reports share: the main table, and the picture of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.core.common import Result, summary, table
from benchmarks.core.options import RunOptions
from pml_posets.plots import loss_curves
from pml_posets.training.joint import JointTrainer


def score_table(
    results: Sequence[Result],
    measures: Mapping[str, str],
    paper: Mapping[str, str],
    title: str,
    digits: int = 3,
) -> str:
    """Each method's measures over its seeds, beside the paper's, and how far each round came.

    Args:
        results: rows of one dataset.
        measures: key of each measure to its column's title; the first is the main one.
        paper: method to what the paper has.
        title: of the paper's column; "": there is none.
        digits: behind the point.
    """
    main = next(iter(measures))
    found = {key: summary(results, key) for key in measures}
    prefix = f"{main}_round_"
    done = [int(k.removeprefix(prefix)) for r in results for k in r.metrics if k.startswith(prefix)]
    rounds = sorted({1, 2, max(done)} & {*done}) if done else []
    by_round = [summary(results, f"{prefix}{number}") for number in rounds]
    last = [title] if title else []
    header = ["method", *measures.values(), "seeds", *(f"round {number}" for number in rounds), *last]
    rows = []
    for method, (_, _, count) in found[main].items():
        cells = [_cell(found[key].get(method), digits) for key in measures]
        of_rounds = [f"{one[method][0]:.{digits}f}" if method in one else "" for one in by_round]
        rows.append([method, *cells, str(count), *of_rounds, *([paper.get(method, "")] if title else [])])
    return table(header, rows)


def seen(options: RunOptions) -> str:
    """In words, what the networks that a run trains see and begin from, and which layer is scored."""
    begin = "random" if options.init is None else "ImageNet"
    scored = f"InstanceLDA of {options.layer}" if options.instance_lda else options.layer
    return f"{options.recipe.image_size} px, {begin} weights at the beginning, {scored} scored."


def losses(trainers: Mapping[str, JointTrainer]) -> Any:
    """Fig. 4: the total loss of the methods that share an objective, else of every method."""
    shared = [name for name in ("posets", "posets-fixed") if name in trainers]
    chosen = shared or list(trainers)
    names = {"posets": "joint groups", "posets-fixed": "fixed groups"}
    curves = {}
    for name in chosen:
        rows = trainers[name].history
        iterations, values = (np.array([row[key] for row in rows]) for key in ("iteration", "total_loss"))
        curves[names.get(name, name)] = (iterations, values)
    first = trainers[chosen[0]]
    starts = [number * first.iterations_per_round for number in range(first.num_rounds)]
    return loss_curves(curves, starts)


def _cell(value: tuple[float, float, int] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, deviation, count = value
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if count > 1 else "")
