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
from typing import Any

import numpy as np
import torch

from benchmarks.core import common, embedding, methods, networks
from benchmarks.core.described import VIEWS
from benchmarks.core.learning import train
from benchmarks.core.logs import RunLog
from benchmarks.core.methods import METHODS, PLAIN
from benchmarks.core.options import Options
from benchmarks.core.results import Result, check_alike, earlier_results, score_table, write_results
from benchmarks.core.task import Score, Task
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.distributed.process_group import broadcast_object, from_environment, is_main, world_size
from pml_posets.distributed.sharing import from_main, main_first, shared_work
from pml_posets.plots import loss_curves, save_figure
from pml_posets.training.joint import JointTrainer


@dataclass
class Outcome:
    """What came of one method under one seed: its score at the end, and if it learned its trainer, the main
    measure after each round ("auc_round_1", ...) and the time that killed processes have spent on it.
    """

    score: Score
    rounds: dict[str, float] = field(default_factory=dict)
    joint: JointTrainer | None = None
    seconds_before: float = 0.0


def run(options: Options, name: str, prepare: Callable[[Options], Task]) -> int:
    """Run a benchmark from its beginning, or go on with it; returns the exit status.

    Under torchrun every process calls this with the same options (those of rank 0 count), and they are joined
    for as long as it takes. An error on one of them, or its death, ends all. Folders, files, data and
    settings that do not fit are refused before any work. The name is that of the data that `prepare` reads.
    """
    common.commit()  # that of the code this run begins with
    with from_environment(common.pick_device(options.device)) as device, main_speaks(), shared_work():
        options = broadcast_object(options).settled(str(device))
        options = replace(options, progress=options.progress and is_main())
        check_processes(options)
        results = from_main(lambda: earlier_results(options.output, name, options.resume))
        with common.no_empty_folders(options.output, options.cache):
            folder = from_main(lambda: common.output_folder(options.output))
            task = main_first(lambda: prepare(options))
            text = from_main(partial(write_report, task, folder, *_rows(task, folder, results)))
        print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def _rows(task: Task, folder: Path, results: list[Result]) -> tuple[list[Result], dict[str, Outcome]]:
    """All rows, those of before among them, and what the first seed of each method gave."""
    options = task.options
    planned = planned_rows(options)
    check_alike(results, planned, partial(shared_settings, task), folder / "results.json")
    outcomes: dict[str, Outcome] = {}
    for method, seed in planned:
        began = time.perf_counter()
        outcome = run_method(method, seed, task, folder)
        seconds = outcome.seconds_before + time.perf_counter() - began
        if seed == options.seeds[0]:
            outcomes[method] = outcome
        metrics = {**outcome.score.metrics, **outcome.rounds}
        row = Result(method, task.name, metrics, settings_of(method, task), seed, seconds=round(seconds, 1))
        results = [r for r in results if (r.method, r.seed) != (method, seed)] + [row]
        from_main(partial(write_results, folder / "results.json", results))
        value = outcome.score.metrics[task.measure]
        print(f"{method:18s} seed {seed}  {said(task, value)}  ({seconds:.0f} s)", flush=True)
    return results, outcomes


def write_report(task: Task, folder: Path, results: list[Result], outcomes: dict[str, Outcome]) -> str:
    """Write table.md and the pictures; returns the table."""
    main = score_table(results, task.columns, task.paper, task.paper_title, task.digits)
    text = "\n".join([main, "", *task.notes(results)]).rstrip()
    common.write_text(folder / "table.md", text + "\n")
    save_pictures(task, folder, outcomes)
    return text


