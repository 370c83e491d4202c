"""A run of a benchmark: its methods under its seeds, one row each, gone on with after a kill.

Of several processes (torchrun) all do the same in the same order, and share what can be shared: descriptions,
features, searches, batches. Rank 0 alone writes, prints and shows progress.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.core import common, methods, trunks
from benchmarks.core.described import VIEWS
from benchmarks.core.embedded import with_instance_lda
from benchmarks.core.learning import Start, train
from benchmarks.core.logs import RunLog
from benchmarks.core.options import NOT_TRAINED, RunOptions
from benchmarks.core.resuming import check_alike, earlier_results
from benchmarks.core.trained import load_trained
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import WithViews
from pml_posets.distributed.process_group import broadcast_object, from_environment, is_main, world_size
from pml_posets.distributed.sharing import from_main, main_first, shared_work
from pml_posets.training.joint import JointTrainer


@dataclass
class Score:
    """What a set of features is worth.

    Args:
        metrics: name of each measure to its value.
        shown: what the benchmark's pictures are drawn from.
    """

    metrics: dict[str, float]
    shown: Any = None


@dataclass
class Outcome:
    """What came of one method under one seed.

    Args:
        score: at its end.
        rounds: "auc_round_1", ... to the main measure after each round, if it learned.
        joint: its trainer, if it learned.
        seconds_before: time spent on it by processes that were killed.
    """

    score: Score
    rounds: dict[str, float] = field(default_factory=dict)
    joint: JointTrainer | None = None
    seconds_before: float = 0.0


class Task(Protocol):
    """A benchmark's data, ready to be learned from and scored on.

    Args:
        name: of the data, for the results.
        measure: the main one, a key of the metrics.
        digits: behind its point where it is shown.
    """

    name: str
    measure: str
    digits: int

    @property
    def images(self) -> Any:
        """(3, S, S) uint8 tensors to learn from, for the recipe's S; no label is used."""

    @property
    def start(self) -> Start:
        """The first similarities of these images."""

    def origin(self) -> dict[str, Any]:
        """What a training starts from, beside its recipe and its seed, as plain values."""

    def views(self, image_size: int) -> WithViews:
        """Views of images to learn from, augmented as the recipe says."""

    def plain(self, method: str) -> Score:
        """A method without a network."""

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """A network, (B, 3, S, S) uint8 images to (B, D) features, in evaluation mode."""

    def plain_settings(self, method: str) -> dict[str, Any]:
        """What the numbers of a method without a network depend on."""

    def scored_settings(self) -> dict[str, Any]:
        """What every score depends on, beside what a training starts from."""


AnyOptions = TypeVar("AnyOptions", bound=RunOptions)
AnyTask = TypeVar("AnyTask", bound=Task)


class Report(Protocol):
    """The tables and pictures of a benchmark."""

    def add(self, method: str, outcome: Outcome) -> None:
        """Note what the first seed of a method gave."""

    def write(self, folder: Path, results: list[common.Result]) -> str:
        """Write them; returns the main table."""


