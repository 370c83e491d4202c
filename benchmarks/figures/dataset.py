"""Embedded data: articulated athletes, rendered into a tree in the layout of the Olympic Sports benchmark.

Several sports, in each several sources (one athlete in one scene) with several clips. Clothes, body,
viewpoint, background, blur and boxes vary; where every joint is, is known. Everything follows from the seed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from benchmarks.data.files import read_arrays
from benchmarks.figures.clips import Clip, FigureSettings, generator, render_source
from benchmarks.figures.motion import JOINT_NAMES, MIRRORED_JOINTS

VERSION = 1
"""Raised whenever the same settings would give other files."""

_STAMP = "figures.json"


@dataclass(frozen=True, eq=False)
class FigureTruth:
    """What is known of every frame; rows are dataset indices of the tree.

    Attributes:
        root: the tree.
        joints: (N, 15, 2) float32, in [0, 1] of the frame's (square) box, x right and y down; outside [0, 1]
            where the box cuts a limb off.
        poses: (N, 15, 2) float32, the joints in body heights relative to the middle of the hips, as the
            camera sees them: what `pose_distances` and the label files compare.
        phases: (N,) float32 in [0, 1), the place in the motion's cycle.
        joint_names: 15 names, in the order of J-HMDB.
    """

    root: Path
    joints: npt.NDArray[np.float32]
    poses: npt.NDArray[np.float32]
    phases: npt.NDArray[np.float32]
    joint_names: tuple[str, ...] = JOINT_NAMES


def make_figures(
    folder: str | os.PathLike[str], seed: int = 0, *, num_workers: int | None = None, **settings: Any
) -> FigureTruth:
    """Render the embedded data into `folder`, unless they are there already with the same settings.

    The folder is a tree for `load_tree`. It is rendered into a temporary folder and renamed when it is whole.

    Args:
        folder: where; it must not hold anything else.
        seed: of everything; the same seed and settings give bit-identical files.
        num_workers: processes (default: one a core).
        **settings: see `FigureSettings`; by default 6 sports x 16 sources x 2 clips x 14 frames make 2,688.
    """
    chosen = FigureSettings(seed=seed, **settings)
    chosen.check()
    folder = Path(folder).absolute()
    stamp = {"version": VERSION, **asdict(chosen), "sports": list(chosen.sports)}
    if not _is_there(folder, stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _render(work, chosen, num_workers)
            (work / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
            work.chmod(0o755)
            if folder.is_dir() and not _is_there(folder, stamp):
                folder.rmdir()  # empty, or `_is_there` would have raised
            if not folder.is_dir():
                work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return load_truth(folder)


def load_truth(folder: str | os.PathLike[str]) -> FigureTruth:
    """What is known of every frame of a tree that `make_figures` made."""
    folder = Path(folder)
    if not (folder / _STAMP).is_file():
        raise ValueError(f"{folder} holds no embedded figures: {_STAMP} is missing")
    parts = [
        read_arrays(path, ("joints", "poses", "phases"))
        for path in sorted((folder / "joints").glob("joints_*.npz"))
    ]
    if not parts:
        raise ValueError(f"{folder} holds no joints/joints_<sport>.npz: remove it, and it is drawn again")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return FigureTruth(folder, whole["joints"], whole["poses"], whole["phases"])


def pose_distances(
    queries: npt.NDArray[np.floating[Any]], poses: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Mean distance of the joints of poses, or of one and the mirrored other if that is less.

    Args:
        queries: (Q, J, 2) poses relative to a common origin, J-HMDB's 15 joints.
        poses: (N, J, 2).

    Returns:
        (Q, N) float32 distances in the poses' unit, and (Q, N) bool: the mirror image was the closer one.
    """
    both = []
    for other in (poses, mirrored_poses(poses)):
        total = np.zeros((len(queries), len(poses)))
        for joint in range(queries.shape[1]):
            gap = queries[:, None, joint] - other[None, :, joint]
            total += np.hypot(gap[..., 0], gap[..., 1])
        both.append((total / queries.shape[1]).astype(np.float32))
    return np.minimum(*both), both[1] < both[0]


