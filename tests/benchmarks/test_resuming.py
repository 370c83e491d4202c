"""Going on with a run: rows that stay must be of the settings of those to come."""

import pytest
from benchmark_runs import few_patches, quick, rows_of

from benchmarks import olympic
from benchmarks.core import common, options
from benchmarks.core.resuming import check_alike, earlier_results

FIGURES = {
    "sports": ("run", "throw"),
    "num_sources": 3,
    "num_clips": 1,
    "num_frames": 6,
    "size": 48,
    "num_anchors": 6,
}


def row(method, seed=0, **settings):
    return common.Result(method, "tree", {"auc": 0.5}, settings, seed, seconds=1.0)


HERE = {"layer": "fc7", "lr": 0.1, "scale": (1.0, 1.41), "frames": 9, "device": "cuda", "preset": "tiny"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"layer": "fc6"},
            r"cliques, seed 0, of other settings \(--layer 'fc6', here 'fc7'\): give the same",
        ),
        ({"frames": 8}, r"\(frames 8, here 9\)"),
        ({"lr": 0.2, "preset": "small"}, r"\(--preset 'small', here 'tiny'; --lr 0.2, here 0.1\)"),
        (
            {"lr": 1.0, "layer": "fc6", "frames": 8, "scale": [1, 2], "preset": "small"},
            r"\(--preset 'small', here 'tiny'; --layer 'fc6', here 'fc7'; --lr 1.0, here 0.1; and 2 more\)",
        ),
    ],
)
def test_settings_that_differ(settings, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        check_alike([row("hog"), row("cliques", **settings)], [], lambda method: HERE, tmp_path)


def test_what_need_not_be_alike(tmp_path):
    kept = row("cliques", layer="fc7", scale=[1.0, 1.41], device="cpu", hardware="old", processes=4, lam=3)
    check_alike([kept], [], lambda method: HERE, tmp_path)  # lists, machines, settings of one alone
    made_again = row("posets", 1, layer="fc6")
    check_alike([made_again], [("posets", 1)], lambda method: HERE, tmp_path)
    with pytest.raises(ValueError, match="posets, seed 1"):
        check_alike([made_again], [("posets", 0)], lambda method: HERE, tmp_path)


def test_a_folder_without_a_run(tmp_path):
    assert earlier_results(tmp_path, "tree", resume=False) == []
    assert earlier_results(tmp_path, "tree", resume=True) == []


# --- As a command


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of three methods; whence it can be gone on with."""
    home = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch, few_patches():
        patch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)
        olympic.main(arguments(home, "--method", "start", "random", "cliques"))
    return home


def arguments(home, *more):
    return quick(home / "cache", home / "run", "--figures", "tiny", "--seed", 0, *more)


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    monkeypatch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)


@pytest.mark.parametrize(
    ("method", "change", "text"),
    [
        ("hog", ["--layer", "fc6"], r"random, seed 0, of other settings \(--layer 'fc7', here 'fc6'\)"),
        ("posets", ["--lambda", "0.7"], r"cliques, seed 0, of other settings \(--lambda 0.03, here 0.7\)"),
        ("hog", ["--initial", "hog"], r"start, seed 0, .*\(--initial 'hog-window', here 'hog'; --window"),
        ("hog", ["--hog-size", "48"], r"start, seed 0, of other settings \(--hog-size 32, here 48\)"),
        ("random", ["--fc-dim", "4"], r"cliques, seed 0, of other settings \(--fc-dim 8, here 4\)"),
        ("hog", ["--preset", "small"], r"cliques, seed 0, of other settings \(--preset 'tiny', here 'small'"),
    ],
)
def test_rows_of_other_settings_are_refused(begun, method, change, text):
    before = (begun / "run" / "results.json").read_bytes()
    with pytest.raises(ValueError, match=text):
        olympic.main(arguments(begun, "--resume", "--method", method, *change))
    assert (begun / "run" / "results.json").read_bytes() == before


def test_methods_are_added_to_rows_of_the_same_settings(begun):
    assert olympic.main(arguments(begun, "--resume", "--method", "hog", "ntxent")) == 0
    assert set(rows_of(begun / "run")) == {(m, 0) for m in ("start", "random", "cliques", "hog", "ntxent")}
