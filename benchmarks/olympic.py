"""Posture retrieval on Olympic Sports or any tree in its layout: the main benchmark (the paper's Table 1).

python benchmarks/olympic.py                                    # figures it draws itself, in minutes
python benchmarks/olympic.py --data-root TREE --method all      # your frames
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import alexnet, common, olympic_report
from benchmarks.learning import train
from benchmarks.logs import RunLog
from benchmarks.options import LEARNED, RunOptions, parse
from benchmarks.postures import Pair, Postures, data_name, origin, prepare
from pml_posets.augmentation import BatchAugmentation
from pml_posets.evaluation import RetrievalResult
from pml_posets.features import extract
from pml_posets.image_store import ImageStore
from pml_posets.trainers import JointTrainer

WITHOUT_CHANCE = ("hog", "hog-lda", "start", "alexnet-imagenet")  # one seed says it all


@dataclass
class Outcome:
    """What came of one method under one seed.

    Args:
        features: of the frames that the labels speak of.
        roc: their curves.
        rounds: "auc_round_1", ... to the AUC after each round, if it learned.
        joint: its trainer, if it learned.
        seconds_before: time spent on it by processes that were killed.
    """

    features: Pair
    roc: RetrievalResult
    rounds: dict[str, float]
    joint: JointTrainer | None = None
    seconds_before: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The mean AUC, that of each category, and that of each round."""
        by_category = {f"auc/{name}": auc for name, auc in self.roc.per_category.items()}
        return {"auc": self.roc.auc, **by_category, **self.rounds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    common.commit()  # that of the code this run begins with
    folder = common.output_folder(options.output)
    results = earlier_results(folder, options)
    postures = prepare(options)
    shown = olympic_report.Shown()
    for seed in options.seeds:
        for method in options.methods:
            if method in WITHOUT_CHANCE and seed != options.seeds[0]:
                continue
            began = time.perf_counter()
            outcome = run(method, seed, postures, options, folder)
            seconds = outcome.seconds_before + time.perf_counter() - began
            if seed == options.seeds[0]:
                shown.add(method, outcome.roc, outcome.joint, outcome.features)
            row = common.Result(
                method=method,
                dataset=postures.name,
                metrics=outcome.metrics,
                settings=settings_of(method, options, postures),
                seed=seed,
                seconds=round(seconds, 1),
            )
            results = [r for r in results if (r.method, r.seed) != (method, seed)] + [row]
            common.write_results(folder / "results.json", results)
            print(f"{method:18s} seed {seed}  AUC {outcome.roc.auc:.3f}  ({seconds:.0f} s)", flush=True)
    text = olympic_report.write(folder, results, shown, postures)
    print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def earlier_results(folder: Path, options: RunOptions) -> list[common.Result]:
    """The rows of the run that is gone on with.

    Raises:
        FileExistsError: if the folder holds a run and --resume was not given.
        ValueError: if its rows are of other data, or the file is damaged.
    """
    path = folder / "results.json"
    if not options.resume:
        if path.exists() or any(folder.glob("*/checkpoint.pt")):
            raise FileExistsError(
                f"{folder} holds a run already: go on with it, or add methods to it, by --resume, or choose "
                "another --output"
            )
        return []
    results = common.read_results(path)
    others = {row.dataset for row in results} - {data_name(options)}
    if others:
        raise ValueError(
            f"{path} is of other data ({', '.join(sorted(others))}, here {data_name(options)}): "
            "choose another --output"
        )
    return results


def run(method: str, seed: int, postures: Postures, options: RunOptions, folder: Path) -> Outcome:
    """One method under one seed."""
    if method in ("hog", "hog-lda", "start"):
        features = postures.hog(options.initial if method == "start" else method)
        return Outcome(features, postures.score(features), {})
    recipe = options.recipe_of(method)
    if method in LEARNED:
        return learn(method, seed, postures, options, folder / f"{method}-seed{seed}")
    models = alexnet.build(recipe.architecture, seed, dropout=0.0)
    if method == "alexnet-imagenet":
        alexnet.load_imagenet(models, str(options.imagenet_weights))
    models["trunk"] = torch.nn.Sequential(BatchAugmentation(), models["trunk"])
    networks = {name: model.to(options.device) for name, model in models.items()}
    images = postures.images_of(recipe.image_size)
    features = features_of(networks, images, postures, options)
    return Outcome(features, postures.score(features), {})


def learn(method: str, seed: int, postures: Postures, options: RunOptions, home: Path) -> Outcome:
    """Train by one method under one seed, or go on with it; its checkpoint and its logs lie in `home`."""
    recipe = options.recipe_of(method)
    begin = alexnet.build(recipe.architecture, seed, recipe.dropout)
    if options.init is not None:
        alexnet.load_imagenet(begin, options.init)
    log = RunLog(home / "logs")

    def score(joint: JointTrainer) -> Outcome:
        features = features_of(joint.evaluation_models, postures.images, postures, options)
        return Outcome(features, postures.score(features), {}, joint)

    def score_round(joint: JointTrainer) -> None:
        done = joint.round + 1
        if not options.score_rounds or done >= joint.num_rounds:
            return  # the last one is scored below, also of a run that was killed just here
        auc = score(joint).roc.auc
        write_score(home, done, auc)
        log.write("scores", {"auc": auc}, done * joint.iterations_per_round)
        print(f"  {home.name}: AUC {auc:.3f} after round {done}", flush=True)

    try:
        joint = train(
            "posets" if method == "posets-fixed" else method,  # type: ignore[arg-type]
            postures.images,
            postures.start,
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
            settings=origin(options, postures),
        )
        outcome = score(joint)
        write_score(home, joint.round, outcome.roc.auc)
        log.write("scores", {"auc": outcome.roc.auc}, joint.global_iteration)
    finally:
        log.close()
    outcome.rounds = {f"auc_round_{done}": auc for done, auc in read_scores(home).items()}
    outcome.seconds_before = log.seconds_before
    return outcome


def read_scores(home: Path) -> dict[int, float]:
    """The AUC after each round so far."""
    path = home / "rounds.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {int(done): auc for done, auc in found.items()}


def write_score(home: Path, done: int, auc: float) -> None:
    """Note the AUC after a round, in a file that a resumed run reads again; those of later rounds go."""
    earlier = {number: score for number, score in read_scores(home).items() if number < done}
    common.write_text(home / "rounds.json", json.dumps({**earlier, done: auc}) + "\n")


def features_of(
    models: dict[str, torch.nn.Module], images: ImageStore, postures: Postures, options: RunOptions
) -> Pair:
    """Features of the frames that the labels speak of, and of their mirror images; zeros for the others."""
    labels = postures.tree.dataset_labels().values()
    needed = np.unique(
        np.concatenate([ids for one in labels for ids in (one.anchors, *one.pos_ids, *one.neg_ids)])
    )
    found = extract(
        alexnet.up_to(models, options.layer),
        Subset(images, needed.tolist()),
        batch_size=256,
        device=options.device,
        mirror=True,
        amp=torch.bfloat16 if options.recipe.precision == "bfloat16" else False,
        progress=options.progress,
    )
    both = np.zeros((2, len(postures.tree), found[0].shape[1]), np.float32)
    both[:, needed] = found
    return both[0], both[1]


def settings_of(method: str, options: RunOptions, postures: Postures) -> dict[str, Any]:
    """What the numbers of a method depend on."""
    every = origin(options, postures)
    left_out = {"left_out": len(postures.tree.excluded)}
    if method in ("hog", "hog-lda", "start"):
        names = ["frames", "hog_size", *(["initial", "window"] if method == "start" else [])]
        return {**{name: every[name] for name in names}, **left_out}
    recipe = options.recipe_of(method)
    device = {"device": options.device, "hardware": common.hardware(options.device)}
    if method in LEARNED:
        return {
            **every,
            **left_out,
            **recipe.settings(),
            "preset": options.preset,
            "layer": options.layer,
            **device,
        }
    network = alexnet.settings(recipe.architecture)
    precision = {"precision": recipe.precision}
    return {"frames": every["frames"], **left_out, **network, **precision, "layer": options.layer, **device}


if __name__ == "__main__":
    common.run_command(main, "olympic.py")
