"""Going on with a run: rows of other settings, none at all."""

import pytest
from benchmark_runs import FIGURES, few_patches, quick, rows_of

from benchmarks import olympic
from benchmarks.core import options


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
        ("hog", ["--layer", "fc6"], r"random, seed 0.*\(--layer 'fc7', here 'fc6'\)"),
        ("posets", ["--lambda", "0.7"], r"cliques, seed 0 \(--lambda 0.03, here 0.7\)"),
        (
            "hog",
            ["--initial", "hog"],
            r"start, seed 0.*--first-similarities 'hog-window', here 'hog'; --window",
        ),
        ("hog", ["--hog-size", "48"], r"start, seed 0.*\(--hog-size 32, here 48\)"),
        ("random", ["--fc-dim", "4"], r"cliques, seed 0 \(--fc-dim 8, here 4\)"),
        ("hog", ["--preset", "small"], r"cliques, seed 0 \(--preset 'tiny', here 'small'"),
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


def test_there_is_nothing_to_resume(begun, tmp_path, monkeypatch):
    monkeypatch.setattr(olympic, "prepare", None)  # before any work
    given = arguments(begun, "--resume", "--method", "hog")
    given[given.index("--output") + 1] = str(tmp_path / "rnu")
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*rnu does not exist: correct --output"):
        olympic.main(given)
    assert list(tmp_path.iterdir()) == []
