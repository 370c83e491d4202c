"""Tables 3 and 4: DeepPose from different first weights, with few labels and with all.

Loads Leeds Sports Pose, MPII or drawn figures (`prepare`); trains one regressor for each of --seed,
--label-fraction and --init (`run`); measures strict PCP@0.5 or PCKh@0.5 (`judge`). See --help.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common
from benchmarks.regression.options import parse

if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "deeppose.py")

import numpy as np
import numpy.typing as npt

from benchmarks.core import networks
from benchmarks.core.results import OF_THE_MACHINE, Result, earlier_results, write_results
from benchmarks.core.task import draw, root_name
from benchmarks.data.mpii import load_mpii
from benchmarks.data.people import PoseData
from benchmarks.data.poses import load_figures, load_lsp, load_lspet
from benchmarks.measures.pose import head_box_size, head_neck_distance, pckh, pcp
from benchmarks.measures.skeletons import MPII_SKELETON, mirror_joints
from benchmarks.regression import report, training
from benchmarks.regression.model import PoseRegressor
from benchmarks.regression.recipe import Init
from pml_posets._io import write_npz
from pml_posets._random import derive_seeds
from pml_posets.data.cache import digest
from pml_posets.data.image_store import ImageStore

_LABELS, _HEAD = 3, 4  # what seeds are for


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if common.several_processes():
        raise ValueError("a pose regressor learns in one process: start it by python, without torchrun")
    common.commit()  # that of the code this run begins with
    results = earlier_results(options.output, data_name(options), options.resume)
    data = prepare(options)
    folder = common.output_folder(options.output)
    path = folder / "results.json"
    cached = common.output_folder(options.cache, "--cache")
    print(data.summary(), flush=True)

    @cache
    def images_of(size: int) -> ImageStore:
        more = {"num_workers": options.workers, "progress": not options.quiet}
        return ImageStore(data.images, cached, size, data_id=data.images.data_id, **more)

    for seed in dict.fromkeys(options.seed):
        for fraction in sorted(set(options.label_fraction)):
            rows = labeled(data.train, fraction, seed)
            for init in options.inits:
                settings = settings_of(init, fraction, rows, data, options)
                line = f"{init.name:12s} {len(rows):6d} labels  seed {seed}"
                if is_there(results, init.name, seed, settings, path):
                    print(f"{line}  is there already", flush=True)
                    continue
                images = images_of(settings["image_size"])
                metrics, seconds = run(init, rows, seed, images, data, options, settings, folder)
                row = Result(init.name, data.name, metrics, settings, seed, seconds=round(seconds, 1))
                results.append(row)
                write_results(path, results)
                measure = measure_of(data)
                value = metrics[f"{measure}_total"]
                print(f"{line}  {measure.upper()} {value:.1f}  ({seconds:.0f} s)", flush=True)
    text = report.write(folder, results, data, options.seed[0])
    print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def data_name(options: argparse.Namespace) -> str:
    """What the data are called in the results."""
    if options.mpii_annotations is not None:
        return "MPII"
    if options.data_root is None or (options.data_root / "figures.json").is_file():
        return root_name(options)
    return "LSP" if options.extra_root is None else "LSP+LSPET"


def prepare(options: argparse.Namespace) -> PoseData:
    """Read the people, or draw them."""
    skip = options.skip_unreadable
    if options.mpii_annotations is not None:
        return load_mpii(
            options.mpii_annotations,
            options.mpii_images,
            complete=options.mpii_people != "all",
            split_seed=options.split_seed or 0,
            skip_unreadable=skip,
        )
    root = options.data_root or draw(options)
    data = load_figures(root) if (root / "figures.json").is_file() else load_lsp(root, skip_unreadable=skip)
    if options.extra_root is not None:
        data = data.with_training(load_lspet(options.extra_root, skip_unreadable=skip))
    return data


def labeled(train: npt.NDArray[Any], fraction: float, seed: int) -> npt.NDArray[Any]:
    """The people whose labels are used: at least one, and the first of an order by the seed: budgets nest."""
    order = np.random.default_rng(derive_seeds(seed, _LABELS)).permutation(train)
    return order[: max(1, round(fraction * len(order)))]


def measure_of(data: PoseData) -> str:
    """PCKh for MPII's joints, else PCP."""
    return "pckh" if data.skeleton == MPII_SKELETON else "pcp"