def run(
    options: AnyOptions,
    name: str,
    prepare: Callable[[AnyOptions], AnyTask],
    report: Callable[[AnyTask], Report],
) -> int:
    """Run a benchmark from its beginning, or go on with it; returns the exit status.

    Under torchrun every process calls this with the same options (those of rank 0 count), and they are joined
    for as long as it takes. An error on one of them, or its death, ends all.

    Args:
        options: what was asked for.
        name: of the data, known before they are read.
        prepare: reads the data.
        report: of the task.

    Raises:
        FileExistsError, OSError, ValueError: for folders, files, data and settings that do not fit, and for
            what several processes cannot do, before any work.
        RankError: if another process has failed or died.
    """
    common.commit()  # that of the code this run begins with
    with from_environment(options.device) as place, main_speaks(), shared_work():
        options = replace(broadcast_object(options), device=str(place))
        options = replace(options, progress=options.progress and is_main())
        check_processes(options)
        folder = from_main(lambda: common.output_folder(options.output))
        results = from_main(lambda: earlier_results(folder, name, options.resume))
        task = main_first(lambda: prepare(options))
        planned = planned_rows(options)
        check_alike(results, planned, partial(shared_settings, task, options), folder / "results.json")
        shown = report(task)
        for method, seed in planned:
            began = time.perf_counter()
            outcome = run_method(method, seed, task, options, folder)
            seconds = outcome.seconds_before + time.perf_counter() - began
            if is_main() and seed == options.seeds[0]:
                shown.add(method, outcome)
            row = common.Result(
                method=method,
                dataset=task.name,
                metrics={**outcome.score.metrics, **outcome.rounds},
                settings=settings_of(method, task, options),
                seed=seed,
                seconds=round(seconds, 1),
            )
            results = [r for r in results if (r.method, r.seed) != (method, seed)] + [row]
            from_main(partial(common.write_results, folder / "results.json", results))
            value = outcome.score.metrics[task.measure]
            print(f"{method:18s} seed {seed}  {said(task, value)}  ({seconds:.0f} s)", flush=True)
        text = from_main(lambda: shown.write(folder, results))
        print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


