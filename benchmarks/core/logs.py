"""What a run writes down of itself as it goes, by record-keeper, and for TensorBoard where that is there."""

from __future__ import annotations

import csv
import io
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.core.common import write_text
from pml_posets.losses.pseudo_label import WeightedLosses
from pml_posets.training.joint import JointTrainer

_ITERATION = "~iteration~"  # record-keeper's name of the column


class RunLog:
    """The log of one run, in a folder of its own; a resumed run goes on with it.

    A row is written whenever the trainer's `history` gains one:

        losses      total_loss and each loss, weighted: means since the row before; of a `WeightedLosses` also
                    its parts, as they were in that iteration (metric_loss_poset, ...)
        progress    round, learning_rate, classes, unassigned; seconds: time spent on the run so far, without
                    what was lost by kills
        scores      what `write` is given, the AUC after each round

    They lie in `<name>.csv`, in the SQLite file `logs.db` (both by record-keeper) and in `tensorboard/`.
    Each has the row of an iteration once: rows behind the checkpoint that a run goes on from are removed, as
    they will come again, and a row that is there already is not written a second time. The folder is made for
    the first row; `seconds_before` is then the time spent on the run before this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds_before = 0.0
        self._began = time.perf_counter()
        self._keeper: Any = None
        self._last: dict[str, int] = {}

    def record(self, trainer: Any) -> None:
        """The `end_of_iteration_hook` of a `JointTrainer`."""
        joint: JointTrainer = trainer.joint
        self._open(joint.global_iteration)
        done = joint.global_iteration + 1
        if not joint.history or joint.history[-1]["iteration"] != done:
            return
        row = joint.history[-1]
        losses = {name: value for name, value in row.items() if name not in ("round", "iteration")}
        for name, loss in joint.loss_funcs.items():
            if isinstance(loss, WeightedLosses):
                losses |= {f"{name}_{part}": value.item() for part, value in loss.values.items()}
        self.write("losses", losses, done)
        progress = {
            "round": joint.round + 1,
            "learning_rate": joint.optimizers["trunk_optimizer"].param_groups[0]["lr"],
            "classes": joint.posets.num_classes,
            "unassigned": len(joint.posets.unassigned),
            "seconds": round(self.seconds_before + time.perf_counter() - self._began, 2),
        }
        self.write("progress", progress, done)

    def write(self, table: str, values: Mapping[str, float], iteration: int) -> None:
        """Write a row of a table, unless it has one of this iteration (over all rounds) or a later one."""
        self._open(iteration)
        if iteration <= self._last.get(table, -1):
            return
        with self._writing():
            self._keeper.update_records({table: dict(values)}, iteration)
            self._keeper.save_records()
            if self._keeper.tensorboard_writer is not None:
                self._keeper.tensorboard_writer.flush()  # a kill would take what waits
        self._last[table] = iteration

    def close(self) -> None:
        """End TensorBoard's writer; what was written stays, and the log can be gone on with."""
        if self._keeper is not None and self._keeper.tensorboard_writer is not None:
            self._keeper.tensorboard_writer.close()
        self._keeper = None

    def _open(self, done: int) -> None:
        """Begin, or go on behind iteration `done`."""
        if self._keeper is not None:
            return
        from record_keeper import RecordKeeper, RecordWriter

        with self._writing():
            records = RecordWriter(str(self.folder))
            names = records.query("SELECT name FROM sqlite_master WHERE type = 'table'")
            for table in [row["name"] for row in names if not row["name"].startswith("sqlite_")]:
                records.local_db.execute(f"DELETE FROM [{table}] WHERE [{_ITERATION}] > ?", (done,))
                last = records.query(f"SELECT MAX([{_ITERATION}]) AS last FROM [{table}]")[0]["last"]
                self._last[table] = -1 if last is None else last
                _cut(self.folder / f"{table}.csv", self._last[table])
            if self._last.get("progress", -1) >= 0:
                spent = records.query("SELECT MAX(seconds) AS seconds FROM progress")
                self.seconds_before = spent[0]["seconds"]
            self._keeper = RecordKeeper(_tensorboard(self.folder / "tensorboard", done), records)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise OSError(
                f"cannot write the logs in {self.folder} ({error}): free some space, change its permissions, "
                "or choose another --output"
            ) from error


def _cut(path: Path, last: int) -> None:
    """Leave the header and the rows up to an iteration in a table."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    kept = io.StringIO()
    header = [row for row in rows if row and row[0] == _ITERATION]
    csv.writer(kept).writerows(header[:1])
    csv.writer(kept).writerows(row for row in rows if row and row[0].isdigit() and int(row[0]) <= last)
    write_text(path, kept.getvalue())


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer that takes what lies behind iteration `done` for undone; None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _say_that_tensorboard_is_missing()
        return None
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)  # TensorBoard reads the files in the order of the seconds in their names
    return SummaryWriter(str(folder), purge_step=done + 1)


@cache
def _say_that_tensorboard_is_missing() -> None:
    print("no TensorBoard logs, only record-keeper's: pip install tensorboard to have them", flush=True)
