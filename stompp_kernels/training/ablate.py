"""Studies: a recipe under variants and over a grid of settings and seeds, ended by the report.

A study is a recipe with up to three more keys:

    seeds = [0, 1]

    [grid]
    "progression.order" = ["forward", "global", "reverse"]

    [variants.ste_free]
    "progression.regime" = "ste_free"

    [variants.ste]
    "progression.regime" = "ste"
    "progression.surrogate" = "clip"

Every variant is run with every combination of the grid's values and every seed.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stompp_kernels.files import write_json
from stompp_kernels.training.recipe import Recipe, apply_change, read_values, recipe_from_dict, set_value
from stompp_kernels.training.report import write_report
from stompp_kernels.training.trainer import RESULT, first_difference


def read_study(path: Path, changes: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of a study, each named for what is particular to it; a plain recipe is a study of one run.

    Args:
        path: see the head of this file.
        changes: "key=value" each, of the recipe; "seeds=[0, 1]" and "grid.KEY=[...]" change the study.

    Raises:
        FileNotFoundError, ValueError: as by ``read_recipe``, or the grid or variants are not as above.
    """
    values = read_values(path)
    for change in changes:
        apply_change(values, change)
    seeds = values.pop("seeds", [values.get("seed", 0)])
    grid, variants = values.pop("grid", {}), values.pop("variants", {"": {}})
    grid = dict(_flatten(grid))
    for key, options in {"seeds": seeds, **grid}.items():
        if not isinstance(options, list) or not options:
            raise ValueError(f"{key} must be a list of values, got {options!r}")
    recipes = []
    for seed in seeds:  # outermost: a study cut short has all its variants
        for variant, settings in variants.items():
            for combination in itertools.product(*grid.values()):
                chosen = dict(zip(grid, combination, strict=True))
                recipes.append(_recipe(values, variant, dict(_flatten(settings)), chosen, seed))
    return recipes


def run_study(recipes: Sequence[Recipe], folder: Path, jobs: int, device: str, console: Console) -> list[str]:
    """Runs what is not finished, each in a process of its own, and writes the report to ``folder/report``.

    Args:
        folder: gets a folder a run; a run that is there already is resumed.
        jobs: processes at a time; the processor's cores are shared out between them.
        device: of every run.

    Returns:
        Names of the runs that failed; the end of each one's output.txt says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []

    def run(recipe: Recipe) -> None:
        status = _run_one(recipe, folder / recipe.name, jobs, device)
        if status:
            failed.append(recipe.name)
        console.print(f"{recipe.name}: {f'failed ({status})' if status else 'finished'}", highlight=False)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(run, recipe) for recipe in recipes]:
            done.result()
    finished = [folder / r.name for r in recipes if r.name not in failed]
    if finished:
        write_report(finished, folder / "report", folder.name)
    return sorted(failed)


def _run_one(recipe: Recipe, folder: Path, jobs: int, device: str) -> int:
    """Exit status of the run's process; 0 at once for a run that ended before."""
    result = folder / RESULT
    if result.exists():
        saved = json.loads(result.read_text(encoding="utf-8"))
        if not first_difference(saved["recipe"], recipe.to_dict()):
            return 0
        # Else the run itself says how they differ.
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "wanted.json"
    write_json(wanted, recipe.to_dict())
    command = [sys.executable, "-m", "stompp_kernels.cli", "train", str(wanted), "--resume", "--output", str(folder)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with open(folder / "output.txt", "ab") as output:
        status = subprocess.run(
            [*command, "--device", device], stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if status == 0:
        wanted.unlink()
    return status


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys: TOML reads a."b" and "a.b" as different things, and both are welcome."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'grid'} must hold keys and values, got {values!r}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _recipe(
    values: Mapping[str, Any], variant: str, settings: Mapping[str, Any], chosen: Mapping[str, Any], seed: int
) -> Recipe:
    merged = copy.deepcopy(dict(values))
    for key, value in {**settings, **chosen, "seed": seed}.items():
        set_value(merged, key, value)
    labels = [f"{key.rpartition('.')[2]}-{value}" for key, value in chosen.items()]
    parts = [part for part in (variant, *labels) if part] or [str(merged.get("name", "run"))]
    recipe = recipe_from_dict({**merged, "name": "run"})
    return replace(recipe, name=re.sub(r"[^\w.-]+", "-", "_".join([*parts, f"seed{seed}"])))