def mirrored_poses(poses: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """(N, 15, 2) poses as they are in the mirror image, left and right joints exchanged."""
    return poses[:, MIRRORED_JOINTS] * np.array([-1.0, 1.0], dtype=poses.dtype)


def _is_there(folder: Path, stamp: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = dict(json.loads((folder / _STAMP).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder} holds something else than embedded figures: choose another folder"
        ) from error
    other = [
        f"{name} {found.get(name)!r} instead of {stamp[name]!r}"
        for name in stamp
        if found.get(name) != stamp[name]
    ]
    if other:
        raise ValueError(
            f"{folder} holds figures of other settings ({', '.join(other)}): choose another folder"
        )
    return True


def _render(root: Path, settings: FigureSettings, num_workers: int | None) -> None:
    jobs = settings.jobs()
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(jobs)))
    clips = Parallel(workers)(delayed(render_source)(root, settings, *job) for job in jobs)
    for i, sport in enumerate(settings.sports):
        of_sport = clips[i * settings.num_sources : (i + 1) * settings.num_sources]
        _write_annotation(root, settings, sport, of_sport)


def _write_annotation(
    root: Path, settings: FigureSettings, sport: str, sources: Sequence[list[Clip]]
) -> None:
    """Frame list, joints and label file of one sport."""
    import h5py

    clips = [clip for clips in sources for clip in clips]
    for folder in ("image_pathes", "joints", "labels_hdf5"):
        (root / folder).mkdir(exist_ok=True)
    names = [name for clip in clips for name in clip.names]
    (root / "image_pathes" / f"imagePaths_{sport}.txt").write_text("\n".join(names) + "\n")
    poses = np.concatenate([clip.poses for clip in clips])
    np.savez(
        root / "joints" / f"joints_{sport}.npz",
        joints=np.concatenate([clip.joints for clip in clips]),
        poses=poses,
        phases=np.concatenate([clip.phases for clip in clips]),
        joint_names=np.array(JOINT_NAMES),
    )
    owner = np.repeat(np.arange(len(sources)), [sum(len(clip.names) for clip in clips) for clips in sources])
    labels = _make_labels(poses, owner, settings.num_anchors, generator(settings.seed, sport, "labels"))
    ragged = h5py.vlen_dtype(np.dtype("int32"))
    with h5py.File(root / "labels_hdf5" / f"labels_{sport}.hdf5", "w") as file:
        file["anchors"] = labels.pop("anchors").astype(np.int32)
        for name, rows in labels.items():
            data = file.create_dataset(name, (len(rows),), dtype=ragged)
            for i, row in enumerate(rows):
                data[i] = row.astype(np.int32)


def _make_labels(
    poses: npt.NDArray[np.float32], owner: npt.NDArray[np.int64], num_anchors: int, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Ten positives and ten negatives an anchor, from other sources, by the distance of the true poses.

    Positives are the nearest poses; negatives are drawn between the 25 % and the 55 % quantile of distance.
    """
    anchors = np.sort(rng.choice(len(poses), min(num_anchors, len(poses)), replace=False))
    distance, flip = pose_distances(poses[anchors], poses)
    rows: dict[str, list[npt.NDArray[Any]]] = {
        key: [] for key in ("pos_ids", "neg_ids", "pos_flipvals", "neg_flipvals")
    }
    for i, anchor in enumerate(anchors):
        others = np.flatnonzero(owner != owner[anchor])
        order = others[np.argsort(distance[i, others], kind="stable")]
        between = order[int(0.25 * len(order)) : max(int(0.55 * len(order)), int(0.25 * len(order)) + 1)]
        pos = order[: min(10, max(1, len(order) // 5))]
        neg = rng.permutation(between)[:10]
        for key, ids in (("pos", pos), ("neg", neg)):
            rows[f"{key}_ids"].append(ids)
            rows[f"{key}_flipvals"].append(flip[i, ids].astype(np.int32))
    made: dict[str, Any] = {"anchors": anchors, **rows}
    return made
