"""Posture retrieval on Olympic Sports or any tree in its layout: the main benchmark (the paper's Table 1).

python benchmarks/olympic.py                                    # figures it draws itself, in minutes
python benchmarks/olympic.py --data-root TREE --method all      # your frames
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import alexnet, common, olympic_report
from benchmarks.figures import make_figures
from benchmarks.learning import METHODS, Start, train
from benchmarks.olympic_data import OlympicFrames, OlympicTree, load_tree
from benchmarks.options import RunOptions, parse
from pml_posets.augmentation import BatchAugmentation
from pml_posets.cache import digest
from pml_posets.evaluation import RetrievalResult, retrieval_report
from pml_posets.features import HOGLDA, extract, principal_components
from pml_posets.image_store import ImageStore
from pml_posets.trainers import JointTrainer

WITHOUT_CHANCE = ("hog", "hog-lda", "start", "alexnet-imagenet")  # one seed says it all
FIGURE_SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {"num_sources": 4, "num_clips": 1, "num_frames": 10, "num_anchors": 8},
}
Pair = tuple[np.ndarray, np.ndarray]  # (N, D) features of the frames and of their mirror images


@dataclass
class Postures:
    """A tree, ready to be learned from.

    Args:
        name: of the data, for the results.
        tree: its annotation.
        images: (3, S, S) uint8 tensors, one a frame.
        hog: name to features, made when asked for: "hog" (mean subtracted), "hog-lda" (whitened),
            "hog-window" (weighted towards the box's middle); unit rows.
        start: the first similarities, brought down to a few hundred columns.
    """

    name: str
    tree: OlympicTree
    images: ImageStore
    hog: Callable[[str], Pair]
    start: Start

    def score(self, features: Pair) -> RetrievalResult:
        """The ROC curves of features: cosine similarity, mirror images where the labels ask for them."""
        return retrieval_report(features[0], self.tree.dataset_labels(), mirrored=features[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    folder = common.output_folder(options.output)
    postures = prepare(options)
    path = folder / "results.json"
    results = common.read_results(path) if options.resume else []
    shown = olympic_report.Shown()
    for seed in options.seeds:
        for method in options.methods:
            if method in WITHOUT_CHANCE and seed != options.seeds[0]:
                continue
            began = time.perf_counter()
            metrics, roc, joint, features = run(method, seed, postures, options, folder)
            if seed == options.seeds[0]:
                shown.add(method, roc, joint, features)
            seconds = round(time.perf_counter() - began, 1)
            settings = settings_of(method, options, postures)
            row = common.Result(
                method=method,
                dataset=postures.name,
                metrics=metrics,
                settings=settings,
                seed=seed,
                seconds=seconds,
            )
            results = [r for r in results if (r.method, r.seed) != (method, seed)] + [row]
            common.write_results(path, results)
            print(f"{method:18s} seed {seed}  AUC {metrics['auc']:.3f}  ({seconds:.0f} s)", flush=True)
    text = olympic_report.write(folder, results, shown, postures)
    print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def prepare(options: RunOptions) -> Postures:
    """Read the tree (or draw one), decode its crops, and describe them by HOG."""
    cache = common.output_folder(options.cache)
    if options.data_root is None:
        root, name = cache / f"figures-{options.figures}", f"figures-{options.figures}"
        make_figures(root, num_workers=max(1, options.workers), **FIGURE_SIZES[options.figures])
    else:
        root, name = options.data_root, options.data_root.resolve().name
    tree = load_tree(root, categories=options.categories, skip_unreadable=options.skip_unreadable)
    print(tree.summary(), flush=True)
    for excluded in tree.excluded:
        print(f"  left out: {excluded}")
    frames = OlympicFrames(tree)
    identity = tree_identity(tree)
    shared: dict[str, Any] = {"num_workers": options.workers, "progress": options.progress}
    images = ImageStore(frames, cache, options.recipe.image_size, data_id=identity, **shared)
    describe = HOGLDA(image_size=options.hog_size, whiten=False, normalize=False)
    describe.fit_background(frames, **shared)
    centred = describe.transform(frames, mirror=True, cache_dir=cache, data_id=identity, **shared)

    def hog(kind: str) -> Pair:
        finisher = copy.copy(describe)
        finisher.normalize, finisher.whiten = True, kind == "hog-lda"
        finisher.window = options.window if kind == "hog-window" else None
        return finisher.finish(centred[0]), finisher.finish(centred[1])

    first = hog(options.initial)
    start = Start(*principal_components(first[0], options.components, first[1]), tree.sources)
    return Postures(name, tree, images, hog, start)


def tree_identity(tree: OlympicTree) -> str:
    """A digest of which frames a tree holds and when they last changed."""
    files = [*tree.paths, *(str(file.path) for file in tree.seq_files.values())]
    stats = [(p, *_size_and_time(p)) for p in files if p]
    return digest(list(tree.names), stats, [] if tree.boxes is None else tree.boxes)


def run(
    method: str, seed: int, postures: Postures, options: RunOptions, folder: Path
) -> tuple[dict[str, float], RetrievalResult, JointTrainer | None, Pair]:
    """One method under one seed: its measures, its curves, its trainer if it learned, its features."""
    if method in ("hog", "hog-lda", "start"):
        features = postures.hog(options.initial if method == "start" else method)
        roc = postures.score(features)
        return measures(roc), roc, None, features
    recipe = options.recipe_of(method)
    rounds: dict[str, float] = {}
    joint = None
    if method in ("random", "alexnet-imagenet"):
        models = alexnet.build(recipe.architecture, seed, dropout=0.0)
        if method == "alexnet-imagenet":
            alexnet.load_imagenet(models, str(options.imagenet_weights))
        models["trunk"] = torch.nn.Sequential(BatchAugmentation(), models["trunk"])
        models = {name: model.to(options.device) for name, model in models.items()}
    else:
        begin = alexnet.build(recipe.architecture, seed, recipe.dropout)
        if options.init is not None:
            alexnet.load_imagenet(begin, options.init)
        home = folder / f"{method}-seed{seed}"
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
            end_of_round=lambda joint: score_round(joint, home, postures, options),
        )
        models = joint.evaluation_models
        rounds = read_scores(home)
    features = features_of(models, options.layer, postures, options)
    roc = postures.score(features)
    if joint is not None:
        rounds[f"auc_round_{recipe.rounds}"] = roc.auc
    return {**measures(roc), **rounds}, roc, joint, features


def score_round(joint: JointTrainer, home: Path, postures: Postures, options: RunOptions) -> None:
    """Note the AUC after a round that is not the last, in a file that a resumed run reads again."""
    if not options.score_rounds or joint.round + 1 >= joint.num_rounds:
        return
    roc = postures.score(features_of(joint.evaluation_models, options.layer, postures, options))
    scores = {**read_scores(home), f"auc_round_{joint.round + 1}": roc.auc}
    common.write_text(home / "rounds.json", json.dumps(scores))
    print(f"  {home.name}: AUC {roc.auc:.3f} after round {joint.round + 1}", flush=True)


def read_scores(home: Path) -> dict[str, float]:
    """The AUC after each round so far."""
    path = home / "rounds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def measures(roc: RetrievalResult) -> dict[str, float]:
    """The mean AUC, and that of each category."""
    return {"auc": roc.auc, **{f"auc/{name}": auc for name, auc in roc.per_category.items()}}


def features_of(
    models: dict[str, torch.nn.Module], layer: alexnet.Layer, postures: Postures, options: RunOptions
) -> Pair:
    """Features of the frames that the labels speak of, and of their mirror images; zeros for the others."""
    labels = postures.tree.dataset_labels().values()
    needed = np.unique(
        np.concatenate([ids for one in labels for ids in (one.anchors, *one.pos_ids, *one.neg_ids)])
    )
    network = alexnet.up_to(models, layer)
    found = extract(
        network,
        Subset(postures.images, needed.tolist()),
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
    settings: dict[str, Any] = {"frames": len(postures.tree), "hog_size": options.hog_size}
    if "hog" not in method and method != "random":
        settings["components"] = options.components
    if method not in ("hog", "hog-lda"):
        settings |= {"initial": options.initial, "window": options.window}
    if method in METHODS or method in ("posets-fixed", "random", "alexnet-imagenet"):
        recipe = options.recipe_of(method)
        settings |= {
            **recipe.settings(),
            "layer": options.layer,
            "preset": options.preset,
            "device": options.device,
        }
        settings |= {"hardware": common.hardware(options.device)}
    return settings


def _size_and_time(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"olympic.py: {error}")
