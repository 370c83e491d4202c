"""The rows of the benchmarks: their file, what they may stand beside, the tables made of them."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.core import common
from benchmarks.core.results import (
    Result,
    check_alike,
    earlier_results,
    read_results,
    score_table,
    summary,
    table,
    write_results,
)

KEYS = ["method", "dataset", "metrics", "settings", "seed", "command", "commit", "versions", "seconds"]


def result(method="posets", auc=0.5, seed=0, dataset="figures", **rest):
    return Result(
        method, dataset, {"auc": auc}, rest.pop("settings", {"rounds": 3}), seed, seconds=1.5, **rest
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.json"


# --- results.json


def test_the_file_is_a_list_of_rows_with_exactly_these_keys(path):
    write_results(path, [result(), result("hog", 0.6, 1)])
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [KEYS, KEYS]
    given = {
        "method": "hog", "dataset": "figures", "metrics": {"auc": 0.6}, "settings": {"rounds": 3}, "seed": 1,
        "seconds": 1.5, "command": common.command(), "commit": common.commit(),
        "versions": common.versions(),
    }  # fmt: skip
    assert rows[1] == given


def test_what_is_written_is_read(path):
    assert read_results(path) == []  # no file
    results = [result(auc=0.1 + 0.2), result(commit="abc", command="c", versions={"python": "3"})]
    write_results(path, results)
    assert read_results(path) == results
    write_results(path, [])
    assert path.read_text() == "[]\n"
    assert read_results(path) == []


def test_settings_become_plain(path):
    settings = {
        "path": (Path("a/b"), "a/b"),
        "lr": (np.float32(0.5), 0.5),
        "ids": (np.arange(3), [0, 1, 2]),
        "sizes": ((1, np.int64(2)), [1, 2]),
        "range": (range(2), [0, 1]),
        "none": (None, None),
        "on": (True, True),
        "dtype": (torch.bfloat16, "torch.bfloat16"),
        "tensor": (torch.tensor([1.5]), [1.5]),
        "deep": ({1: [np.bool_(False)], "inf": math.inf}, {"1": [False], "inf": "inf"}),
    }
    given = {name: one for name, (one, _) in settings.items()}
    write_results(path, [result(auc=np.float32(0.25), settings=given)])
    row = json.loads(path.read_text())[0]
    assert row["metrics"] == {"auc": 0.25}
    assert row["settings"] == {name: plain for name, (_, plain) in settings.items()}
    before = path.read_bytes()
    with pytest.raises(TypeError, match="a Linear does not go into a results file"):
        write_results(path, [result(), result(settings={"model": torch.nn.Linear(1, 1)})])
    assert path.read_bytes() == before


def test_measures_that_are_not_defined_are_null_and_read_as_nan(path):
    write_results(path, [result(auc=math.nan)])
    assert '"auc": null' in path.read_text()
    assert math.isnan(read_results(path)[0].metrics["auc"])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"3", b'{"method": "posets"}', b"[3]", b'[{"method": "posets"}]'],
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is no results file \(.+\): move it away or choose"):
        read_results(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda row: row.pop("commit"), "row 1 does not have the keys command, commit, dataset"),
        (lambda row: row.update(auc=0.5), "row 1 does not have the keys"),
        (lambda row: row.update(metrics=0.5), "row 1 does not have the keys"),
        (lambda row: row.update(metrics={"auc": "high"}), "is no results file"),
        (lambda row: row.update(metrics={"auc": [1]}), "is no results file"),
    ],
)
def test_other_rows_are_refused(path, change, text):
    write_results(path, [result(), result()])
    rows = json.loads(path.read_text())
    change(rows[1])
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=text):
        read_results(path)


def test_a_file_that_cannot_be_read_is_told(path):
    path.mkdir()
    with pytest.raises(OSError, match=r"cannot read the results file .*results\.json \(Is a directory\)"):
        read_results(path)


# --- whole or not at all


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch, step):
    write_results(path, [result()])
    before = path.read_bytes()

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(common.os, step, refuse)
    with pytest.raises(OSError, match=r"cannot write .*results.json \(No space left on device\): free some"):
        write_results(path, [result("hog")] * 5)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_others_may_read_the_file(path):
    before = os.umask(0o022)
    try:
        common.write_text(path, "all of it: ü\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text(encoding="utf-8") == "all of it: ü\n"


# --- Tables


def test_summary_is_the_mean_and_deviation_over_seeds():
    rows = [result("posets", auc, seed) for seed, auc in enumerate((0.5, 0.6, 0.7))]
    rows += [result("hog", auc, seed) for seed, auc in enumerate((0.4, 0.6, math.nan))]
    found = summary(rows)
    assert list(found.index) == [("posets", "auc"), ("hog", "auc")]
    assert found.loc[("posets", "auc")].tolist() == pytest.approx([0.6, 0.1, 3])
    assert found.loc[("hog", "auc")].isna().tolist() == [True, True, False]  # a NaN is not passed over
    with pytest.raises(ValueError, match="a summary is of one dataset, got a, b: filter the rows"):
        summary([result(dataset="b"), result(dataset="a")])


def test_the_table_has_seeds_rounds_and_the_paper():
    rounds = {"auc_round_1": 0.65, "auc_round_2": 0.7, "auc_round_3": 0.72, "auc_round_4": 0.75}
    rows = [result("hog", 0.6), result("posets", 0.7), result("posets", 0.8, 1)]
    for row in rows[1:]:
        row.metrics |= rounds
    text = score_table(rows, {"auc": "AUC"}, {"posets": "0.78"}, "paper")
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [header, *lines] == [
        ["method", "AUC", "seeds", "round 1", "round 2", "round 4", "paper"],
        ["hog", "0.600", "1", "", "", "", ""],
        ["posets", "0.750 ± 0.071", "2", "0.650", "0.700", "0.750", "0.78"],
    ]
    rows = [result("posets", 34.0), result("posets", 35.0, 1)]
    assert "| posets | 34.5 ± 0.7 | 2     |" in score_table(rows, {"auc": "PCP"}, {}, "", digits=1)


def test_a_table_is_aligned_markdown():
    assert table(["method", "a"], [["posets", "0.61"], ["x|y", "1"]]).splitlines() == [
        "| method | a    |",
        "|--------|------|",
        "| posets | 0.61 |",
        "| x\\|y   | 1    |",
    ]
    assert table(["a"], []) == "| a   |\n|-----|"

    for row in (["one"], ["one", "two", "three"]):
        with pytest.raises(ValueError, match=r"row 1 has \d cells, the header has 2"):
            table(["a", "b"], [["1", "2"], row])


# --- Going on


HERE = {"layer": "fc7", "lr": 0.1, "scale": (1.0, 1.41), "frames": 9, "device": "cuda", "preset": "tiny"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layer": "fc6"}, r"hog, seed 0; posets, seed 2 \(--layer 'fc6', here 'fc7'\): give the same optio"),
        (
            {"lr": 1.0, "layer": "fc6", "frames": 8, "scale": [1, 2], "preset": "small"},
            r"\(--lr 1.0, here 0.1; --scale \[1, 2\], here \[1.0, 1.41\]; --preset 'small', here 'tiny'; "
            r"--layer 'fc6', here 'fc7'; frames 8, here 9\)",
        ),
    ],
)
def test_every_setting_that_differs_is_listed(settings, text, tmp_path):
    rows = [result("hog", settings=settings), result("cliques"), result(seed=2, settings=settings)]
    with pytest.raises(ValueError, match=text):
        check_alike(rows, [], lambda method: HERE, tmp_path)


def test_what_need_not_be_alike(tmp_path):
    same = {"layer": "fc7", "scale": [1.0, 1.41]}  # a list as JSON has it
    kept = result("cliques", settings={**same, "device": "cpu", "hardware": "old", "processes": 4, "lam": 3})
    check_alike([kept], [], lambda method: HERE, tmp_path)  # machines, settings of one alone
    replaced = result("posets", seed=1, settings={"layer": "fc6"})
    check_alike([replaced], [("posets", 1)], lambda method: HERE, tmp_path)
    with pytest.raises(ValueError, match="posets, seed 1"):
        check_alike([replaced], [("posets", 0)], lambda method: HERE, tmp_path)


def test_a_folder_without_a_run(tmp_path):
    assert earlier_results(tmp_path, "tree", resume=False) == []
    for folder, text in ((tmp_path, "holds neither results.json nor a"), (tmp_path / "no", "does not exist")):
        with pytest.raises(FileNotFoundError, match=f"nothing to resume: {folder} {text}.* correct --output"):
            earlier_results(folder, "tree", resume=True)
    (tmp_path / "posets-seed0").mkdir()
    (tmp_path / "posets-seed0" / "checkpoint.pt").touch()  # killed before its first row
    assert earlier_results(tmp_path, "tree", resume=True) == []
