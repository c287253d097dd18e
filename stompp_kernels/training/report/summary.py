"""The report's numbers: a row for each group, and how deep batch accuracy dips as layers are committed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stompp_kernels.training.report.blockade import blockade_of
from stompp_kernels.training.report.logs import Group, Run, group_runs, read_runs

EIGHTHS = 5  # of a window, on either side of the step that a stretch of batch accuracy is aligned at


@dataclass(frozen=True)
class Sawtooth:
    """Batch accuracy around the commits of a group's runs; percent and percentage points.

    Attributes:
        window: steps; the median of the units' windows.
        commits: how many were averaged: those with :data:`EIGHTHS` eighths of a window recorded on either side.
        before, after: mean accuracy over the quarter of a window before a commit and after it.
        at_start: mean change from the quarter before a unit's window starts to the quarter after; None: no such start.
        dip: how far ``after`` lies below the straight line from accuracy half a window before the commit to accuracy
            half a window after it, mean over commits. The line keeps steady learning out of it.
        dip_std: standard deviation over commits; None for a single one.
    """

    window: int
    commits: int
    before: float
    after: float
    at_start: float | None
    dip: float
    dip_std: float | None


def summary(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The numbers of the report's tables, ready for JSON: one dictionary for each group of runs.

    Accuracies are percentages, and so is ``frozen``, the share of masks that was frozen when windows ended. Runs that
    finished decide; where none did, the last evaluation of each stands in, and ``finished`` is 0. ``accuracy_std`` is
    over seeds, None for a single run.

    Raises:
        FileNotFoundError, ValueError: as :func:`stompp_kernels.training.report.read_run`; no run, or one given twice.
    """
    return [row(group) for group in group_runs(read_runs(runs))]


def row(group: Group) -> dict[str, Any]:
    """One group's entry of :func:`summary`."""
    recipe = group.recipe
    model, progression, paper = (recipe.get(key) or {} for key in ("model", "progression", "paper"))
    ends = [run.end for run in group.runs if run.end is not None]
    final = final_accuracies(group)
    best = [end["best_accuracy"] for end in ends] or [max(r.evaluations.values()) for r in group.runs if r.evaluations]
    regime = progression.get("regime")
    classes = group.runs[0].num_classes
    teeth = sawtooth(group)
    mean = _mean(final)
    return {
        "group": group.label,
        "model": model.get("name"),
        "data": (recipe.get("data") or {}).get("name"),
        "regime": regime,
        "surrogate": None if regime == "ste_free" else progression.get("surrogate"),
        "order": progression.get("order"),
        "binarize": model.get("binarize"),
        "seeds": [run.recipe.get("seed") for run in group.runs],
        "finished": len(ends),
        "steps": max(run.last_step for run in group.runs),
        "total_steps": max(run.total_steps for run in group.runs),
        "accuracy": mean,
        "accuracy_std": _std(final),
        "accuracies": [_round(value) for value in final],
        "best_accuracy": _mean(best),
        "chance": None if classes is None else _round(100 / classes),
        "paper_row": paper.get("row"),
        "paper_accuracy": paper.get("top1"),
        "difference": None if mean is None or paper.get("top1") is None else _round(mean - paper["top1"]),
        "seconds": _mean([end["seconds"] for end in ends]),
        "epochs": recipe.get("epochs"),
        "frozen": _mean([100 * reached for run in group.runs for reached in run.reached.values()]),
        "step_ms": _median([ms for run in group.runs for _, ms in run.step_ms.values()]),
        "packed_accuracy": _mean([float(run.packed["accuracy"]) for run in group.runs if "accuracy" in run.packed]),
        "packed_bytes": _mean([float(run.packed["bytes"]) for run in group.runs if "bytes" in run.packed]),
        "blockade": blockade_of(group),
        "sawtooth": None if teeth is None else {key: _round(value) for key, value in vars(teeth).items()},
    }


def final_accuracies(group: Group) -> list[float]:
    """Percent, of the runs that finished; where none did, the last evaluation of each."""
    ends = [run.end["accuracy"] for run in group.runs if run.end is not None]
    return ends or [run.evaluations[max(run.evaluations)] for run in group.runs if run.evaluations]


def sawtooth(group: Group) -> Sawtooth | None:
    """How batch accuracy moves around the group's commits; None where no commit has the steps around it recorded."""
    stretches = aligned(group, commit_steps)
    if not len(stretches):
        return None
    starts = aligned(group, window_starts)
    dips = -_quarter(relative(stretches), 0)
    return Sawtooth(
        window=window_length(group),
        commits=len(stretches),
        before=float(_quarter(stretches, -2).mean()),
        after=float(_quarter(stretches, 0).mean()),
        at_start=float((_quarter(starts, 0) - _quarter(starts, -2)).mean()) if len(starts) else None,
        dip=float(dips.mean()),
        dip_std=_std(dips.tolist()),
    )


def window_length(group: Group) -> int:
    """Steps; the median of the units' windows."""
    return int(statistics.median([stop - start for start, stop in group.runs[0].windows] or [0]))


def commit_steps(run: Run) -> list[int]:
    """Steps at which units were committed, each once."""
    return sorted(set(run.commits.values()))


def window_starts(run: Run) -> list[int]:
    """Steps at which the windows of units start that were committed later, each once."""
    return sorted({run.windows[index][0] for index, step in run.commits.items() if step > run.windows[index][0]})


def aligned(group: Group, steps_of: Callable[[Run], list[int]]) -> np.ndarray:
    """float64 [n, 2 * EIGHTHS * e]: batch accuracy of the steps around each of ``steps_of(run)``, of all runs.

    e is an eighth of a window; the first half is up to and with the step itself. Stretches that are not recorded in
    full are left out.
    """
    half = EIGHTHS * (window_length(group) // 8)
    stretches = [
        [run.batch_accuracy.get(step, np.nan) for step in range(middle + 1 - half, middle + 1 + half)]
        for run in group.runs
        for middle in steps_of(run)
        if {middle + 1 - half, middle + half} <= run.batch_accuracy.keys()  # a window may be longer than the records
    ]
    table = np.array(stretches, dtype=np.float64).reshape(len(stretches), 2 * half)
    return table[np.isfinite(table).all(axis=1)] if half else table[:0]


def relative(stretches: np.ndarray) -> np.ndarray:
    """Each of the stretches minus the straight line through its levels half a window before and half a window after."""
    e = stretches.shape[1] // (2 * EIGHTHS)
    eighths = (np.arange(stretches.shape[1]) + 0.5) / e - EIGHTHS  # of a window after the middle; the levels' are -4, 4
    left, right = _quarter(stretches, -5)[:, None], _quarter(stretches, 3)[:, None]
    return stretches - left - (right - left) * (eighths + 4) / 8


def _quarter(stretches: np.ndarray, eighth: int) -> np.ndarray:
    """Mean over the quarter of a window that begins ``eighth`` eighths after the middle."""
    e = stretches.shape[1] // (2 * EIGHTHS)
    return stretches[:, (EIGHTHS + eighth) * e : (EIGHTHS + eighth + 2) * e].mean(axis=1)


def _mean(values: Sequence[float]) -> float | None:
    return _round(statistics.fmean(values)) if values else None


def _median(values: Sequence[float]) -> float | None:
    return _round(statistics.median(values)) if values else None


def _std(values: Sequence[float]) -> float | None:
    return _round(statistics.stdev(values)) if len(values) > 1 else None


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