def run(
    init: Init,
    rows: npt.NDArray[Any],
    seed: int,
    images: Any,
    data: PoseData,
    options: argparse.Namespace,
    settings: dict[str, Any],
    folder: Path,
) -> tuple[dict[str, float], float]:
    """Train from one beginning with one budget under one seed, and test: the metrics, and the seconds spent.

    The checkpoint and what the pictures are drawn from lie in a folder of its own.
    """
    recipe = options.recipe
    home = common.output_folder(folder / report.home_of(init.name, settings["label_fraction"], seed))
    models = init.models(recipe.architecture, options.init_layers, seed, recipe.dropout)
    networks.freeze(models["trunk"], recipe.freeze)
    begin = mean_pose(data, rows) - 0.5 if recipe.mean_pose else None
    model = PoseRegressor(models, len(data.skeleton.joints), derive_seeds(seed, _HEAD)[0], begin)
    trained = training.fit(
        model,
        images,
        data,
        rows,
        recipe,
        seed=seed,
        device=options.device,
        num_workers=options.workers if options.device != "cpu" else 0,
        checkpoint=home / "checkpoint.pt",
        settings={key: value for key, value in settings.items() if key not in OF_THE_MACHINE},
        resume=options.resume,
        progress=not options.quiet,
        name=home.name,
    )
    began = time.perf_counter()
    predicted = training.predict(model, images, data.test, recipe, device=options.device)
    curve = {"iterations": np.array(trained.iterations), "losses": np.array(trained.losses)}
    write_npz(home / "predictions.npz", {"joints": predicted, **curve})
    metrics = judge(predicted, data, options.head_size or "neck")
    return {**metrics, "loss": trained.losses[-1]}, trained.seconds + time.perf_counter() - began


def mean_pose(data: PoseData, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(J, 2) mean of some people's poses and mirror images; a joint that nobody has is in the middle."""
    joints = data.joints[rows].astype(np.float64)
    both = np.concatenate([joints, mirror_joints(joints, data.skeleton)])  # (2n, J, 2)
    count = np.isfinite(both).sum(axis=0)
    return np.where(count > 0, np.nansum(both, axis=0) / np.maximum(count, 1), 0.5)


def judge(predicted: npt.NDArray[Any], data: PoseData, head_size: str) -> dict[str, float]:
    """Accuracy of the poses of the test people.

    Args:
        predicted: (len(data.test), J, 2) joints in [0, 1] of the crops.
        data: the people.
        head_size: what PCKh is measured by, "neck" or "box".

    Returns:
        "pcp_total", "pcp/<part>" (or "pckh...") in percent; "judged" and "not_judged", the numbers of sticks
        or joints; "distance", the mean distance of the annotated joints, percent of the crop.
    """
    true = data.joints[data.test]
    measure = measure_of(data)
    if measure == "pcp":
        score = pcp(predicted, true, data.skeleton)
    elif head_size == "neck":
        score = pckh(predicted, true, head_neck_distance(true, data.skeleton), skeleton=data.skeleton)
    elif data.head_boxes is not None:
        score = pckh(predicted, true, head_box_size(data.head_boxes[data.test]), skeleton=data.skeleton)
    else:
        raise ValueError(f"{data.name} has no head boxes: use --head-size neck")
    return {
        f"{measure}_total": score.total,
        **{f"{measure}/{part}": value for part, value in score.parts.items()},
        "judged": sum(score.counted.values()),
        "not_judged": score.num_excluded,
        "distance": 100 * float(np.nanmean(np.linalg.norm(predicted - true, axis=2))),
    }


def settings_of(
    init: Init, fraction: float, rows: npt.NDArray[Any], data: PoseData, options: argparse.Namespace
) -> dict[str, Any]:
    """What the numbers of a run depend on, beside its seed."""
    begun: dict[str, Any] = {"init": init.kind}
    if init.path is not None:
        begun |= {"init_file": init.path.name, "init_id": content_id(init.path)}
        begun |= {"init_layers": options.init_layers}
    measured = {"head_size": options.head_size or "neck"} if measure_of(data) == "pckh" else {}
    return {
        **data.settings(),
        **begun,
        "label_fraction": fraction,
        "num_labels": len(rows),
        "preset": options.preset,
        **options.recipe.settings(),
        **init.shape(options.recipe.architecture).settings(),
        **measured,
        "device": options.device,
        "hardware": common.hardware(options.device),
    }


@cache
def content_id(path: Path) -> str:
    """A digest of a file's content."""
    return str(digest(np.fromfile(path, np.uint8))[:16])


def is_there(results: Sequence[Result], name: str, seed: int, settings: dict[str, Any], path: Path) -> bool:
    """Whether the results, of the file at path, hold the row of a run; a ValueError if of other settings."""
    share = settings["label_fraction"]
    for row in results:
        if (row.method, row.settings.get("label_fraction"), row.seed) != (name, share, seed):
            continue
        other = [
            f"{key} {row.settings.get(key)!r}, here {value!r}"
            for key, value in settings.items()
            if key not in OF_THE_MACHINE and row.settings.get(key) != value
        ]
        if other:
            raise ValueError(
                f"{path} has {name} with {share:g} of the labels, seed {seed}, of other settings "
                f"({'; '.join(other)}): choose another --output, or another NAME for the init"
            )
        return True
    return False


if __name__ == "__main__":
    common.run_command(main, "deeppose.py")