@contextmanager
def main_speaks() -> Iterator[None]:
    """What other ranks than 0 print is not shown; their errors are."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def check_processes(options: RunOptions) -> None:
    """See that what was asked for can be done by so many processes.

    Raises:
        ValueError: for a method with an objective, or batches that cannot be split.
    """
    count = world_size()
    learned = [method for method in options.methods if method in options.line.learned]
    if count == 1 or not learned:
        return
    alone = [method for method in learned if method in methods.OF_ONE_PROCESS]
    if alone:
        raise ValueError(
            f"--method {' '.join(alone)}: an objective runs the networks itself, and would see the part of "
            f"one of the {count} processes alone: leave it out, and add it to the same --output by --resume "
            "without torchrun"
        )
    size = options.recipe.batch_size
    if size % count:
        raise ValueError(
            f"--batch-size must be a multiple of the {count} processes, which share each batch, got {size}: "
            f"use {max(1, size // count) * count}"
        )


def planned_rows(options: RunOptions) -> list[tuple[str, int]]:
    """(method, seed) of each row, in their order; one seed says it all of what leaves nothing to chance."""
    alike = {*options.line.plain, *NOT_TRAINED}
    return [
        (method, seed)
        for seed in options.seeds
        for method in options.methods
        if seed == options.seeds[0] or method not in alike
    ]


def said(task: Task, value: float) -> str:
    """The main measure and its value, as they are printed: AUC 0.616."""
    return f"{task.measure.upper().replace('_', ' ')} {value:.{task.digits}f}"


def run_method(method: str, seed: int, task: Task, options: RunOptions, folder: Path) -> Outcome:
    """One method under one seed."""
    if method in options.line.plain:
        return Outcome(task.plain(method))
    if method in options.line.learned:
        return learn(method, seed, task, options, folder / f"{method}-seed{seed}")
    recipe = options.recipe_of(method)
    models = trunks.build(recipe.architecture, seed, dropout=0.0)
    if method == "alexnet-imagenet":
        trunks.load_imagenet(models, recipe.architecture, options.files[method])
    if method == "init" and options.init is not None:
        trunks.load_imagenet(models, recipe.architecture, options.init)
    if method == "checkpoint":
        load_trained(models, options.files[method])
    models["trunk"] = torch.nn.Sequential(BatchAugmentation(), models["trunk"])
    return Outcome(score_models(models, recipe.image_size, task, options))


def score_models(
    models: Mapping[str, torch.nn.Module], image_size: int, task: Task, options: RunOptions
) -> Score:
    """The score of the layer that was asked for."""
    for model in models.values():
        model.to(options.device)
    network = trunks.up_to(models, options.layer)
    if options.instance_lda:
        how: dict[str, Any] = {"amp": options.amp, "progress": options.progress}
        network = with_instance_lda(network, task.views(image_size), options.device, how)
    return task.score(network, image_size)


def learn(method: str, seed: int, task: Task, options: RunOptions, home: Path) -> Outcome:
    """Train by one method under one seed, or go on with it; its checkpoint and its logs lie in `home`."""
    recipe = options.recipe_of(method)
    begin = trunks.build(recipe.architecture, seed, recipe.dropout)
    if options.init is not None:
        trunks.load_imagenet(begin, recipe.architecture, options.init)
    log = RunLog(home / "logs") if is_main() else None

    def score(joint: JointTrainer) -> Score:
        return score_models(joint.evaluation_models, recipe.image_size, task, options)

    def note(done: int, value: float, iteration: int) -> None:
        if log is not None:
            write_score(home, done, value)
            log.write("scores", {task.measure: value}, iteration)

    def score_round(joint: JointTrainer) -> None:
        done = joint.round + 1
        if not options.score_rounds or done >= joint.num_rounds:
            return  # the last one is scored below, also of a run that was killed just here
        value = score(joint).metrics[task.measure]
        note(done, value, done * joint.iterations_per_round)
        print(f"  {home.name}: {said(task, value)} after round {done}", flush=True)

    try:
        joint = train(
            "posets" if method == "posets-fixed" else method,
            task.images,
            task.start,
            recipe,
            seed=seed,
            device=options.device,
            num_workers=options.workers if options.device != "cpu" else 0,
            output_dir=home,
            resume=options.resume,
            progress=options.progress,
            models=begin,
            end_of_round=score_round,
            log=log,
            settings=origin(task, options),
        )
        final = score(joint)
        note(joint.round, final.metrics[task.measure], joint.global_iteration)
    finally:
        if log is not None:
            log.close()
    scores = from_main(lambda: read_scores(home))
    rounds = {f"{task.measure}_round_{done}": value for done, value in scores.items()}
    return Outcome(final, rounds, joint, 0.0 if log is None else log.seconds_before)


def read_scores(home: Path) -> dict[int, float]:
    """The main measure after each round so far."""
    path = home / "rounds.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {int(done): value for done, value in found.items()}


def write_score(home: Path, done: int, value: float) -> None:
    """Note the score of a round, in a file that a resumed run reads again; those of later rounds go."""
    earlier = {number: score for number, score in read_scores(home).items() if number < done}
    common.write_text(home / "rounds.json", json.dumps({**earlier, done: value}) + "\n")


def origin(task: Task, options: RunOptions) -> dict[str, Any]:
    """What a training starts from, beside its recipe and its seed."""
    return {
        **task.origin(),
        "hog_size": options.hog_size,
        "initial": options.initial,
        "window": None if options.window is None else list(options.window),
        "components": options.components,
        "init": None if options.init is None else options.init.name,
    }


def settings_of(method: str, task: Task, options: RunOptions) -> dict[str, Any]:
    """What the numbers of a method depend on."""
    scored = task.scored_settings()
    if method in options.line.plain:
        return {**task.plain_settings(method), **scored}
    recipe = options.recipe_of(method)
    device = {"device": options.device, "hardware": common.hardware(options.device)}
    layer = {**scored, **layer_settings(options), **device}
    if method in options.line.learned:
        several = {"processes": world_size()} if world_size() > 1 else {}
        return {**origin(task, options), **recipe.settings(), "preset": options.preset, **layer, **several}
    file = options.init if method == "init" else options.files.get(method)
    given = {} if file is None else {"file": file.name}
    return {**trunks.settings(recipe.architecture), "precision": recipe.precision, **given, **layer}


def shared_settings(task: Task, options: RunOptions, method: str) -> dict[str, Any]:
    """Those of them that the rows of a run share; of given weights the shapes are their own."""
    if method in NOT_TRAINED:
        return {
            **task.scored_settings(),
            **layer_settings(options),
            "precision": options.recipe.precision,
        }
    return settings_of(method, task, options)


def layer_settings(options: RunOptions) -> dict[str, Any]:
    """Which features of a network are scored."""
    return {"layer": options.layer, "instance_lda": VIEWS if options.instance_lda else None}
