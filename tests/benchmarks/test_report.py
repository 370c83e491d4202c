"""The benchmarks' main table."""

import pytest

from benchmarks.core.common import Result
from benchmarks.core.report import score_table


def rows(measure, values, rounds=()):
    found = [Result("hog", "d", {measure: values[0]}, {}, 0, seconds=1)]
    for seed, value in enumerate(values[1:]):
        metrics = {measure: value, **{f"{measure}_round_{k + 1}": v for k, v in enumerate(rounds)}}
        found.append(Result("posets", "d", metrics, {}, seed, seconds=1))
    return found


def test_seeds_rounds_and_the_paper():
    results = rows("auc", [0.6, 0.7, 0.8], rounds=[0.65, 0.7, 0.72, 0.75])
    header, _, hog, posets = score_table(results, {"auc": "AUC"}, {"posets": "0.78"}, "paper").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, hog, posets)]
    assert cells == [
        ["method", "AUC", "seeds", "round 1", "round 2", "round 4", "paper"],
        ["hog", "0.600", "1", "", "", "", ""],
        ["posets", "0.750 ± 0.071", "2", "0.650", "0.700", "0.750", "0.78"],
    ]


def test_digits():
    text = score_table(rows("pcp", [40.0, 34.0, 35.0]), {"pcp": "PCP"}, {}, "paper", digits=1)
    assert "| posets | 34.5 ± 0.7 | 2     |" in text


def test_rows_of_several_datasets_are_refused():
    results = [*rows("auc", [0.5]), Result("hog", "other", {"auc": 0.5}, {}, 0, seconds=1)]
    with pytest.raises(ValueError, match="a summary is of one dataset, got d, other"):
        score_table(results, {"auc": "AUC"}, {}, "paper")
