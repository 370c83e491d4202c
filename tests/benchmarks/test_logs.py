"""What a run writes down of itself: every row once, whatever was killed when."""

import contextlib
import csv
import sqlite3
import sys

import numpy as np
import pytest
import torch
from trainings import Killed

from benchmarks.core import logs
from benchmarks.core.logs import RunLog
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler
from pml_posets.training.joint import JointTrainer

LABELS = [0, 1, 2, -1] * 6


def run(folder, log, kill_after=None, resume=False, rounds=2, weighted=True):
    """Two rounds of six iterations; a row every two, a checkpoint every three, a score after each round."""
    features = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
    torch.manual_seed(0)
    metric = PosetLoss(sigma=0.5)
    if weighted:
        poset = PseudoLabelLoss(metric, unassigned="keep")
        parts = {"poset": poset, "feature": FeatureLoss(4, features)}
        metric = WeightedLosses(parts, {"poset": 1, "feature": 2})

    def iteration(trainer):
        log.record(trainer)
        if trainer.joint.global_iteration + 1 == kill_after:
            raise Killed

    def epoch(trainer):
        log.write("scores", {"auc": 0.5 + 0.1 * trainer.epoch}, 6 * trainer.epoch)
        if kill_after == ("round", trainer.epoch):
            raise Killed

    def rate(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    learned = ["trunk", "classifier", *(["metric_loss"] if weighted else [])]
    joint = JointTrainer(
        models={"trunk": torch.nn.Linear(6, 4), "classifier": lambda num: torch.nn.Linear(4, num)},
        optimizers={f"{n}_optimizer": lambda p: torch.optim.SGD(p, lr=0.1) for n in learned},
        lr_schedulers={"trunk_scheduler_by_iteration": rate},
        sampler=PseudoLabelSampler(features, 8, grouping=GivenLabels(LABELS), num_batches=6),
        loss_funcs={"metric_loss": metric, "classifier_loss": torch.nn.CrossEntropyLoss()},
        dataset=[torch.from_numpy(row) for row in features],
        num_rounds=rounds,
        record_every=2,
        checkpoint_every=3,
        output_dir=folder,
        progress=False,
        end_of_iteration_hook=iteration,
        end_of_epoch_hook=epoch,
    )
    try:
        joint.train(resume=resume)
    finally:
        log.close()
    return joint


def table(folder, name):
    """The rows of a CSV file: iteration to numbers by name."""
    with open(folder / f"{name}.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header[0] == "~iteration~"
    return [{column: float(cell) for column, cell in zip(header, row, strict=True)} for row in rows]


def database(folder, name):
    """The rows of a table of the database, in the same form."""
    with contextlib.closing(sqlite3.connect(folder / "logs.db")) as connection:
        found = connection.execute(f"SELECT * FROM {name} ORDER BY id")
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found]
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


def scalars(folder):
    """TensorBoard's view: tag to (step, value)."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder / "logs", run(folder, RunLog(folder / "logs"))


def assert_same_log(folder, expected):
    for name in ("losses", "progress", "scores"):
        rows = without_seconds(table(folder, name))
        assert rows == without_seconds(table(expected, name))
        assert [row["~iteration~"] for row in rows] == sorted({row["~iteration~"] for row in rows})
        assert without_seconds(database(folder, name)) == without_seconds(database(expected, name))
    found, wanted = scalars(folder), scalars(expected)
    for both in (found, wanted):
        del both["progress/seconds"]
    assert found == wanted


# --- What is written


def test_the_losses_are_those_of_the_history(whole):
    folder, joint = whole
    rows = table(folder, "losses")
    assert [row["~iteration~"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row, known in zip(rows, joint.history, strict=True):
        for name in ("total_loss", "metric_loss", "classifier_loss"):
            assert row[name] == pytest.approx(known[name])
    last = joint.loss_funcs["metric_loss"].values
    assert rows[-1]["metric_loss_poset"] == pytest.approx(last["poset"].item())
    assert rows[-1]["metric_loss_feature"] == pytest.approx(last["feature"].item())
    assert len(rows[0]) == 6


def test_rates_classes_rounds_and_scores(whole):
    folder, _ = whole
    columns = {
        name: [row[name] for row in table(folder, "progress")] for name in table(folder, "progress")[0]
    }
    assert columns["round"] == [1, 1, 1, 2, 2, 2]
    assert columns["learning_rate"] == pytest.approx([0.1 * 0.5**k for k in (1, 3, 5, 7, 9, 11)])
    assert {*columns["classes"]} == {3}
    assert {*columns["unassigned"]} == {6}
    assert columns["seconds"] == sorted(columns["seconds"])
    assert table(folder, "scores") == [{"~iteration~": 6, "auc": 0.6}, {"~iteration~": 12, "auc": 0.7}]


def test_all_three_forms_say_the_same(whole):
    folder, _ = whole
    events = scalars(folder)
    for name in ("losses", "progress", "scores"):
        rows = table(folder, name)
        assert database(folder, name) == rows
        for column in set(rows[0]) - {"~iteration~"}:
            found = events[f"{name}/{column}"]
            assert [step for step, _ in found] == [row["~iteration~"] for row in rows]
            assert [value for _, value in found] == pytest.approx([row[column] for row in rows], rel=1e-5)


# --- Kills


def test_every_row_is_there_once_after_kills(whole, tmp_path):
    before = {}
    for at in (1, 5, 6, ("round", 1), 8, 11, 12, ("round", 2), None):
        log = RunLog(tmp_path / "logs")
        with contextlib.nullcontext() if at is None else pytest.raises(Killed):
            run(tmp_path, log, kill_after=at, resume=at != 1)
        before[at] = log.seconds_before
    assert_same_log(tmp_path / "logs", whole[0])
    seconds = [row["seconds"] for row in table(tmp_path / "logs", "progress")]
    assert seconds == sorted(seconds)
    # The run killed after 11 went on from the checkpoint of 9; the row of 8 was the last before.
    assert before[12] == seconds[3] > 0


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    run(tmp_path, RunLog(tmp_path / "logs"))
    before = (tmp_path / "logs" / "losses.csv").read_bytes()
    log = RunLog(tmp_path / "logs")
    run(tmp_path, log, resume=True)
    log.write("scores", {"auc": 0.9}, 12)  # the score of the last round, once more
    log.close()
    assert (tmp_path / "logs" / "losses.csv").read_bytes() == before
    assert log.seconds_before > 0
    assert_same_log(tmp_path / "logs", whole[0])


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_that_was_killed_while_it_wrote_or_that_begins_again(whole, tmp_path, checkpoint):
    with pytest.raises(Killed):
        run(tmp_path, RunLog(tmp_path / "logs"), kill_after=8)
    with open(tmp_path / "logs" / "losses.csv", "a") as file:
        file.write("8,0.1")  # cut off
    if not checkpoint:
        (tmp_path / "checkpoint.pt").unlink()
    log = RunLog(tmp_path / "logs")
    run(tmp_path, log, resume=checkpoint)
    assert (log.seconds_before > 0) == checkpoint
    assert_same_log(tmp_path / "logs", whole[0])


# --- Without TensorBoard, without room


def test_without_tensorboard_there_is_a_note_and_no_crash(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    logs._say_that_tensorboard_is_missing.cache_clear()
    run(tmp_path, RunLog(tmp_path / "logs"), rounds=1, weighted=False)
    run(tmp_path, RunLog(tmp_path / "logs"), resume=True, rounds=2, weighted=False)
    said = capsys.readouterr().out.splitlines()
    assert said == ["no TensorBoard logs, only record-keeper's: pip install tensorboard to have them"]
    rows = table(tmp_path / "logs", "losses")
    assert len(rows) == 6
    assert sorted(rows[0]) == ["classifier_loss", "metric_loss", "total_loss", "~iteration~"]  # no parts
    assert not (tmp_path / "logs" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("path", "text"),
    [("logs", "free .* another --output"), ("logs/logs.db", "file is not a database")],
)
def test_logs_that_cannot_be_written(tmp_path, path, text):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(b"in the way " * 100)
    with pytest.raises(OSError, match=f"cannot write the logs in .*logs .*{text}"):
        RunLog(tmp_path / "logs").write("scores", {"auc": 0.5}, 1)
