"""Speed of the package, as ratios within one run: y-step, loss, training, extraction, HOG-LDA, import.

python benchmarks/speed.py                                       # every part, small
python benchmarks/speed.py --part ystep --samples 14000 28000 57000 113516 --dim 4096 --resume
python benchmarks/speed.py --part graph --nodes 1000000
python benchmarks/speed.py --part training --network resnet18 --image-size 128 --batch-size 32 --bfloat16

What is compared is done in turns, A B A B, and a ratio is the median over the turns. Seconds are of this
machine and of what else ran on it; of ratios those with _cpu count the processor's seconds (--threads 1).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common

if TYPE_CHECKING:
    from benchmarks.core.results import Result

PARTS = ("ystep", "loss", "training", "feeding", "extraction", "hog", "startup", "graph")

TARGETS = {  # part and metric to what is wanted
    "ystep exact over_floor": "<= 1.3",
    "ystep exact peak_over_features": "<= 2.5",
    "ystep approximate times_faster": ">= 5",
    "ystep approximate recall_at_10": ">= .95",
    "ystep approximate ari": ">= .9",
    "loss over_ntxent": "<= 1",
    "loss over_multi-similarity": "<= 1",
    "training of_bare": ">= .95",
    "feeding of_tensors": ">= .9",
    "extraction of_bare": ">= .95",
    "hog hoglda_times_skimage_a_core": ">= .9",
    "startup seconds_added": "< .3",
    "graph peak_gib": "< 22",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    got = parse(arguments)
    from benchmarks.core.results import Result, rows_to_add_to, write_results
    from benchmarks.timing import plan  # torch and faiss are not imported for --help

    folder = common.output_folder(got.output)
    path = folder / "results.json"
    results = rows_to_add_to(path, got.resume)
    for job in plan.jobs(got):
        settings = {"part": job.part, **job.settings}
        _check_rows_of(job, results, path)
        done = {(r.method, r.dataset, r.seed) for r in results if r.settings == settings}
        if all((method, job.dataset, got.seed) in done for method in job.methods):
            continue
        start = time.perf_counter()
        found = job.run()
        seconds = time.perf_counter() - start
        results += [
            Result(method, job.dataset, metrics, settings, got.seed, seconds=seconds)
            for method, metrics in found.items()
        ]
        write_results(path, results)
        common.write_text(folder / "table.md", report(results, plan.skipped(got)))
        print(f"{job.part}, {job.dataset}: {seconds:.0f} s", flush=True)
    text = report(results, plan.skipped(got))
    common.write_text(folder / "table.md", text)
    print(text)
    return 0


def _check_rows_of(job: Any, results: Sequence[Result], path: Path) -> None:
    """See that rows which measure what a job does have its settings."""
    from benchmarks.core.results import check_alike

    what = (job.part, job.dataset)
    rows = [r for r in results if (r.settings["part"], r.dataset) == what and r.method in job.methods]
    check_alike(rows, (), lambda method: job.settings, path)


def report(results: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """One line a measure; what is no ratio is marked by a star."""
    from benchmarks.core.results import distinct_names, table

    rows = []
    for method, result in zip(distinct_names(results), results, strict=True):
        part = result.settings["part"]
        for name, value in result.metrics.items():
            wanted = TARGETS.get(f"{part} {result.method} {name}") or TARGETS.get(f"{part} {name}", "")
            star = "*" if _absolute(name) else ""
            rows.append([part, result.dataset, method, name + star, f"{value:.4g}", wanted])
    text = table(["part", "what", "method", "measure", "value", "wanted"], rows)
    lines = [
        text,
        "",
        f"`*` of this machine ({common.hardware('cpu')}) and what else ran on it; all else are ratios.",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def _absolute(name: str) -> bool:
    units = ("seconds", "cpu_seconds", "milliseconds", "peak_gib", "peak_mib")
    return name.startswith(units) or name.endswith("_per_second")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(group: Any, name: str, default: Any, help: str, **more: Any) -> None:
        many = {"nargs": "+"} if isinstance(default, list) else {"metavar": "N"}
        kind = type(default[0] if isinstance(default, list) else default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        group.add_argument(name, default=default, type=kind, help=f"{help}; default: {shown}", **many | more)

    add(parser, "--part", ["all"], "what to time", choices=(*PARTS, "all"))
    add(parser, "--output", Path("runs/speed"), "of results.json and table.md", metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that are there")
    add(parser, "--seed", 0, "of data and weights")
    add(parser, "--repeats", 3, "turns; one for y-steps above 30,000 samples")
    add(parser, "--threads", 0, "of torch and faiss, 0: as many as they choose")
    add(parser, "--workers", common.usable_cores(), "processes that load images")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    group = parser.add_argument_group("ystep")
    add(group, "--samples", [14_000], "N, one or more sizes")
    add(group, "--dim", 512, "D")
    methods = ("exact", "approximate", "auto")
    add(group, "--method", ["exact", "approximate"], "of the search", choices=methods)
    steering = "number and size of classes, then the assignment; none: the grouping's defaults alone"
    add(group, "--steering", "full", steering, choices=("full", "none"))
    add(group, "--rival-samples", 0, "other clusterings up to this size")
    group = parser.add_argument_group("loss, training, feeding, extraction, hog")
    add(group, "--batch-sizes", [128, 512], "of a loss step", metavar="N")
    add(group, "--loss-dim", 512, "of the embeddings of a loss step")
    group.add_argument("--compile", action="store_true", help="a loss step under torch.compile too")
    add(group, "--image-size", 64, "pixels")
    add(group, "--batch-size", 64, "of training")
    add(group, "--steps", 20, "of training in a turn")
    add(group, "--network", "alexnet", "of training and feeding", choices=("alexnet", "resnet18"))
    group.add_argument("--bfloat16", action="store_true", help="training under autocast, both loops")
    group.add_argument("--channels-last", action="store_true", help="memory format of training, both loops")
    add(group, "--images", 512, "of extraction and HOG-LDA")
    group = parser.add_argument_group("graph")
    add(group, "--nodes", 20_000, "samples")
    add(group, "--degree", 64, "neighbors of a sample")
    add(group, "--graph-dim", 16, "of the features on the graph")
    got = parser.parse_args(arguments)
    if "all" in got.part:
        got.part = list(PARTS)
    least = {"repeats": 1, "dim": 2, "loss_dim": 2, "batch_size": 8, "steps": 1, "images": 1, "nodes": 100}
    least |= {"seed": 0, "threads": 0, "workers": 0, "degree": 8, "graph_dim": 2, "image_size": 64}
    for name, low in least.items():
        if getattr(got, name) < low:
            raise ValueError(f"--{name.replace('_', '-')} must be {low} or more, got {getattr(got, name)}")
    if min(got.samples) < 500:
        raise ValueError(f"--samples must be 500 or more, got {min(got.samples)}")
    if min(got.batch_sizes) < 16:
        raise ValueError(f"--batch-sizes must be 16 or more, got {min(got.batch_sizes)}")
    return got


if __name__ == "__main__":
    common.run_command(main, "speed.py")
