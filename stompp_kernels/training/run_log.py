"""A run's log: JSON lines, and on request TensorBoard.

Every line is an object with an "event":

    start        recipe, units, windows, total_steps, steps_per_epoch, parameters, machine
    resume       the run goes on at this step; what had been logged after it is gone
    step         losses and accuracies (percent, of training batches) of the steps since the last one, step_ms, lr,
                 frontier, p, and the fraction frozen that masks have reached of it
    diagnostics  of each unit: gradient_norm, frozen, flip_ratio, saturation; see diagnostics.py
    commit       unit, index, and the fraction frozen that its masks had reached: the rest is committed in this step
    evaluation   accuracy (percent), loss, frontier
    end          accuracy, best_accuracy, seconds
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stompp_kernels.files import naming, replacing

NAME = "log.jsonl"
PACKED = "packed.json"  # beside it: accuracy and bytes of the packed network
LINE_BYTES = 1 << 26  # the longest line that is read: a record of 50 steps or of 1000 units has some 20 KB


class RunLog:
    """Appends records to a run's log.

    Args:
        folder: of the run.
        step: where the run goes on: records of later steps are dropped, 0 drops all. A line that was cut short, by the
            end of a process, is dropped too.
        tensorboard: write to ``folder/tensorboard`` as well (the ``train`` extra).

    Raises:
        ValueError: another line is damaged; names file and line.
        OSError: the log cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False) -> None:
        self._path = folder / NAME
        kept = list(_kept(self._path, step)) if step else []
        with replacing(self._path) as file:
            file.write(b"".join(kept))
        # Unbuffered: a record that could not be written is not tried again when the file is closed.
        self._file: BinaryIO = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._board = _summary_writer(folder / "tensorboard", step) if tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Writes one record; it reaches the file at once."""
        rest = memoryview((json.dumps({"event": event, "step": step, **values}) + "\n").encode())
        with naming(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._board is not None:
            for tag, value in _scalars(event, values).items():
                self._board.add_scalar(tag, value, step)

    def sync(self) -> None:
        """Returns when all records are on the disk, so that no checkpoint is newer than the log."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, and TensorBoard's."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def records(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Yields number, bytes and record of each line of a log; None for a last line left unfinished by a kill.

    Raises:
        ValueError: another line is no record; names file and line.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            record = _record(line)
            if record is None and file.peek(1):
                raise ValueError(
                    f"{path}, line {number}: must be a JSON object with a key 'event', got {line[:60].rstrip()!r}"
                )
            if record is not None and not _is_step(record.get("step", 0)):
                raise ValueError(
                    f"{path}, line {number}: step must be an int of at least 0, got {record['step']!r:.60}"
                )
            yield number, line, record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or brackets without an end
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _kept(path: Path, step: int) -> Iterator[bytes]:
    """Returns the whole lines of a log up to a step, but for its end."""
    if not path.exists():
        return
    for number, line, record in records(path):
        if record is not None and "step" not in record:
            raise ValueError(f"{path}, line {number}: {record['event']!r} record lacks the key 'step'")
        if record is not None and line.endswith(b"\n") and record["step"] <= step and record["event"] != "end":
            yield line


def _scalars(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Returns a record's numbers by TensorBoard's tags."""
    scalars = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    if event == "step":
        scalars["loss"] = sum(values["losses"]) / len(values["losses"])
        scalars["accuracy"] = sum(values["accuracies"]) / len(values["accuracies"])
    if event == "diagnostics":
        for key, of_units in values.items():
            scalars |= {f"{key}/{index:02}": v for index, v in enumerate(of_units) if v is not None}
    return {f"{event}/{key}": value for key, value in scalars.items()}


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('TensorBoard logs need tensorboard: pip install "stompp_kernels[train]"') from error
    return SummaryWriter(str(folder), purge_step=step or None)
