"""DeepPose from different beginnings, with few labels and with all (the paper's Tables 3 and 4).

python benchmarks/deeppose.py                                                     # figures it draws itself
python benchmarks/deeppose.py --data-root LSP --extra-root LSPET --init random --init posets CHECKPOINT
python benchmarks/deeppose.py --mpii-annotations FILE.mat --mpii-images FOLDER    # PCKh on MPII
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import alexnet, common
from benchmarks.core.options import FIGURE_SIZES
from benchmarks.core.resuming import earlier_results
from benchmarks.data.mpii import load_mpii
from benchmarks.data.people import PoseData
from benchmarks.data.poses import load_figures, load_lsp, load_lspet
from benchmarks.figures.dataset import make_figures
from benchmarks.measures.pose import head_box_size, head_neck_distance, pckh, pcp
from benchmarks.measures.skeletons import MPII_SKELETON, mirror_joints
from benchmarks.regression import report as deeppose_report
from benchmarks.regression.model import PoseRegressor
from benchmarks.regression.options import Init, PoseRunOptions, parse
from benchmarks.regression.training import fit, predict
from pml_posets._io import write_npz
from pml_posets._random import derive_seeds
from pml_posets.data.cache import digest
from pml_posets.data.image_store import ImageStore

_LABELS, _HEAD = 3, 4  # what seeds are for
_OF_THE_MACHINE = ("device", "hardware")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    if common.several_processes():
        raise ValueError("a pose regressor learns in one process: start it by python, without torchrun")
    options = parse(__doc__ or "", arguments)
    common.commit()  # that of the code this run begins with
    folder = common.output_folder(options.output)
    results = earlier_results(folder, data_name(options), options.resume)
    cached = common.output_folder(options.cache, "--cache")
    data = prepare(options)
    print(data.summary(), flush=True)

    @cache
    def images_of(size: int) -> ImageStore:
        return ImageStore(
            data.images,
            cached,
            size,
            data_id=data.images.data_id,
            num_workers=options.workers,
            progress=options.progress,
        )

    for seed in options.seeds:
        for fraction in options.fractions:
            rows = labelled(data.train, fraction, seed)
            for init in options.inits:
                settings = settings_of(init, fraction, rows, data, options)
                if find(results, init, fraction, seed, settings, folder):
                    print(f"{line_of(init, rows, seed)}  is there already", flush=True)
                    continue
                images = images_of(init.shape(options.shape).image_size)
                metrics, seconds = run(init, rows, seed, images, data, options, settings, folder)
                row = common.Result(
                    method=init.name,
                    dataset=data.name,
                    metrics=metrics,
                    settings=settings,
                    seed=seed,
                    seconds=round(seconds, 1),
                )
                results.append(row)
                common.write_results(folder / "results.json", results)
                measure = measure_of(data)
                print(
                    f"{line_of(init, rows, seed)}  {measure.upper()} {metrics[f'{measure}_total']:.1f}  "
                    f"({seconds:.0f} s)",
                    flush=True,
                )
    text = deeppose_report.write(folder, results, data, options.seeds[0])
    print(f"\n{text}\n\nEverything lies in {folder.resolve()}")
    return 0


def data_name(options: PoseRunOptions) -> str:
    """What the data are called in the results."""
    if options.mpii_annotations is not None:
        return "MPII"
    if options.data_root is None:
        return f"figures-{options.figures}"
    if (options.data_root / "figures.json").is_file():
        return options.data_root.resolve().name
    return "LSP" if options.extra_root is None else "LSP+LSPET"


def prepare(options: PoseRunOptions) -> PoseData:
    """Read the people, or draw them.

    Raises:
        OSError, ValueError: for data that are incomplete or unreadable.
    """
    skip = options.skip_unreadable
    if options.mpii_annotations is not None and options.mpii_images is not None:
        return load_mpii(
            options.mpii_annotations,
            options.mpii_images,
            complete=options.mpii_people == "complete",
            split_seed=options.split_seed,
            skip_unreadable=skip,
        )
    root = options.data_root
    if root is None:
        root = options.cache / f"figures-{options.figures}"
        make_figures(root, num_workers=max(1, options.workers), **FIGURE_SIZES[options.figures])
    data = load_figures(root) if (root / "figures.json").is_file() else load_lsp(root, skip_unreadable=skip)
    if options.extra_root is not None:
        data = data.with_training(load_lspet(options.extra_root, skip_unreadable=skip))
    return data


def labelled(train: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """The people whose labels are used: the first of an order that the seed draws, so that budgets nest.

    Args:
        train: dataset indices.
        fraction: of them, above 0 and up to 1; at least one is used.
        seed: of the order.
    """
    order = np.random.default_rng(derive_seeds(seed, _LABELS)).permutation(train)
    return order[: max(1, round(fraction * len(order)))]


def measure_of(data: PoseData) -> str:
    """PCKh for MPII's joints, else PCP."""
    return "pckh" if data.skeleton == MPII_SKELETON else "pcp"


