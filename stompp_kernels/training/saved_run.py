"""The run that a folder holds already: its recipe, and whether it is the one that is to go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stompp_kernels.training.checkpoint import BEST, LAST, load_checkpoint
from stompp_kernels.training.recipe import Recipe, recipe_from_dict
from stompp_kernels.training.run_log import NAME as LOG
from stompp_kernels.training.run_state import RunState

RECIPE, RESULT = "recipe.json", "result.json"
OUTPUT = "output.txt"  # what a run of a study printed


def saved_state(recipe: Recipe, folder: Path, resume: bool) -> RunState | None:
    """The last checkpoint to go on from; None: the run begins."""
    if not resume:
        there = [name for name in (RECIPE, RESULT, LAST, BEST, LOG) if (folder / name).exists()]
        if there:
            raise ValueError(
                f"folder {str(folder)!r} has a run already ({there[0]}): resume it, or choose another folder"
            )
        return None
    if not (folder / LAST).exists():
        return None
    saved = RunState(load_checkpoint(folder / LAST), str(folder / LAST), LAST)
    different = first_difference(recipe_of(saved.recipe, folder / LAST).to_dict(), recipe.to_dict())
    if different:
        raise ValueError(
            f"the run in {str(folder)!r} has another recipe: {different}; `stompp train --resume --output {folder}` "
            "goes on with the run's own"
        )
    return saved


def recipe_of(values: Any, path: Path) -> Recipe:
    """The recipe that a file of a run holds; what an older version's recipe lacks is as it was without it."""
    try:
        return recipe_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} holds no recipe: {error}") from error


def first_difference(saved: dict[str, Any], given: dict[str, Any], where: str = "") -> str:
    """The first value in which recipes differ; where the data lie does not count."""
    for key in saved.keys() | given.keys():
        a, b = saved.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = first_difference(a, b, f"{where}{key}.")
            if found:
                return found
        elif a != b and where + key != "data.path":
            return f"{where}{key} is {a!r}, got {b!r}"
    return ""
