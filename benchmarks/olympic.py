"""Posture retrieval on Olympic Sports, or on any tree in its layout: the main benchmark (the paper's Table 1).

    python benchmarks/olympic.py                                    # figures it draws itself, in minutes
    python benchmarks/olympic.py --data-root TREE --method all      # your frames
"""

from __future__ import annotations

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
from benchmarks.figures import make_figures
from benchmarks.learning import METHODS, Recipe, Start, train
from benchmarks.olympic_data import OlympicFrames, OlympicTree, load_tree
from benchmarks.options import RunOptions, parse
from pml_posets.evaluation import RetrievalResult, retrieval_report
from pml_posets.features import extract
from pml_posets.hoglda import HOGLDA
from pml_posets.image_store import ImageStore
from pml_posets.trainers import JointTrainer

Pair = tuple[np.ndarray, np.ndarray]  # (N, D) features of the frames and of their mirror images


@dataclass
class Postures:
    """A tree, ready to be learned from.

    Args:
        name: of the data, for the results.
        tree: its annotation.
        images: (3, S, S) uint8 tensors, one a frame.
        hog: plain HOG, mean subtracted, unit rows.
        hog_lda: whitened by the statistics of generic patches.
        start: the first similarities.
    """

    name: str
    tree: OlympicTree
    images: ImageStore
    hog: Pair
    hog_lda: Pair
    start: Start

    def score(self, features: Pair) -> RetrievalResult:
        """The ROC curves of features: cosine similarity, mirror images where the labels ask for them."""
        return retrieval_report(features[0], self.tree.dataset_labels(), mirrored=features[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    folder = common.output_folder(options.output)
    postures = prepare(options, folder)
    path = folder / "results.json"
    results = common.read_results(path) if options.resume else []
    trainers: dict[str, JointTrainer] = {}
    rocs: dict[str, RetrievalResult] = {}
    for seed in options.seeds:
        for method in options.methods:
            if method in ("hog", "hog-lda", "start", "alexnet-imagenet") and seed != options.seeds[0]:
                continue  # they hold no chance
            began = time.perf_counter()
            result, roc, joint = run(method, seed, postures, options, folder)
            if joint is not None and seed == options.seeds[0]:
                trainers[method] = joint
            if seed == options.seeds[0]:
                rocs[method] = roc
            row = common.Result(
                method,
                postures.name,
                result,
                settings_of(method, options, postures),
                seed,
                round(time.perf_counter() - began, 1),
            )
            results = [r for r in results if (r.method, r.seed) != (method, seed)] + [row]
            common.write_results(path, results)
            print(f"{method:18s} seed {seed}  AUC {result['auc']:.3f}  ({row.seconds:.0f} s)", flush=True)
    text = olympic_report.write(folder, results, rocs, trainers, postures, options)
    print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def prepare(options: RunOptions, folder: Path) -> Postures:
    """Read the tree (or draw one), decode its crops, and describe them by HOG."""
    cache = options.cache or folder / "cache"
    if options.data_root is None:
        root = cache / f"figures-{options.figures}"
        sizes = {"tiny": {"num_sources": 4, "num_clips": 1, "num_frames": 10, "num_anchors": 8}, "full": {}}
        make_figures(root, num_workers=max(1, options.workers), **sizes[options.figures])
        name = f"figures ({options.figures})"
    else:
        root, name = options.data_root, options.data_root.resolve().name
    tree = load_tree(root, categories=options.categories, skip_unreadable=options.skip_unreadable)
    print(tree.summary(), flush=True)
    for excluded in tree.excluded[:20]:
        print(f"  left out: {excluded}")
    frames = OlympicFrames(tree)
    identity = common.identity(tree.root, tree.names, tree.boxes)
    workers = options.workers
    images = ImageStore(
        frames, cache, options.recipe.image_size, num_workers=workers, progress=options.progress, data_id=identity
    )
    shared = {"num_workers": workers, "progress": options.progress}
    describe = HOGLDA(image_size=options.hog_size).fit_background(frames, seed=0, **shared)
    kept = {**shared, "mirror": True, "cache_dir": cache, "data_id": identity}
    hog_lda = describe.transform(frames, **kept)
    describe.whiten = False
    hog = describe.transform(frames, **kept)
    describe.window = options.window
    first = {"hog": hog, "hog-lda": hog_lda}.get(options.initial) or describe.transform(frames, **kept)
    return Postures(name, tree, images, hog, hog_lda, Start(first[0], first[1], tree.sources))


def run(
    method: str, seed: int, postures: Postures, options: RunOptions, folder: Path
) -> tuple[dict[str, float], RetrievalResult, JointTrainer | None]:
    """One method under one seed: its measures, its curves and, if it learned, its trainer."""
    fixed = {"hog": postures.hog, "hog-lda": postures.hog_lda}
    fixed["start"] = (postures.start.features, postures.start.mirrored)  # type: ignore[assignment]
    if method in fixed:
        roc = postures.score(fixed[method])
        return measures(roc), roc, None
    recipe = options.recipe_of(method)
    joint = None
    rounds: dict[str, float] = {}
    if method in ("random", "alexnet-imagenet"):
        models: dict[str, torch.nn.Module] = alexnet.build(recipe.architecture, seed, dropout=0.0)
        if method == "alexnet-imagenet":
            alexnet.load_imagenet(models, options.imagenet_weights)
        models = {**models, "trunk": torch.nn.Sequential(common.normalisation(), models["trunk"])}
        models = {name: model.to(options.device) for name, model in models.items()}
    else:
        start = None
        if options.init is not None:
            start = alexnet.build(recipe.architecture, seed, recipe.dropout)
            alexnet.load_imagenet(start, options.init)

        def after_round(joint: JointTrainer) -> None:
            if joint.round + 1 < joint.num_rounds and options.score_rounds:
                roc = postures.score(features_of(joint.evaluation_models, options.layer, postures, options))
                rounds[f"auc_round_{joint.round + 1}"] = roc.auc
                print(f"  {method} seed {seed}: AUC {roc.auc:.3f} after round {joint.round + 1}", flush=True)

        joint = train(
            "posets" if method == "posets-fixed" else method,  # type: ignore[arg-type]
            postures.images,
            postures.start,
            recipe,
            seed=seed,
            device=options.device,
            num_workers=options.workers,
            output_dir=folder / f"{method}-seed{seed}",
            resume=options.resume,
            progress=options.progress,
            models=start,
            end_of_round=after_round,
        )
        models = joint.evaluation_models
    roc = postures.score(features_of(models, options.layer, postures, options))
    found = {**measures(roc), **rounds}
    if joint is not None:
        found[f"auc_round_{recipe.rounds}"] = roc.auc
    return found, roc, joint


def measures(roc: RetrievalResult) -> dict[str, float]:
    """The mean AUC, and that of each category."""
    return {"auc": roc.auc, **{f"auc/{name}": auc for name, auc in roc.per_category.items()}}


def features_of(
    models: dict[str, torch.nn.Module], layer: alexnet.Layer, postures: Postures, options: RunOptions
) -> Pair:
    """Features of the frames that the labels speak of, and of their mirror images; zeros for the others."""
    labels = postures.tree.dataset_labels().values()
    needed = np.unique(np.concatenate([i for l in labels for i in (l.anchors, *l.pos_ids, *l.neg_ids)]))
    network = alexnet.up_to(models, layer)
    half = options.recipe.precision == "bfloat16" and options.device == "cpu"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = extract(
            network,
            Subset(postures.images, needed.tolist()),
            batch_size=256,
            num_workers=options.workers,
            device=options.device,
            mirror=True,
            progress=options.progress,
        )
    both = np.zeros((2, len(postures.tree), found[0].shape[1]), np.float32)
    both[:, needed] = found
    return both[0], both[1]


def settings_of(method: str, options: RunOptions, postures: Postures) -> dict[str, Any]:
    """What the numbers of a method depend on."""
    settings: dict[str, Any] = {"frames": len(postures.tree), "hog_size": options.hog_size}
    if method not in ("hog", "hog-lda"):
        settings |= {"initial": options.initial, "window": options.window}
    if method in METHODS or method in ("posets-fixed", "random", "alexnet-imagenet"):
        recipe: Recipe = options.recipe_of(method)
        settings |= {**recipe.settings(), "layer": options.layer, "preset": options.preset, "device": options.device}
        settings |= {"hardware": common.hardware(options.device)}
    return settings


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"olympic.py: {error}")