def save_pictures(task: Task, folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """The losses of what trained, and the task's pictures of what was scored."""
    trained = {name: one.joint for name, one in outcomes.items() if one.joint and one.joint.history}
    if trained:
        save_figure(losses(trained), folder / "loss.png")
    shown = {name: one.score.shown for name, one in outcomes.items() if one.score.shown is not None}
    for name, figure in task.pictures(shown).items():
        save_figure(figure, folder / f"{name}.png")


def losses(trainers: Mapping[str, JointTrainer]) -> Any:
    """The total loss of every method that trained (Fig. 4 of the paper: posets by joint and fixed groups)."""
    names = {"posets": "posets (groups of each round)", "posets-fixed": "posets-fixed (first groups)"}
    curves = {}
    for name, trainer in trainers.items():
        rows = trainer.history
        iterations, values = (np.array([row[key] for row in rows]) for key in ("iteration", "total_loss"))
        curves[names.get(name, name)] = (iterations, values)
    first = trainers.get("posets") or next(iter(trainers.values()))
    starts = [number * first.iterations_per_round for number in range(first.num_rounds)]
    figure = loss_curves(curves, starts, "Training loss over the rounds")
    if len(curves) > 1:
        figure.axes[0].set_ylabel("training loss (each method has its own)")
    return figure


@contextmanager
def main_speaks() -> Iterator[None]:
    """What other ranks than 0 print is not shown; their errors are."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


# --- Before the run


def check_processes(options: Options) -> None:
    """See that what was asked for can be done by this number of processes."""
    count = world_size()
    if count == 1 or not options.learned:
        return
    alone = [method for method in options.learned if method in methods.OF_ONE_PROCESS]
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


def planned_rows(options: Options) -> list[tuple[str, int]]:
    """(method, seed) of each row, in their order; one seed is enough for what leaves nothing to chance."""
    return [
        (method, seed)
        for seed in options.seeds
        for method in options.methods
        if seed == options.seeds[0] or not (method in PLAIN or _is_given(method))
    ]


def _is_given(method: str) -> bool:
    """True for a network whose weights all come from a file."""
    return METHODS[method].trained in ("--imagenet-weights", "--checkpoint")


def said(task: Task, value: float) -> str:
    """The main measure and its value, as they are printed: AUC 0.616."""
    return f"{task.measure.upper().replace('_', ' ')} {value:.{task.digits}f}"


# --- One method under one seed


def run_method(method: str, seed: int, task: Task, folder: Path) -> Outcome:
    """One method under one seed; of one that trains checkpoint and logs lie in a folder of its own."""
    options = task.options
    if method in PLAIN:
        return Outcome(task.plain(method))
    if METHODS[method].losses:
        return learn(method, seed, task, folder / f"{method}-seed{seed}")
    recipe = options.recipe_of(method)
    models = networks.build(recipe.architecture, seed, dropout=0.0)
    if method == "checkpoint":
        networks.load_trained(models, options.files[method])
    elif file := options.init if method == "init" else options.files.get(method):
        networks.load_imagenet(models, recipe.architecture, file)
    models["trunk"] = torch.nn.Sequential(BatchAugmentation(), models["trunk"])
    if method == "init" and recipe.whitening is not None:
        how: dict[str, Any] = {"device": options.device, "progress": options.progress}
        embedding.begin_whitened(models["trunk"], models["embedder"], task.images, recipe.whitening, **how)
    return Outcome(score_models(models, recipe.image_size, task))


def score_models(models: Mapping[str, torch.nn.Module], image_size: int, task: Task) -> Score:
    """The score of the layer that was asked for."""
    options = task.options
    for model in models.values():
        model.to(options.device)
    network = networks.up_to(models, options.layer)
    if options.instance_lda:
        how: dict[str, Any] = {"amp": options.amp, "progress": options.progress}
        views = task.unlabeled.views(image_size)
        network = embedding.with_instance_lda(network, views, options.device, **how)
    return task.score(network, image_size)


def learn(method: str, seed: int, task: Task, home: Path) -> Outcome:
    """Train by one method under one seed, or go on with it; its checkpoint and its logs lie in `home`."""
    options = task.options
    recipe = options.recipe_of(method)
    begin = networks.build(recipe.architecture, seed, recipe.dropout)
    if options.init is not None:
        networks.load_imagenet(begin, recipe.architecture, options.init)
    log = RunLog(home / "logs") if is_main() else None

    def note(joint: JointTrainer, done: int) -> Score:
        score = score_models(joint.evaluation_models, recipe.image_size, task)
        value = score.metrics[task.measure]
        if log is not None:
            write_score(home, done, value)
            log.write("scores", {task.measure: value}, done * joint.iterations_per_round)
        return score

    def tell(joint: JointTrainer, done: int, when: str) -> None:
        value = note(joint, done).metrics[task.measure]
        print(f"  {home.name}: {said(task, value)} {when}", flush=True)

    def score_beginning(joint: JointTrainer) -> None:
        knows = recipe.trunk == "hog" or options.begins  # something before it is trained
        if options.score_rounds and knows and joint.round == 0:
            tell(joint, 0, "before training")

    def score_round(joint: JointTrainer) -> None:
        done = joint.round + 1
        if options.score_rounds and done < joint.num_rounds:  # the last one is scored below, after a kill too
            tell(joint, done, f"after round {done}")

    try:
        joint = train(
            method,
            task.images,
            task.start,
            recipe,
            seed=seed,
            device=options.device,
            num_workers=options.workers if options.device != "cpu" else 0,
            output_dir=home,
            cache=task.unlabeled.folder,
            flips=task.unlabeled.flips,
            resume=options.resume,
            progress=options.progress,
            models=begin,
            start_of_round=score_beginning,
            end_of_round=score_round,
            log=log,
            settings=origin(task),
        )
        final = note(joint, joint.round)
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


# --- What the numbers depend on


def origin(task: Task) -> dict[str, Any]:
    """What a training starts from, beside its recipe and its seed."""
    options = task.options
    return {
        **task.origin(),
        "hog_size": options.hog_size,
        "first_similarities": options.first,
        "window": None if options.window is None else list(options.window),
        "components": options.components,
        "init": None if options.init is None else options.init.name,
    }


def settings_of(method: str, task: Task) -> dict[str, Any]:
    """What the numbers of a method depend on."""
    options, scored = task.options, task.scored_settings()
    if method in PLAIN:
        return {**task.plain_settings(method), **scored}
    recipe = options.recipe_of(method)
    device = {"device": options.device, "hardware": common.hardware(options.device)}
    layer = {**scored, **layer_settings(options), **device}
    if METHODS[method].losses:
        several = {"processes": world_size()} if world_size() > 1 else {}
        return {**origin(task), **recipe.settings(), "preset": options.preset, **layer, **several}
    file = options.init if method == "init" else options.files.get(method)
    given: dict[str, Any] = {} if file is None else {"file": file.name}
    if method == "init" and recipe.whitening is not None:
        given["whitening"] = recipe.whitening
    return {**recipe.architecture.settings(), "precision": recipe.precision, **given, **layer}


def shared_settings(task: Task, method: str) -> dict[str, Any]:
    """Those that the rows of a run share; of given weights the shapes are their own."""
    if _is_given(method):
        layer = layer_settings(task.options)
        return {**task.scored_settings(), **layer, "precision": task.options.recipe.precision}
    return settings_of(method, task)


def layer_settings(options: Options) -> dict[str, Any]:
    """Which features of a network are scored."""
    also = {"with_start": True} if options.with_start else {}
    return {"layer": options.layer, "instance_lda": VIEWS if options.instance_lda else None, **also}
