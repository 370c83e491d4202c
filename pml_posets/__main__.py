"""Search, clusters and near-duplicates of a folder of photos, without labels or training.

python -m pml_posets embed photos/ --output out/
python -m pml_posets search out/ query.jpg
python -m pml_posets clusters out/
python -m pml_posets duplicates out/
python -m pml_posets picture out/
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._io import atomic_write
from ._memory import keep_freed_memory
from ._named_networks import named_network
from ._sheets import map_sheet, row_sheet, save_sheet
from .data.image_list import ImageList, image_files
from .embedder import Embedder
from .gallery import Added, Gallery

_MAP_PHOTOS = 1500
_AMP = ("bfloat16", "float16")  # precisions of a network
_OF_EMBEDDER = ("image_size", "layers", "mean", "std")
_JUDGED = 800  # photos that the embedding is judged on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        options.run(options)
    except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def embed(options: argparse.Namespace) -> None:
    """Embed a folder, or bring its embeddings up to date."""
    gallery = Gallery(options.output)
    embedder = _open_embedder(gallery, options)
    print(f"{embedder.num_features_} columns from {_kind(embedder)}")
    added = _add(gallery, options.photos, embedder)
    print(
        f"{len(gallery)} photos: {added.new} new, {added.changed} changed, {added.unchanged} as before, "
        f"{added.gone} gone, {len(added.unreadable)} unreadable"
    )
    for _, reason in added.unreadable[:20]:
        print(f"  left out: {reason}")
    print(f"report: {_write_report(gallery, embedder, added)}")


def search(options: argparse.Namespace) -> None:
    """Show the photos most similar to some queries."""
    gallery = _opened(options.output)
    rows = _open_embedder(gallery, options).transform(ImageList(options.queries))
    indices, similarities = gallery.nearest(rows, options.count)
    sheet = []
    for query, nearest, close in zip(options.queries, indices, similarities, strict=True):
        print(f"{query}:")
        for index, similarity in zip(nearest, close, strict=True):
            print(f"  {similarity:.3f}  {gallery.names[index]}")
        sheet.append((str(query), [(query, "query"), *_tiles(gallery, nearest, close)]))
    _show(gallery, "search.png", "The photos most similar to each query", sheet)


def clusters(options: argparse.Namespace) -> None:
    """Group similar photos."""
    gallery = _opened(options.output)
    labels = gallery.clusters(options.count)
    count = int(labels.max(initial=-1)) + 1
    print(f"{count} clusters of {int((labels >= 0).sum())} photos, {int((labels < 0).sum())} photos in none")
    rows = zip(gallery.names, labels.tolist(), strict=True)
    print(f"table: {_write_table(gallery.folder / 'clusters.csv', ('file', 'cluster'), rows)}")
    sheet = []
    for cluster in range(min(20, count)):
        members = np.flatnonzero(labels == cluster)
        center = gallery.embeddings[members].mean(0)
        order = members[np.argsort(-(gallery.embeddings[members] @ center), kind="stable")]
        sheet.append((f"cluster {cluster}: {len(members)} photos", _tiles(gallery, order[:8])))
    title = f"{len(sheet)} of {count} clusters: the photos nearest to their centers"
    _show(gallery, "clusters.png", title, sheet)


def duplicates(options: argparse.Namespace) -> None:
    """List groups of near-duplicates."""
    gallery = _opened(options.output)
    groups = gallery.duplicates(options.threshold)
    print(
        f"groups of photos whose thumbnails have a similarity of {options.threshold} or more: {len(groups)}"
    )
    rows = ((number, gallery.names[i]) for number, group in enumerate(groups) for i in group)
    print(f"table: {_write_table(gallery.folder / 'duplicates.csv', ('group', 'file'), rows)}")
    sheet = [
        (f"group {number}: {len(group)} photos", _tiles(gallery, group[:8]))
        for number, group in enumerate(groups[:20])
    ]
    title = f"{len(sheet)} of {len(groups)} groups of near-duplicates"
    title += f", thumbnails with a cosine of {options.threshold:g} or more"
    _show(gallery, "duplicates.png", title, sheet)


def picture(options: argparse.Namespace) -> None:
    """Draw a map of the photos."""
    gallery = _opened(options.output)
    path, method = _map_picture(gallery, options.method)
    print(f"{method} map of {min(len(gallery), _MAP_PHOTOS)} photos: {path}")


def _open_embedder(gallery: Gallery, options: argparse.Namespace) -> Embedder:
    """The embedder of a gallery; fitted and saved now where it has none yet."""
    path, settings_path = gallery.folder / "embedder.npz", gallery.folder / "settings.json"
    how: dict[str, Any] = {"batch_size": options.batch_size, "num_workers": options.workers, "progress": True}
    if path.exists():
        try:
            settings = json.loads(settings_path.read_text(encoding="utf-8"))
            settings = {"amp": None, **settings}
            settings = {name: settings[name] for name in ("network", "weights", "amp")}
            if settings["amp"] not in (None, *_AMP):
                raise ValueError(f"amp is {settings['amp']!r}")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            advice = "embed the photos again, into another folder"
            raise ValueError(f"{settings_path} is damaged or missing ({error}): {advice}") from error
        if options.network not in (None, settings["network"]):
            raise ValueError(
                f"{gallery.folder} was embedded with {settings['network'] or 'HOG'}, not with "
                f"{options.network}: choose another output folder"
            )
        network = named_network(settings["network"], options.weights or settings["weights"])
        embedder = Embedder.load(path, network, **how, **_amp(options.amp or settings["amp"]))
        _check_same(embedder, settings["amp"], options)
        return embedder
    network = named_network(options.network, options.weights)
    chosen = {name: getattr(options, name) for name in _OF_EMBEDDER if getattr(options, name) is not None}
    for name in ("weights", "layers", "mean", "std", "amp"):
        if network is None and getattr(options, name) is not None:
            raise ValueError(
                f"--{name} is of a network, and none is given: give --network too, or leave it out"
            )
    embedder = Embedder(network, mirror=not options.no_mirror, **chosen, **how, **_amp(options.amp))
    files = image_files(options.photos)
    order = np.random.default_rng(0).permutation(len(files))[:5000]
    embedder.fit(ImageList([files[i] for i in np.sort(order)], skip_unreadable=True))
    with atomic_write(settings_path, "w", encoding="utf-8") as file:
        json.dump({name: getattr(options, name) for name in ("network", "weights", "amp")}, file)
    embedder.save(path)
    return embedder


def _amp(name: str | None) -> dict[str, Any]:
    """The argument of an embedder; none where the option was left out."""
    return {} if name is None else {"amp": getattr(torch, name)}


def _check_same(embedder: Embedder, amp: str | None, options: argparse.Namespace) -> None:
    """Refuse options that differ from those the photos were embedded with."""
    found = {"image_size": embedder.side, "layers": embedder.layers_, "no_mirror": not embedder.mirror}
    found |= {"amp": amp}
    for name in (*_OF_EMBEDDER, "no_mirror", "amp"):
        given, known = getattr(options, name, None), found.get(name, getattr(embedder, name, None))
        if given not in (None, False, known):
            option, folder = name.replace("_", "-"), options.output
            raise ValueError(
                f"{folder} was embedded with {option} {known}, not {given}: choose another folder"
            )


def _kind(embedder: Embedder) -> str:
    return "HOG and views" if embedder.network is None else f"layers {', '.join(embedder.layers_)}"


def _add(gallery: Gallery, photos: Path, embedder: Embedder) -> Added:
    from tqdm.auto import tqdm

    with tqdm(desc="photos", unit="photo") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        embedder.progress = False
        return gallery.add(photos, embedder, show)


def _opened(folder: Path) -> Gallery:
    """A gallery that holds photos."""
    if not (folder / "gallery.npz").exists():
        raise ValueError(
            f"{folder} holds no embeddings: run python -m pml_posets embed PHOTOS --output {folder} first"
        )
    return Gallery(folder)


def _tiles(gallery: Gallery, indices: Any, similarities: Any = None) -> list[tuple[Path, str]]:
    """Photos with their names, below their similarities if there are any."""
    names = [gallery.names[i] for i in indices]
    if similarities is not None:
        names = [f"cosine {s:.2f}\n{name}" for s, name in zip(similarities, names, strict=True)]
    return [(gallery.path(i), name) for i, name in zip(indices, names, strict=True)]


def _show(gallery: Gallery, name: str, title: str, rows: Any) -> None:
    if rows:
        print(f"picture: {save_sheet(row_sheet(title, rows), gallery.folder / name)}")


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Path:
    with atomic_write(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _write_report(gallery: Gallery, embedder: Embedder, added: Added) -> Path:
    """A page with pictures: nearest photos, the map, and what the judge without labels says."""
    rng = np.random.default_rng(0)
    judged = np.sort(rng.permutation(len(gallery))[:_JUDGED])
    verdict = ""
    if len(gallery) >= 50:
        verdict = _verdict(embedder, [gallery.path(i) for i in judged])
        print(verdict)
    queries, rows = rng.permutation(len(gallery))[:6], []
    for query, found, close in zip(queries, *gallery.nearest(gallery.embeddings[queries], 8), strict=True):
        others = np.flatnonzero(found != query)[:7]
        tiles = _tiles(gallery, found[others], close[others])
        rows.append((gallery.names[query], [(gallery.path(query), "query"), *tiles]))
    title = f"{len(rows)} photos and those most similar to them"
    save_sheet(row_sheet(title, rows), gallery.folder / "nearest.png")
    path, method = _map_picture(gallery, "auto")
    paragraphs = [
        f"# {len(gallery)} photos of {gallery.photos}",
        f"Embeddings: {gallery.embeddings.shape[1]} columns from {_kind(embedder)}. "
        f"Of the photos {added.new} are new, {added.changed} changed, {added.gone} gone, "
        f"{len(added.unreadable)} unreadable.",
        verdict,
        "## Some photos and their nearest",
        "![nearest photos](nearest.png)",
        f"## Map ({method})",
        f"![map]({path.name})",
        "\n".join(f"- left out: {reason}" for _, reason in added.unreadable),
    ]
    with atomic_write(gallery.folder / "report.md", "w", encoding="utf-8", errors="replace") as file:
        file.write("\n\n".join(filter(None, paragraphs)) + "\n")
    return gallery.folder / "report.md"


def _verdict(embedder: Embedder, photos: list[Path]) -> str:
    """The judge's word on the embedding, as a sentence."""
    learned, plain = embedder.judge(ImageList(photos))
    name = "plain HOG" if embedder.network is None else "the network's last layer"
    better = f"{name} is better: look at the pictures."
    if learned.score > plain.score:
        better = "the embedding is the better one."
    return (
        f"Judged without labels on {len(photos)} photos: score {learned.score:.2f}, {name} "
        f"{plain.score:.2f}. {learned.stability:.0%} of a photo's ten nearest stay the same when the photo "
        f"is changed ({name}: {plain.stability:.0%}). By this hint, which is no proof, {better}"
    )


