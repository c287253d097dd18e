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
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stompp_kernels.files import read_json, write_json
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.signals import Stopped, noting_signals
from stompp_kernels.training.changes import check_apart, check_used, keys_of
from stompp_kernels.training.folder_lock import locked
from stompp_kernels.training.recipe import Recipe, apply_change, recipe_from_dict, set_value
from stompp_kernels.training.recipe_file import read_values
from stompp_kernels.training.report import write_report
from stompp_kernels.training.saved_run import OUTPUT, RESULT, first_difference, recipe_of

if TYPE_CHECKING:
    from rich.console import Console

STUDY_KEYS = ("seeds", "grid", "variants")
WANTED = "wanted.json"  # the recipe of a run that has not finished
POLL_SECONDS = 0.1
ENGINES = ("local", "ray")

Start = Callable[[Recipe, Path], Any]  # gives a subprocess.Popen, or a run elsewhere with the same methods


def read_study(path: Path, changes: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of a study, each named for what is particular to it; a plain recipe is a study of one run.

    Args:
        path: see the head of this file.
        changes: "key=value" each, of the recipe; "seeds=[0, 1]" and "grid.KEY=[...]" change the study.

    Raises:
        FileNotFoundError, ValueError: as by ``read_recipe``, the grid or variants are not as above, or a value is set
            in two places, so that one of them would be lost.
    """
    values = read_values(path)
    keys = keys_of(changes)
    given = [key for key in keys if key.partition(".")[0] not in STUDY_KEYS]
    if "seed" in given and ("seeds" in values or "seeds" in keys):
        raise ValueError(f"seed is given, but the study in {os.fspath(path)!r} has seeds: change those")
    grid = {} if "grid" in keys else _flat("grid", values.pop("grid", {}))
    for change in changes:
        apply_change(values, change)
    grid |= _flat("grid", values.pop("grid", {}))
    seeds = values.pop("seeds", [values.get("seed", 0)])
    variants = values.pop("variants", {"": {}})
    if not isinstance(variants, Mapping) or not variants:
        raise ValueError(f"variants must hold a table for each, got {variants!r}")
    settings = {name: _flat(f"variants.{name}", of_variant) for name, of_variant in variants.items()}
    for key, options in {"seeds": seeds, **grid}.items():
        if not isinstance(options, list) or not options:
            raise ValueError(f"{key} must be a list of values, got {options!r}")
    check_apart("the grid", grid, "the command", given)
    for name, of_variant in settings.items():
        check_apart(f"variant {name!r}", of_variant, "the command", given)
        check_apart(f"variant {name!r}", of_variant, "the grid", grid)
        check_apart(f"variant {name!r}", of_variant, "the study, for each of its seeds", ("seed", "name"))
    check_apart("the grid", grid, "the study, for each of its seeds", ("seed", "name"))
    recipes = []
    for seed in seeds:  # outermost: a study cut short has all its variants
        for variant, of_variant in settings.items():
            for combination in itertools.product(*grid.values()):
                chosen = dict(zip(grid, combination, strict=True))
                recipes.append(_recipe(values, variant, of_variant, chosen, seed))
    names = [recipe.name for recipe in recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"runs of a study must have folders of their own, two would be in {twice[0]!r}")
    check_used(given, recipes)
    return recipes


def shard_of(recipes: Sequence[Recipe], shard: str) -> list[Recipe]:
    """The part of a study that "i/n" names, i from 1 to n: every n-th run from the i-th on.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard must be i/n with i from 1 to n, got {shard!r}")
    return list(recipes[int(found[1]) - 1 :: int(found[2])])


def commands(recipes: Sequence[Recipe], folder: Path, device: str) -> Iterator[str]:
    """Yields the command of each run that is not finished, to be started by a scheduler of one's own.

    The run's recipe is written into its folder; the command may be repeated, and goes on from the last checkpoint.
    """
    for recipe in recipes:
        if not _is_finished(recipe, folder / recipe.name):
            yield shlex.join(["stompp", *_arguments(recipe, folder / recipe.name, device)])


def run_study(
    recipes: Sequence[Recipe],
    folder: Path,
    jobs: int,
    device: str,
    console: Console,
    whole: bool = True,
    engine: str = "local",
) -> list[str]:
    """Runs what is not finished, each in a process of its own, and writes the report to ``folder/report``.

    Args:
        folder: gets a folder a run; a run that is there already is resumed.
        jobs: processes at a time on a machine; its processor's cores are shared out between them.
        device: of every run.
        whole: False for a part of a study, beside others: the folder is not locked, only those of runs, and the report
            is left to `stompp report`.
        engine: "local", or "ray", which takes all runs and finds machines for them.

    Returns:
        Names of the runs that failed; the end of each one's output.txt says why.

    Raises:
        ValueError: ``jobs`` is less than 1, a result.json is damaged, or another process runs a study in ``folder``.
        Stopped: SIGINT, SIGTERM or SIGHUP came. The runs that went on were sent SIGTERM and have written their
            checkpoints; the same command goes on from there. A second SIGINT does not wait for them.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    check_choice("engine", engine, ENGINES)
    with locked(folder) if whole else nullcontext(), _starting(engine, jobs, device) as start:
        unfinished = [recipe for recipe in recipes if not _is_finished(recipe, folder / recipe.name)]
        for recipe in recipes:
            if recipe not in unfinished:
                console.print(f"{recipe.name}: finished", highlight=False)
        failed = _run_all(unfinished, folder, jobs if engine == "local" else len(unfinished), start, console)
        finished = [folder / r.name for r in recipes if r.name not in failed]
        if finished and whole:
            write_report(finished, folder / "report", folder.name)
    return sorted(failed)


@contextmanager
def _starting(engine: str, jobs: int, device: str) -> Iterator[Start]:
    """Gives the function that starts a run in a folder."""
    if engine == "ray":
        from stompp_kernels.training.ray_engine import ray_engine

        with ray_engine(jobs, device) as cluster:
            yield cluster.start
    else:
        yield partial(_start, jobs=jobs, device=device)


def _run_all(recipes: Sequence[Recipe], folder: Path, at_once: int, start: Start, console: Console) -> list[str]:
    """Runs all, so many at once; names of those that failed."""
    waiting, failed = deque(recipes), []
    running: dict[str, Any] = {}
    with noting_signals() as signals:
        try:
            while (waiting and not signals) or running:
                while waiting and len(running) < at_once and not signals:
                    recipe = waiting.popleft()
                    running[recipe.name] = start(recipe, folder / recipe.name)
                time.sleep(POLL_SECONDS)
                if signals:
                    _stop(running)
                    break
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    status = running.pop(name).returncode
                    if status:
                        failed.append(name)
                    else:
                        (folder / name / WANTED).unlink(missing_ok=True)
                    console.print(f"{name}: {f'failed ({status})' if status else 'finished'}", highlight=False)
        except BaseException:
            _stop(running)
            raise
        if signals:
            left = len(waiting) + sum(process.returncode != 0 for process in running.values())
            raise Stopped(signals[0], f"with {left} runs to finish; the same command goes on with them")
    return failed


def _stop(running: Mapping[str, Any]) -> None:
    """Has each run write a checkpoint and end, and waits for it; a second SIGINT ends them at once.

    A terminal's Ctrl-C has reached the runs too: a second SIGINT would interrupt them, SIGTERM does not.
    """
    try:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    except BaseException:
        for process in running.values():
            process.kill()
        raise


def _is_finished(recipe: Recipe, folder: Path) -> bool:
    """Whether the run ended before; one of another recipe did not: the run itself says how they differ."""
    if not (folder / RESULT).exists():
        return False
    saved = read_json(folder / RESULT)
    if not isinstance(saved, dict) or not isinstance(saved.get("recipe"), dict):
        raise ValueError(f"{os.fspath(folder / RESULT)!r} must hold the recipe and the result of a run")
    return not first_difference(recipe_of(saved["recipe"], folder / RESULT).to_dict(), recipe.to_dict())


def _start(recipe: Recipe, folder: Path, jobs: int, device: str) -> subprocess.Popen:
    """The run's process."""
    command = [sys.executable, "-m", "stompp_kernels.cli", *_arguments(recipe, folder, device)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with open(folder / OUTPUT, "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def _arguments(recipe: Recipe, folder: Path, device: str) -> list[str]:
    """What `stompp` is given to begin the run or go on with it; its recipe is written for it."""
    write_json(folder / WANTED, recipe.to_dict())
    return ["train", str(folder / WANTED), "--resume", "--output", str(folder), "--device", device]


def _flat(where: str, values: Any) -> dict[str, Any]:
    """The values of a table by dotted keys."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must hold keys and values, got {values!r}")
    pairs = list(_flatten(values))
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where} sets {key} twice")
    return dict(pairs)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys: TOML reads a."b" and "a.b" as different things, and both are welcome."""
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
