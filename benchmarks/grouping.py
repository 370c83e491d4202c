"""Quality of groupings: what share of the pairs in a class is right, and how many samples are in classes.

python benchmarks/grouping.py                                               # planted blobs and noise
python benchmarks/grouping.py --data-root CARS --features hog pretrained --part test
python benchmarks/grouping.py --data-root TREE                              # a tree of olympic.py with joints

Labels are held back for scoring. Of a tree a pair of frames from two sources is right if its poses are among
the closest 10 % of random pairs. Seconds are of the processor; memory is what a method adds to the peak.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common

FEATURES = ("hog", "pretrained")
METHODS = {
    "surrogate": "SurrogateGrouping with its defaults",
    "surrogate-paper": "the nearest 5 %, classes of 16 at most, no contrast",
    "sure-.1": "ConfidentGrouping, the surest tenth of the samples",
    "sure-.2": "the surest fifth",
    "sure-.4": "the surest two fifths",
    "mutual": "connected components of pairs that are among the 3 nearest of each other",
    "hdbscan": "scikit-learn's, classes of 3 or more",
    "dbscan": "scikit-learn's, radius: the median distance to the third neighbor",
    "agglomerative": "average linkage, as many classes as there are samples by eight",
    "kmeans": "as many clusters as there are samples by eight",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:16s}{what}" for name, what in METHODS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nmethods:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help="of the data; default: blobs")
    parser.add_argument(
        "--features", nargs="+", choices=FEATURES, default=["hog"], help="of images; default: hog"
    )
    parser.add_argument(
        "--part", choices=("train", "test", "all"), default="all", help="classes of images; default: all"
    )
    parser.add_argument("--method", nargs="+", choices=METHODS, default=[*METHODS], help="default: all")
    parser.add_argument("--samples", type=int, default=4000, metavar="N", help="at most; default: 4000")
    parser.add_argument("--output", type=Path, default=Path("runs/grouping"), metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), metavar="FOLDER", help="features")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that are there")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, the blobs and the methods")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    got = parser.parse_args(arguments)
    if got.samples < 100:
        raise ValueError(f"--samples must be 100 or more, got {got.samples}")
    if got.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {got.seed}")
    return got


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "grouping.py")

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn import cluster

from benchmarks.core.results import Result, check_alike, distinct_names, rows_to_add_to, table, write_results
from benchmarks.data import zero_shot
from benchmarks.data.images import Chosen
from benchmarks.data.olympic import OlympicFrames, load_tree
from benchmarks.timing.clock import forget_peak, peak_bytes
from pml_posets import HOGLDA, ConfidentGrouping, KMeansGrouping, SurrogateGrouping, extract, search
from pml_posets.data.cache import FeatureCache
from pml_posets.features.pooled import PartialWhitening
from pml_posets.features.reduction import principal_components

BLOBS = ((60, 25, 400), (200, 8, 400), (300, 5, 1000), (60, 25, 4000), (20, 100, 1000))  # number, size, noise
MAX_PAIRS = 500_000  # that are scored; of more a random choice
CLOSE = 0.1  # of random pairs, whose poses count as alike


@dataclass(frozen=True)
class Samples:
    """(N, D) features, and what is known of the samples: classes (N,), -1 for noise, or poses (N, J, 2)."""

    name: str
    features: np.ndarray
    classes: np.ndarray | None = None
    poses: np.ndarray | None = None
    sources: np.ndarray | None = None

    def right(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(P,) 1 for pairs that belong together, 0 for others, NaN for pairs that do not count."""
        if self.classes is not None:
            return ((self.classes[a] == self.classes[b]) & (self.classes[a] >= 0)).astype(float)
        assert self.sources is not None
        gaps = self._pose_gaps(a, b)
        return np.where(np.isnan(gaps) | (self.sources[a] == self.sources[b]), np.nan, gaps <= self._close())

    def _pose_gaps(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Mean distance of the joints that both have, poses moved to their middle and scaled to one size."""
        assert self.poses is not None
        poses = self.poses - np.nanmean(self.poses, axis=1, keepdims=True)
        poses /= np.sqrt(np.nanmean(np.square(poses).sum(-1, keepdims=True), axis=1, keepdims=True))
        return np.nanmean(np.linalg.norm(poses[a] - poses[b], axis=-1), axis=1)

    def _close(self) -> float:
        a, b = np.random.default_rng(0).integers(0, len(self.features), (2, 100_000))
        assert self.sources is not None
        return float(np.nanquantile(self._pose_gaps(a, b)[self.sources[a] != self.sources[b]], CLOSE))


def planted(number: int, size: int, noise: int, seed: int) -> Samples:
    """Blobs of a spread of .3 about random centers, and noise that is spread like the centers; 32-d."""
    rng = np.random.default_rng(seed)
    classes = np.concatenate([np.repeat(np.arange(number), size), np.full(noise, -1)])
    rng.shuffle(classes)
    features = rng.standard_normal((len(classes), 32))
    inside = classes >= 0
    features[inside] = 0.3 * features[inside] + rng.standard_normal((number, 32))[classes[inside]]
    name = f"{number} blobs of {size}, {noise} of noise"
    return Samples(name, features.astype(np.float32), classes)


def quality(labels: np.ndarray, samples: Samples, seed: int) -> dict[str, float]:
    """How good classes are; `labels` (N,), -1 for unassigned. NaN where a measure is not defined."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    labels = np.where((labels >= 0) & (sizes[labels] > 1), labels, -1)  # a class of one is none
    sizes = np.where(sizes > 1, sizes, 0)
    first, second = pairs(labels, sizes, seed)
    right = samples.right(first, second)
    counted = ~np.isnan(right)
    found = {
        "pairs_right": float(right[counted].mean()) if counted.any() else np.nan,
        "coverage": float((labels >= 0).mean()),
        "classes": float((sizes > 0).sum()),
        "purity": np.nan,
        "noise": np.nan,
    }
    if samples.classes is not None:
        noise = samples.classes < 0
        alone = np.where(noise, samples.classes.max() + 1 + np.arange(len(noise)), samples.classes)
        inside = labels >= 0
        both, counts = np.unique(np.stack([labels, alone], 1)[inside], axis=0, return_counts=True)
        most = np.zeros(len(sizes))
        np.maximum.at(most, both[:, 0], counts)
        found["purity"] = float(most.sum() / max(1, inside.sum()))
        found["coverage"] = float(inside[~noise].mean())
        found["noise"] = float(inside[noise].sum())
    return found


def pairs(labels: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples that share a class, as pairs: all of them, or as many random ones as are scored."""
    order = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    starts = np.cumsum(sizes) - sizes
    of_class = sizes * (sizes - 1)  # ordered pairs
    total = int(of_class.sum())
    chosen = np.arange(total)
    if total > MAX_PAIRS:
        chosen = np.random.default_rng(seed).integers(0, total, MAX_PAIRS)
    ends = np.cumsum(of_class)
    which = np.searchsorted(ends, chosen, side="right")
    within = chosen - (ends - of_class)[which]
    a, b = within // np.maximum(sizes[which] - 1, 1), within % np.maximum(sizes[which] - 1, 1)
    return order[starts[which] + a], order[starts[which] + b + (b >= a)]


def grouped(method: str, samples: Samples, seed: int) -> np.ndarray:
    """(N,) labels, -1 for unassigned."""
    features, count = samples.features, max(2, len(samples.features) // 8)
    if method.startswith("surrogate"):
        options: dict[str, Any] = {"top_fraction": 0.05, "max_size": 16, "contrast": np.inf}
        grouping = SurrogateGrouping(**options if method.endswith("paper") else {}, random_state=seed)
        return grouping.fit_predict(features, sources=samples.sources)
    if method.startswith("sure"):
        return ConfidentGrouping(float(method[5:])).fit_predict(features, sources=samples.sources)
    if method == "mutual":
        found = search(features, 3, sources=samples.sources).indices
        row = np.repeat(np.arange(len(found)), 3)[found.reshape(-1) >= 0]
        links = csr_array((np.ones(len(row)), (row, found[found >= 0])), (len(found),) * 2)
        return np.asarray(connected_components(links.multiply(links.T))[1])
    rivals: dict[str, Callable[[], Any]] = {
        "hdbscan": lambda: cluster.HDBSCAN(min_cluster_size=3, copy=True),
        "dbscan": lambda: cluster.DBSCAN(
            eps=float(np.median(search(features, 3).distances[:, 2])), min_samples=3
        ),
        "agglomerative": lambda: cluster.AgglomerativeClustering(count, linkage="average"),
        "kmeans": lambda: KMeansGrouping(count, random_state=seed),
    }
    return np.asarray(rivals[method]().fit_predict(features))


def measured(method: str, samples: Samples, seed: int) -> dict[str, float]:
    """Quality, seconds of the processor and memory of a method."""
    forget_peak()
    before, start = peak_bytes(), time.process_time()
    labels = grouped(method, samples, seed)
    cost = {"cpu_seconds": time.process_time() - start, "mib": (peak_bytes() - before) / 2**20}
    return quality(labels, samples, seed) | cost


def read(got: argparse.Namespace) -> list[Samples]:
    """The samples that the options ask for."""
    if got.data_root is None:
        return [planted(*blobs, got.seed) for blobs in BLOBS]
    known: dict[str, Any]
    if (got.data_root / "joints").is_dir():
        tree = load_tree(got.data_root)
        if tree.joints is None:
            raise ValueError(f"{got.data_root} has no joints: pairs of frames are scored by them")
        name, images, part = got.data_root.resolve().name, OlympicFrames(tree), np.arange(len(tree.sources))
        known = {"poses": np.asarray(tree.joints, np.float64), "sources": np.asarray(tree.sources)}
        part = part[np.isfinite(known["poses"]).all(axis=-1).sum(axis=1) >= 5]
    else:
        data = zero_shot.load(zero_shot.kind_of(got.data_root), got.data_root)
        name, images = f"{data.name}, {got.part}", data.images
        part = {"train": data.train, "test": data.test, "all": np.arange(len(data))}[got.part]
        known = {"classes": data.labels}
    if len(part) > got.samples:
        part = np.sort(np.random.default_rng(got.seed).choice(part, got.samples, replace=False))
    chosen, known = Chosen(images, part), {key: value[part] for key, value in known.items()}
    return [Samples(f"{name}, {kind}", described(chosen, kind, got), **known) for kind in got.features]


def described(images: Any, kind: str, got: argparse.Namespace) -> np.ndarray:
    """(N, D) unit rows, made once and kept in the cache folder.

    "hog": 96 px, mean subtracted, its first 256 directions. "pretrained": the last maps of EfficientNet-Lite0
    at 128 px, averaged, partly whitened to 256 dimensions.
    """
    cache = FeatureCache(common.output_folder(got.cache, "--cache"))
    key = cache.key({"grouping": kind}, images, images.data_id)
    if (kept := cache.load(key)) is not None:
        return np.asarray(kept["features"])
    progress = not got.quiet
    if kind == "hog":
        hog = HOGLDA(whiten=False, normalize=True).fit_background(images, progress=progress)
        features = principal_components(hog.transform(images, progress=progress), 256)
    else:
        from benchmarks.core.pretrained import efficientnet_lite0

        statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        network = efficientnet_lite0().to(memory_format=torch.channels_last)
        rows = extract(network, images, size=(128, 128), grid=1, progress=progress, **statistics)
        features = PartialWhitening(256).fit_transform(rows)
    cache.save(key, {"features": features})
    return np.asarray(features)


def report(results: Sequence[Result]) -> str:
    """A table a data set."""
    header = ["method", "pairs right", "coverage", "classes", "purity", "noise taken in", "cpu s", "MiB"]
    digits = {"classes": 0, "noise": 0, "mib": 0, "cpu_seconds": 1}
    lines = []
    for name in dict.fromkeys(result.dataset for result in results):
        rows = [
            [method, *(f"{value:.{digits.get(key, 3)}f}" for key, value in result.metrics.items())]
            for method, result in zip(distinct_names(results), results, strict=True)
            if result.dataset == name
        ]
        lines += [f"**{name}**", "", table(header, [[c.replace("nan", "") for c in row] for row in rows]), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    got = parse(arguments)
    folder = common.output_folder(got.output)
    path = folder / "results.json"
    results = rows_to_add_to(path, got.resume)
    check_alike(results, (), lambda method: {"samples": got.samples}, path)
    settings = {"samples": got.samples, "part": got.part}
    for samples in read(got):
        done = {(r.method, r.dataset, r.seed) for r in results if r.settings == settings}
        for method in got.method:
            if (method, samples.name, got.seed) in done:
                continue
            metrics = measured(method, samples, got.seed)
            seconds = metrics["cpu_seconds"]
            results.append(Result(method, samples.name, metrics, settings, got.seed, seconds=seconds))
            write_results(path, results)
            print(f"{samples.name}, {method}: {seconds:.1f} s", flush=True)
    text = report(results)
    common.write_text(folder / "table.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    common.run_command(main, "grouping.py")
