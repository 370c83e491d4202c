"""Zero-shot pose: each person takes the pose of the nearest one in feature space (Table 2): strict PCP@0.5.

Without --data-root figures are drawn. No label is used in training, but by supervised, of true poses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common
from benchmarks.core.methods import LEARNED
from benchmarks.core.options import CommandLine, Options, read_arguments


def add_data(add: Callable[..., Any]) -> None:
    people = "Leeds Sports Pose: images/ with joints.npz (crops) or joints.mat (the release)"
    add("--data-root", type=Path, metavar="LSP", help=people)
    pool = "learn from these: LSPET, LSP (its train half), a tree of olympic.py; "
    pool += "default: the train half of --data-root"
    add("--train-root", type=Path, nargs="+", default=[], metavar="FOLDER", help=pool)
    own = "learn from the images of the test people too, never from their poses"
    add("--transductive", action="store_true", help=own)


LINE = CommandLine(
    "lsp",
    examples=(
        "python benchmarks/lsp.py                                         # drawn figures",
        "python benchmarks/lsp.py --data-root LSP --train-root LSPET LSP  # Leeds Sports, more to learn from",
        "python benchmarks/lsp.py --data-root LSP --train-root TREE       # learned on a tree of olympic.py",
    ),
    add_data=add_data,
    layer="pool5",
    plain=("oracle", "mean-pose", "pixels", "hog", "hog-lda", "hog-views", "start"),
    networks=("random", "alexnet-imagenet", "checkpoint", "init"),
    learned=LEARNED,
    poses=True,
    default=("oracle", "mean-pose", "hog", "hog-lda", "start", "random", "posets"),
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    found = read_arguments(LINE, __doc__, arguments)
    roots = found.data.train_root
    for root in roots:
        if not root.is_dir():
            hint = f": score it by --method checkpoint --checkpoint {root}" if root.is_file() else ""
            raise ValueError(f"--train-root {root} is no folder{hint}")
    if len({root.resolve() for root in roots}) < len(roots):
        raise ValueError("--train-root names a folder twice: its images would count twice")
    return found


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "lsp.py")

from functools import cached_property

import numpy as np
from PIL import Image

from benchmarks.core import session
from benchmarks.core.described import PIXELS, Described, Pair
from benchmarks.core.drawn_poses import caption, heated, with_pose
from benchmarks.core.groupings import Start
from benchmarks.core.pool import Pool, pool_name, read_pool
from benchmarks.core.results import Result
from benchmarks.core.task import Score, Task, check_size, draw, root_name
from benchmarks.data.people import PoseData
from benchmarks.data.poses import load_figures, load_lsp
from benchmarks.measures.copied import CopiedPoses, copy_poses
from benchmarks.measures.pose import pcp
from benchmarks.measures.skeletons import mirror_joints
from pml_posets.data.cache import digest
from pml_posets.plots import Tile, image_rows

NEIGHBORS = 20  # whose poses the heat maps show
SHOWN = ("random", "hog", "posets", "checkpoint", "oracle")  # in the pictures
SIDE = 96  # of the images in the pictures, px


class Poses(Task):
    """People with poses, and a pool to learn from.

    A test person takes the pose of the nearest train person or mirrored train person.

    Attributes:
        gallery: people whose poses are copied: those to learn from with every joint annotated.
        incomplete: how many were left out of it.
    """

    measure = "pcp_total"
    digits = 1
    mirror = True
    paper: Mapping[str, str] = {  # on Leeds Sports
        "oracle": "69.2",
        "alexnet-imagenet": "41.1",
        "cliques": "43.5 (from ImageNet)",
        "triplet": "30.0",
        "posets": "34.3 (from ImageNet: 48.3)",
    }
    paper_title = "paper (total, LSP)"

    def __init__(self, people: PoseData, pool: Pool, options: Options) -> None:
        unlabeled = Described(pool.images, options)
        tested = Described(people.images, options, background=unlabeled)
        super().__init__(data_name(options), options, unlabeled, tested)
        self.people, self.pool = people, pool
        self.columns = {"pcp_total": "PCP total", **{f"pcp/{part}": part for part in people.skeleton.parts}}
        complete = people.visible[people.train].all(axis=1)
        self.gallery = people.train[complete]
        self.incomplete = int((~complete).sum())
        if not len(self.gallery):
            raise ValueError(f"nobody to learn from in {people.name} has every joint annotated")

    @cached_property
    def start(self) -> Start:
        return self.knowing_poses(self.unlabeled.start(self.pool.sources), self.pool.joints)

    def plain(self, method: str) -> Score:
        """Poses by what needs no network."""
        if method == "oracle":
            copied = self._nearest_by_pose()
            return self._judged(copied.joints[:, 0], copied)
        if method == "mean-pose":
            mean = self._gallery_poses().mean(0)
            return self._judged(np.repeat(mean[None], len(self.people.test), 0), None)
        return self.measured(self._pixels()) if method == "pixels" else super().plain(method)

    def measured(self, features: Pair) -> Score:
        """PCP of the copied poses: cosine similarity, mirror images in the gallery."""
        plain, mirrored = features
        people = self.people
        copied = copy_poses(
            plain[people.test],
            plain[self.gallery],
            people.joints[self.gallery],
            mirrored[self.gallery],
            people.skeleton,
            k=min(NEIGHBORS, 2 * len(self.gallery)),
        )
        return self._judged(copied.joints[:, 0], copied)

    def _judged(self, predicted: np.ndarray, shown: CopiedPoses | None) -> Score:
        people = self.people
        found = pcp(predicted, people.joints[people.test], people.skeleton)
        parts = {f"pcp/{part}": value for part, value in found.parts.items()}
        return Score({"pcp_total": found.total, **parts, "sticks_left_out": found.num_excluded}, shown)

    def _gallery_poses(self) -> np.ndarray:
        """(2G, J, 2), those of the mirror images behind the others."""
        joints = self.people.joints[self.gallery]
        return np.concatenate([joints, mirror_joints(joints, self.people.skeleton)])

    def _nearest_by_pose(self) -> CopiedPoses:
        """The ground truth: the gallery's poses with the smallest mean distance of joints."""
        gallery = self._gallery_poses()
        k = min(NEIGHBORS, len(gallery))
        nearest = [
            np.argsort(np.nanmean(np.linalg.norm(gallery - true, axis=2), axis=1), kind="stable")[:k]
            for true in self.people.joints[self.people.test]
        ]
        indices = np.stack(nearest)
        return CopiedPoses(indices, indices >= len(self.gallery), gallery[indices])

    def _pixels(self) -> Pair:
        """(N, D) float32 of the images and the mirrored ones, less the mean of the gallery's both."""
        images = self.tested.pixels()
        mean = images[self.gallery].mean(0)
        mean = (mean + mean[..., ::-1]) / 2
        plain, mirrored = ((x - mean).reshape(len(images), -1) for x in (images, images[..., ::-1]))
        return plain, mirrored

    def origin(self) -> dict[str, Any]:
        names = str(digest(self.pool.names)[:16])
        return {"pool": self.pool.name, "images": len(self.pool.images), "image_names": names}

    def plain_settings(self, method: str) -> dict[str, Any]:
        if method == "pixels":
            return {"side": PIXELS}
        found = super().plain_settings(method)
        return {**found, "background": self.pool.name} if found else {}

    def scored_settings(self) -> dict[str, Any]:
        return {**self.people.settings(), "gallery": len(self.gallery), "mirrored_gallery": True}

    def notes(self, results: list[Result]) -> list[str]:
        """Whose poses are copied, and what differs from the paper."""
        unjudged = max((r.metrics.get("sticks_left_out", 0.0) for r in results), default=0.0)
        return [
            f"Strict PCP@0.5 in percent on {len(self.people.test)} people ({unjudged:.0f} sticks not "
            f"judged). Gallery: {len(self.gallery)} people and their mirror images ({self.incomplete} left "
            "out, joints missing).",
            f"Here: {self.people.name}, learned from {self.pool.name}; {self.seen()}",
            "The paper: Leeds Sports, 227 px, pool5, networks trained on Olympic Sports frames. Its triplets "
            "are Shuffle & Learn, its cliques began from ImageNet weights.",
        ]

    # --- Pictures

    def pictures(self, shown: Mapping[str, CopiedPoses]) -> dict[str, Any]:
        """The nearest with their poses, and heat maps of their joints."""
        shown = {name: shown[name] for name in SHOWN if name in shown}
        if not shown:
            return {}
        count = min(copied.joints.shape[1] for copied in shown.values())
        near = "People with their true poses (red), and the nearest people, whose poses are copied"
        heat = f"Yellow: joints of the {count} nearest people. Lines: the true pose"
        return {
            "neighbors": image_rows(self._neighbors(shown), near),
            "heatmaps": image_rows(self._heat_maps(shown), heat),
        }

    def _queries(self, count: int) -> list[int]:
        """Test rows, evenly spaced."""
        return np.linspace(0, len(self.people.test) - 1, count + 2).astype(int)[1:-1].tolist()

    def _neighbors(self, shown: Mapping[str, CopiedPoses], k: int = 6) -> dict[str, list[Tile]]:
        people, gallery = self.people, self.gallery
        rows: dict[str, list[Tile]] = {}
        for query in self._queries(4):
            index = int(people.test[query])
            truth = with_pose(self._image(index), people.joints[index], people.skeleton)
            for method, found in shown.items():
                row = [Tile(truth, caption(people.names[index]), "tab:red")]
                for rank in range(min(k, found.indices.shape[1])):
                    which, flip = int(found.indices[query, rank]), bool(found.flips[query, rank])
                    person = int(gallery[which % len(gallery)])
                    posed = with_pose(self._image(person, flip), found.joints[query, rank], people.skeleton)
                    below = caption(people.names[person]) + ("\nmirrored" if flip else "")
                    row.append(Tile(posed, below))
                rows[f"{people.names[index]}\nby {method}"] = row
        return rows

    def _heat_maps(self, shown: Mapping[str, CopiedPoses]) -> dict[str, list[Tile]]:
        people = self.people
        rows: dict[str, list[Tile]] = {}
        for method, found in shown.items():
            rows[method] = []
            for query in self._queries(8):
                index = int(people.test[query])
                image = heated(self._image(index), found.joints[query])
                posed = with_pose(image, people.joints[index], people.skeleton)
                rows[method].append(Tile(posed, caption(people.names[index])))
        return rows

    def _image(self, index: int, flip: bool = False) -> Image.Image:
        image = self.people.images[index].convert("RGB").resize((SIDE, SIDE))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


# --- Data


def data_name(options: Options) -> str:
    """The people, and what was learned from if it is not of them."""
    name, pool = root_name(options.data), pool_name(options.data)
    return f"{name}, learned on {pool}" if pool else name


def prepare(options: Options) -> Poses:
    """Read the people and the pool, or draw them."""
    if options.data.data_root is None:
        people = load_figures(draw(options.data))
    else:
        people = load_lsp(options.data.data_root, skip_unreadable=options.data.skip_unreadable)
    print(people.summary(), flush=True)
    pool = read_pool(people, options)
    print(f"learned from: {pool.name}, {len(pool.images)} images", flush=True)
    check_size(len(pool.images), f"{pool.name} holds only", options)
    return Poses(people, pool, options)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    return session.run(chosen, data_name(chosen), prepare)


if __name__ == "__main__":
    common.run_command(main, "lsp.py")