def _map_picture(gallery: Gallery, method: str) -> tuple[Path, str]:
    if method == "umap" or (method == "auto" and find_spec("umap") is not None):
        if find_spec("umap") is None:
            raise ImportError("a UMAP map needs umap-learn: pip install umap-learn, or take --method pca")
        positions, name = import_module("umap").UMAP(random_state=0).fit_transform(gallery.embeddings), "UMAP"
    else:
        from sklearn.decomposition import PCA

        positions, name = PCA(min(2, len(gallery)), random_state=0).fit_transform(gallery.embeddings), "PCA"
        positions = np.pad(positions, ((0, 0), (0, 2 - positions.shape[1])))
        positions = np.argsort(np.argsort(positions, axis=0), axis=0).astype(np.float32)  # spread evenly
    shown = np.sort(np.random.default_rng(0).permutation(len(gallery))[:_MAP_PHOTOS])
    title = f"Map of {len(shown)} of {len(gallery)} photos by {name}: what is close looks alike"
    sheet = map_sheet(title, [gallery.path(i) for i in shown], positions[shown])
    return save_sheet(sheet, gallery.folder / "map.png"), name


def _parser() -> argparse.ArgumentParser:
    summary, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m pml_posets",
        description=summary,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any) -> Callable[..., Any]:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, network=None, weights=None, amp=None, batch_size=64, workers=0)
        if run is not embed:
            sub.add_argument("output", type=Path, help="output folder of embed")
        return sub.add_argument

    add = command(embed)
    add("photos", type=Path, help="folder of photos, searched with its subfolders")
    add("--output", type=Path, required=True, help="folder for all results")
    add("--network", help="module:function, or a torchvision or timm name. Default: HOG")
    add("--weights", help="file of the network's state dict")
    add("--layers", nargs="+", help="names of the network's layers. Default: chosen")
    add("--image-size", type=int, help="side the photos are resized to, pixels")
    for name in ("mean", "std"):
        add(f"--{name}", nargs=3, type=float, help="of pixels in [0, 1]. Default: ImageNet's")
    add("--amp", choices=_AMP, help="precision of the network. Default: float16 on a GPU")
    add("--no-mirror", action="store_true", help="a photo and its mirror image differ")
    add("--batch-size", type=int, help="photos at once. Default 64")
    add("--workers", type=int, help="processes that read photos. Default 0: this one")
    add = command(search)
    add("queries", type=Path, nargs="+", help="photos to search for")
    add("--count", type=int, default=8, help="photos for each query. Default 8")
    add("--weights", help="file of the network's state dict, if it has moved")
    add = command(clusters)
    add("--count", type=int, help="clusters of k-means. Default: compact groups, as many as are clear")
    add = command(duplicates)
    threshold = "cosine similarity of thumbnails from which. Default %(default)s"
    add("--threshold", type=float, default=0.9, help=threshold)
    add = command(picture)
    methods = ("auto", "pca", "umap")
    add("--method", choices=methods, default="auto", help="Default auto: umap if installed")
    return parser


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
