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


def refuse(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- results.json


def test_the_file_is_a_list_of_rows_with_exactly_these_keys(path):
    write_results(path, [result(), result("hog", 0.6, 1)])
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [KEYS, KEYS]
    row = rows[1]
    assert (row["method"], row["dataset"], row["metrics"], row["settings"], row["seed"], row["seconds"]) == (
        "hog", "figures", {"auc": 0.6}, {"rounds": 3}, 1, 1.5,
    )  # fmt: skip
    assert row["command"] == common.command()
    assert row["commit"] == common.commit()
    assert row["versions"] == common.versions()


def test_what_is_written_is_read(path):
    results = [result(auc=0.1 + 0.2), result(commit="abc", command="c", versions={"python": "3"})]
    write_results(path, results)
    assert read_results(path) == results
    write_results(path, [])
    assert path.read_text() == "[]\n"
    assert read_results(path) == []


def test_no_file_is_no_rows(path):
    assert read_results(path) == []


def test_settings_become_plain(path):
    settings = {
        "path": Path("a/b"),
        "lr": np.float32(0.5),
        "ids": np.arange(3),
        "sizes": (1, np.int64(2)),
        "range": range(2),
        "none": None,
        "on": True,
        "dtype": torch.bfloat16,
        "tensor": torch.tensor([1.5]),
        "deep": {1: [np.bool_(False)], "inf": math.inf},
    }
    write_results(path, [result(auc=np.float32(0.25), settings=settings)])
    row = json.loads(path.read_text())[0]
    assert row["metrics"] == {"auc": 0.25}
    assert row["settings"] == {
        "path": "a/b",
        "lr": 0.5,
        "ids": [0, 1, 2],
        "sizes": [1, 2],
        "range": [0, 1],
        "none": None,
        "on": True,
        "dtype": "torch.bfloat16",
        "tensor": [1.5],
        "deep": {"1": [False], "inf": "inf"},
    }


def test_a_setting_that_is_not_plain_is_refused(path):
    write_results(path, [result()])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="a Linear does not go into a results file"):
        write_results(path, [result(), result(settings={"model": torch.nn.Linear(1, 1)})])
    assert path.read_bytes() == before


def test_measures_that_are_not_defined_are_null_and_read_as_nan(path):
    write_results(path, [result(auc=math.nan)])

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=no_constant)[0]["metrics"] == {"auc": None}
    assert math.isnan(read_results(path)[0].metrics["auc"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"3",
        b'{"method": "posets"}',
        b"[3]",
        b'[{"method": "posets"}]',
    ],
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is no results file \(.+\): move it away or choose"):
        read_results(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", [lambda row: row.pop("commit"), lambda row: row.update(auc=0.5)])
def test_rows_with_other_keys_are_refused(path, change):
    write_results(path, [result(), result()])
    rows = json.loads(path.read_text())
    change(rows[1])
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="row 1 does not have the keys command, commit, dataset"):
        read_results(path)


@pytest.mark.parametrize("metrics", [{"auc": "high"}, {"auc": [1]}, 0.5])
def test_rows_with_other_measures_are_refused(path, metrics):
    write_results(path, [result()])
    rows = json.loads(path.read_text())
    rows[0]["metrics"] = metrics
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="is no results file"):
        read_results(path)


def test_a_file_that_cannot_be_read_is_told(path, monkeypatch):
    def denied(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(OSError, match=r"cannot read the results file .*results\.json \(Permission denied\)"):
        read_results(path)
    monkeypatch.undo()
    path.mkdir()
    with pytest.raises(OSError, match=r"cannot read the results file"):
        read_results(path)


# --- whole or not at all


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch, step):
    write_results(path, [result()])
    before = path.read_bytes()
    monkeypatch.setattr(common.os, step, refuse)
    with pytest.raises(OSError, match=r"cannot write .*results.json \(No space left on device\): free some"):
        write_results(path, [result("hog")] * 5)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_file_appears_whole(path, monkeypatch):
    seen = []
    replace = os.replace

    def watching(source, target):
        seen.append((Path(target).exists(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(common.os, "replace", watching)
    common.write_text(path, "all of it: ü\n")
    assert seen == [(False, "all of it: ü\n")]
    assert path.read_text(encoding="utf-8") == "all of it: ü\n"


def test_others_may_read_the_file(path):
    before = os.umask(0o022)
    try:
        write_results(path, [result()])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


# --- Tables


def test_summary_is_the_mean_and_deviation_over_seeds():
    rows = [result("posets", auc, seed) for seed, auc in enumerate((0.5, 0.6, 0.7))] + [result("hog", 0.4)]
    rows.append(result("hog", math.nan, 1))
    found = summary(rows)
    assert list(found.index) == [("posets", "auc"), ("hog", "auc")]
    assert found.loc[("posets", "auc")].tolist() == pytest.approx([0.6, 0.1, 3])
    assert found.loc[("hog", "auc")].isna().tolist() == [True, True, False]  # a NaN is not passed over


def test_a_summary_over_several_datasets_is_refused():
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


@pytest.mark.parametrize("row", [["one"], ["one", "two", "three"]])
def test_rows_that_do_not_fit_the_header_are_refused(row):
    with pytest.raises(ValueError, match=r"row 1 has \d cells, the header has 2"):
        table(["a", "b"], [["1", "2"], row])


# --- Going on


HERE = {"layer": "fc7", "lr": 0.1, "scale": (1.0, 1.41), "frames": 9, "device": "cuda", "preset": "tiny"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layer": "fc6"}, r"cliques, seed 0 \(--layer 'fc6', here 'fc7'\): give the same options"),
        ({"frames": 8}, r"\(frames 8, here 9\)"),
        ({"lr": 0.2, "preset": "small"}, r"\(--lr 0.2, here 0.1; --preset 'small', here 'tiny'\)"),
        (
            {"lr": 1.0, "layer": "fc6", "frames": 8, "scale": [1, 2], "preset": "small"},
            r"\(--lr 1.0, here 0.1; --scale \[1, 2\], here \[1.0, 1.41\]; --preset 'small', here 'tiny'; "
            r"--layer 'fc6', here 'fc7'; frames 8, here 9\)",
        ),
    ],
)
def test_every_setting_that_differs_is_listed(settings, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        check_alike([result("hog"), result("cliques", settings=settings)], [], lambda method: HERE, tmp_path)


def test_rows_that_differ_alike_are_named_together(tmp_path):
    rows = [result("cliques", settings={"lr": 1}), result("posets", seed=2, settings={"lr": 1})]
    with pytest.raises(ValueError, match=r"cliques, seed 0; posets, seed 2 \(--lr 1, here 0.1\)"):
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
