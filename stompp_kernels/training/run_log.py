"""A run's log: JSON lines, and on request TensorBoard.

Every line is an object with an "event":

    start        recipe, units, windows, total_steps, steps_per_epoch, parameters, machine
    resume       the run goes on at this step; what had been logged after it is gone
    step         losses and accuracies (percent, of training batches) of the steps since the last one, step_ms, lr,
                 frontier, p
    diagnostics  of each unit: gradient_norm, frozen, flip_ratio, saturation; see diagnostics.py
    commit       unit, index
    evaluation   accuracy (percent), loss, frontier
    end          accuracy, best_accuracy, seconds
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from stompp_kernels.files import replacing

NAME = "log.jsonl"


class RunLog:
    """Appends records to a run's log.

    Args:
        folder: of the run.
        step: where the run goes on: records of later steps are dropped, 0 drops all. A line that was cut short, by the
            end of a process, is dropped too.
        tensorboard: write to ``folder/tensorboard`` as well (the ``train`` extra).
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False) -> None:
        path = folder / NAME
        kept = [line for line in _lines(path) if _is_kept(json.loads(line), step)]
        with replacing(path) as file:
            file.write("".join(line + "\n" for line in kept).encode())
        self._file: TextIO = open(path, "a")  # noqa: SIM115 - closed by close()
        self._board = _summary_writer(folder / "tensorboard", step) if tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> None:
        """One record; it reaches the file at once."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for tag, value in _scalars(event, values).items():
                self._board.add_scalar(tag, value, step)

    def sync(self) -> None:
        """Returns when all records are on the disk, so that no checkpoint is newer than the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _scalars(event: str, values: dict[str, Any]) -> dict[str, float]:
    """A record's numbers by TensorBoard's tags."""
    scalars = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    if event == "step":
        scalars["loss"] = sum(values["losses"]) / len(values["losses"])
        scalars["accuracy"] = sum(values["accuracies"]) / len(values["accuracies"])
    if event == "diagnostics":
        for key, of_units in values.items():
            scalars |= {f"{key}/{index:02}": v for index, v in enumerate(of_units) if v is not None}
    return {f"{event}/{key}": value for key, value in scalars.items()}


def _is_kept(record: dict[str, Any], step: int) -> bool:
    return step > 0 and record["step"] <= step and record["event"] != "end"


def _lines(path: Path) -> list[str]:
    """The complete lines of a log."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('TensorBoard logs need tensorboard: pip install "stompp_kernels[train]"') from error
    return SummaryWriter(str(folder), purge_step=step or None)