def run(
    init: Init,
    rows: npt.NDArray[np.int64],
    seed: int,
    images: ImageStore,
    data: PoseData,
    options: PoseRunOptions,
    settings: dict[str, Any],
    folder: Path,
) -> tuple[dict[str, float], float]:
    """Train from one beginning with one budget under one seed, and test: the metrics, and the seconds spent.

    The checkpoint and what the pictures are drawn from lie in a folder of its own.
    """
    home = common.output_folder(folder / deeppose_report.home_of(init.name, settings["label_fraction"], seed))
    models = init.models(options.shape, options.layers, seed, options.recipe.dropout)
    begin = mean_pose(data, rows) - 0.5 if options.recipe.mean_pose else None
    model = PoseRegressor(models, len(data.skeleton.joints), derive_seeds(seed, _HEAD)[0], begin)
    training = fit(
        model,
        images,
        data.joints,
        data.visible,
        rows,
        data.skeleton.mirror,
        options.recipe,
        seed=seed,
        device=options.device,
        num_workers=options.workers if options.device != "cpu" else 0,
        checkpoint=home / "checkpoint.pt",
        settings={key: value for key, value in settings.items() if key not in _OF_THE_MACHINE},
        resume=options.resume,
        progress=options.progress,
        name=home.name,
    )
    began = time.perf_counter()
    predicted = predict(model, images, data.test, options.recipe, device=options.device)
    write_npz(
        home / "predictions.npz",
        {
            "joints": predicted,
            "iterations": np.array(training.iterations),
            "losses": np.array(training.losses),
        },
    )
    metrics = judge(predicted, data, options.head_size)
    return {**metrics, "loss": training.losses[-1]}, training.seconds + time.perf_counter() - began


def mean_pose(data: PoseData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(J, 2) mean of some people's poses and mirror images; a joint that nobody has is in the middle."""
    joints = data.joints[rows].astype(np.float64)
    both = np.concatenate([joints, mirror_joints(joints, data.skeleton)])  # (2n, J, 2)
    count = np.isfinite(both).sum(axis=0)
    return np.where(count > 0, np.nansum(both, axis=0) / np.maximum(count, 1), 0.5)


def judge(predicted: npt.NDArray[Any], data: PoseData, head_size: str) -> dict[str, float]:
    """How well the test people's poses are told.

    Args:
        predicted: (len(data.test), J, 2) joints in [0, 1] of the crops.
        data: the people.
        head_size: what PCKh is measured by, "neck" or "box".

    Returns:
        "pcp_total", "pcp/<part>" (or "pckh...") in percent; "judged" and "not_judged", how many sticks or
        joints were and were not; "distance", the mean distance of the annotated joints, percent of the crop.

    Raises:
        ValueError: for head boxes of data without any.
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
    init: Init, fraction: float, rows: npt.NDArray[np.int64], data: PoseData, options: PoseRunOptions
) -> dict[str, Any]:
    """What the numbers of a run depend on, beside its seed."""
    begun: dict[str, Any] = {"init": init.kind}
    if init.path is not None:
        begun |= {"init_file": init.path.name, "init_id": content_id(init.path)}
        begun |= {"init_layers": options.layers}
    measured = {"head_size": options.head_size} if measure_of(data) == "pckh" else {}
    return {
        **data.settings(),
        **begun,
        "label_fraction": fraction,
        "num_labels": len(rows),
        "preset": options.preset,
        **alexnet.settings(init.shape(options.shape)),
        **options.recipe.settings(),
        **measured,
        "device": options.device,
        "hardware": common.hardware(options.device),
    }


@cache
def content_id(path: Path) -> str:
    """A digest of a file's content."""
    return str(digest(np.fromfile(path, np.uint8))[:16])


def find(
    results: Sequence[common.Result],
    init: Init,
    fraction: float,
    seed: int,
    settings: dict[str, Any],
    folder: Path,
) -> bool:
    """Whether the row of a run is there.

    Raises:
        ValueError: if it is, but was made with other settings.
    """
    for row in results:
        if (row.method, row.settings.get("label_fraction"), row.seed) != (init.name, fraction, seed):
            continue
        other = [
            f"{name} {row.settings.get(name)!r}, here {value!r}"
            for name, value in settings.items()
            if name not in _OF_THE_MACHINE and row.settings.get(name) != value
        ]
        if other:
            raise ValueError(
                f"{folder / 'results.json'} has {init.name} with {fraction:g} of the labels, seed {seed}, of "
                f"other settings ({'; '.join(other)}): choose another --output, or another NAME for the init"
            )
        return True
    return False


def line_of(init: Init, rows: npt.NDArray[np.int64], seed: int) -> str:
    """What a line about a run begins with."""
    return f"{init.name:12s} {len(rows):6d} labels  seed {seed}"


if __name__ == "__main__":
    common.run_command(main, "deeppose.py")
