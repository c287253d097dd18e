"""Reading the log.jsonl of runs, and grouping the runs that differ in their seed only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stompp_kernels.files import read_json
from stompp_kernels.training.run_log import NAME, PACKED, records

DIAGNOSTICS = ("gradient_norm", "frozen", "flip_ratio", "saturation")
REPORT = "report.json"
NOT_THE_RECIPE = ("seed", "name", "output")


@dataclass
class Run:
    """What a run's log says.

    Attributes:
        name: the run's folder, below the folder that all runs of the report are in.
        recipe: resolved, nested.
        units: names in execution order.
        windows: (start, stop) in steps, one a unit.
        total_steps: of the whole run.
        num_classes: of the data; None where the log does not say.
        batch_accuracy: step -> batch top-1 in percent.
        frontier: step -> units committed.
        step_ms: step -> (units committed, milliseconds a step).
        losses, lr: step -> mean training loss since the record before, and learning rate.
        packed: accuracy and bytes of the packed network, where `stompp eval --packed` or `convert` measured them.
        commits: index of the unit -> step; units committed from the start may be missing.
        reached: index of the unit -> frozen fraction before its commit, where the log says it.
        evaluations: step -> test accuracy in percent.
        diagnostics: step -> {name of :data:`DIAGNOSTICS`: float64 [units], NaN for null}.
        end: the record of that name; None for an unfinished run.
        last_step: of the last record.
        notes: what was wrong with the log.
    """

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
    total_steps: int = 0
    num_classes: int | None = None
    batch_accuracy: dict[int, float] = field(default_factory=dict)
    frontier: dict[int, int] = field(default_factory=dict)
    step_ms: dict[int, tuple[int, float]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    lr: dict[int, float] = field(default_factory=dict)
    packed: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    commits: dict[int, int] = field(default_factory=dict)
    reached: dict[int, float] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    diagnostics: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    last_step: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        """Takes in one record; a resumed run repeats its last steps, and the later record of a step counts."""
        event, step = record["event"], int(record["step"])
        self.last_step = max(self.last_step, step)
        if event == "start":
            self.recipe, self.units = _recipe(record["recipe"]), [str(name) for name in record["units"]]
            self.windows = [(int(start), int(stop)) for start, stop in record["windows"]]
            self.total_steps, self.num_classes = int(record["total_steps"]), record.get("num_classes")
            if len(self.windows) != len(self.units):
                raise ValueError(f"windows must be one a unit, got {len(self.windows)} for {len(self.units)} units")
            if any(not 0 <= start <= stop <= self.total_steps for start, stop in self.windows):
                raise ValueError(f"windows must be in [0, {self.total_steps}], the total steps")
            if self.num_classes is not None and not (isinstance(self.num_classes, int) and self.num_classes > 0):
                raise ValueError(f"num_classes must be a positive int or null, got {self.num_classes!r}")
        elif event == "step":
            accuracies = [float(value) for value in record["accuracies"]]
            self.batch_accuracy.update(zip(range(step - len(accuracies) + 1, step + 1), accuracies, strict=True))
            self.frontier[step] = int(record["frontier"])
            self.step_ms[step] = int(record["frontier"]), float(record["step_ms"])
            losses = [float(value) for value in record["losses"]]
            self.losses[step], self.lr[step] = sum(losses) / max(1, len(losses)), float(record["lr"])
        elif event == "diagnostics":
            values = {name: np.array(record[name], dtype=np.float64) for name in DIAGNOSTICS}
            for name, value in values.items():
                if value.shape != (len(self.units),):
                    raise ValueError(f"{name} must be one number a unit, {len(self.units)}, got {value.shape}")
            self.diagnostics[step] = values
        elif event == "commit":
            index = int(record["index"])
            if not 0 <= index < len(self.units):
                raise ValueError(f"index must be in [0, {len(self.units)}), got {index}")
            self.commits[index] = step
            if record.get("frozen") is not None:
                self.reached[index] = float(record["frozen"])
        elif event == "evaluation":
            self.evaluations[step] = float(record["accuracy"])
            self.frontier[step] = int(record["frontier"])
        elif event == "end":
            self.end = {key: float(record[key]) for key in ("accuracy", "best_accuracy", "seconds")}


def _recipe(values: Any) -> dict[str, Any]:
    """The recipe of a start record: its sections hold keys and values."""
    if not isinstance(values, dict):
        raise ValueError(f"recipe must hold keys and values, got {type(values).__name__}")
    for key in ("model", "data", "progression", "paper", "blockade"):
        if not isinstance(values.get(key), (dict, type(None))):
            raise ValueError(f"recipe.{key} must hold keys and values, got {values[key]!r:.60}")
    top1 = (values.get("paper") or {}).get("top1")
    blockade = values.get("blockade")
    if blockade is not None:
        unit, start = blockade.get("unit"), blockade.get("start")
        if not isinstance(unit, int) or unit < 0 or not isinstance(start, (int, float)):
            raise ValueError(f"recipe.blockade must have a unit and a start, got {blockade!r:.60}")
    for key, value in {"seed": values.get("seed", 0), "paper.top1": top1}.items():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"recipe.{key} must be a number, got {value!r:.60}")
    return values


@dataclass(frozen=True)
class Group:
    """Runs of one recipe over seeds, in the order of their seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.runs[0].recipe


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in ``folder``; the line that a killed run left unfinished at the log's end is skipped with a note.

    Raises:
        FileNotFoundError: the folder has no log.
        ValueError: another line is damaged, a record lacks a key or has a wrong one, or there is no start record; names
            file and line.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"run must be a folder that stompp train wrote, got {str(folder)!r}: it has no {NAME}")
    run = Run(name or Path(folder).name, folder=Path(folder))
    for number, _, record in records(path):
        if record is None:
            run.notes.append(f"line {number}, the last one, is damaged and left out")
            continue
        if not run.total_steps and record["event"] != "start":
            raise ValueError(f"{path}, line {number}: the first record must be 'start', got {record['event']!r}")
        try:
            run.add(record)
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: {record['event']!r} record lacks the key {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not run.total_steps:
        raise ValueError(f"{path}: must begin with a 'start' record that names units, and has none")
    if (path.parent / PACKED).exists():
        run.packed = read_json(path.parent / PACKED)
        if not isinstance(run.packed, dict):
            raise ValueError(f"{str(path.parent / PACKED)!r} must hold keys and values, got {run.packed!r:.60}")
    return run


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """:func:`read_run` of each, named by its folder below the one that all are in.

    Raises:
        ValueError: there is none, or one is given twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if not paths:
        raise ValueError("runs must be one folder or more, got none")
    twice = [str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise ValueError(f"runs must be different folders, got {twice[0]!r} twice")
    common = os.path.commonpath([path.parent for path in paths])
    return [read_run(path, path.relative_to(common).as_posix()) for path in paths]


def runs_in(folder: Path) -> list[Path]:
    """The runs that a folder stands for: itself, those of a study in it, or none where it holds an earlier report."""
    if (folder / NAME).exists():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{NAME}")) or ([] if (folder / REPORT).exists() else [folder])


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs whose recipes differ in seed, name and output only, together; in the order of first appearance.

    A group is called by its first run's name without the seed. Where that does not tell groups apart, the settings that
    do are added.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.recipe.items() if key not in NOT_THE_RECIPE}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    members = [sorted(group, key=lambda run: run.recipe.get("seed", 0)) for group in groups.values()]
    labels = [_without_seed(group[0]) for group in members]
    settings = [_flat(group[0].recipe) for group in members]
    full = []
    for label, own in zip(labels, settings, strict=True):
        rivals = [other for name, other in zip(labels, settings, strict=True) if name == label]
        different = [key for key in own if any(other.get(key) != own[key] for other in rivals)]
        full.append(", ".join([label, *(f"{key.rsplit('.', 1)[-1]} {own[key]}" for key in different)]))
    return [Group(label, tuple(group)) for label, group in zip(full, members, strict=True)]


def _without_seed(run: Run) -> str:
    name = str(run.recipe.get("name", run.name))
    return re.sub(rf"[\W_]+s(eed)?[\W_]*{run.recipe.get('seed')}$", "", name)


def _flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"progression.order": "forward"}, without what does not belong to the recipe."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif prefix or key not in NOT_THE_RECIPE:
            flat[prefix + key] = value
    return flat
