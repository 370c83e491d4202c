"""What each loss makes of impure groups: groups as asked for, rows, resume, refusals."""

import json

import numpy as np
import pytest

from benchmarks import purity


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def drawn(cache):
    return purity.load(cache, 1, quick=True)


def test_groups_are_of_distinct_athletes_and_lose_purity(drawn):
    pure = purity.groups(drawn, 0.0, 0)
    sizes = np.bincount(pure[pure >= 0])
    assert sizes.max() <= purity.SIZE
    assert purity.COVERAGE <= (pure >= 0).mean() < purity.COVERAGE + 0.02
    for number in range(len(sizes)):
        athletes = drawn.tree.sources[pure == number]
        assert len(set(athletes)) == len(athletes)
    mixed = purity.groups(drawn, 0.5, 0)
    np.testing.assert_array_equal(np.bincount(mixed[mixed >= 0]), sizes)
    assert 0.4 < (mixed[pure >= 0] != pure[pure >= 0]).mean() <= 0.5
    high, low = purity.pair_precision(drawn, pure), purity.pair_precision(drawn, mixed)
    assert high > 0.8
    assert low < high - 0.3


def test_rows_and_resume(cache, tmp_path, capsys):
    run = ["--quick", "--iterations", "3", "--cache", str(cache), "--output", str(tmp_path / "run")]
    purity.main([*run, "--loss", "triplet", "--exchanged", "0"])
    purity.main([*run, "--resume", "--loss", "triplet", "classes alone", "--exchanged", "0"])
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["method"] for row in rows] == ["triplet", "classes alone"]
    assert all(0.4 < row["metrics"]["auc"] < 0.8 for row in rows)
    assert (tmp_path / "run" / "purity.png").stat().st_size > 10_000
    assert "classes alone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds rows already"):
        purity.main(run)
    with pytest.raises(
        ValueError, match=r"rows of other settings: .*\(--iterations 3, here 4; --lr .*, here 0.5\)"
    ):
        purity.main([*run, "--resume", "--iterations", "4", "--lr", "0.5"])


def test_losses_differ():
    made = {name: purity.loss_of(name) for name in purity.LOSSES}
    assert [loss.num_nearest for loss in made.values()][:3] == [1, 2, 5]
    classifying = [name for name, loss in made.items() if loss.classifies]
    assert classifying == ["posets and classes (Eq. 2)", "classes alone"]
    assert made["classes alone"].weight == 0


@pytest.mark.parametrize("wrong", [["--loss", "n"], ["--exchanged", "1.5"]])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="must be"):
        purity.parse(wrong)
