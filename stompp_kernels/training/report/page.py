"""The report's page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stompp_kernels.report.figures import Picture
from stompp_kernels.report.html import document, image, section, table
from stompp_kernels.training.report import blockade
from stompp_kernels.training.report.logs import Group, Run

RESULTS = (
    "A row is a recipe; its runs differ in their seed only. Accuracies are top-1 on test data, in percent: final is "
    "the mean over finished runs ± their standard deviation over seeds (number of runs), best the mean of each run's "
    "best, which may have been measured before all units were committed. Paper is the figure reported for StoMPP "
    "(Smith & Islam) that the recipe names, difference is final minus paper, seconds are the mean of finished runs. "
    "Frozen is the share of masks, in percent, that was frozen when windows ended: the rest was committed in one step. "
    "Packed is the packed network's accuracy and file, where `stompp eval --packed` and `stompp convert` measured them."
)
SAWTOOTH = (
    "Batch accuracy in percent, mean over the quarter of a window before a commit and the quarter after it, its change "
    "there and across the start of a unit's window, and the depth of the dip in points: how far accuracy after the "
    "commit lies below the straight line from half a window before to half a window after (mean ± standard deviation "
    "over commits, and their number). Without a sawtooth the depth is about 0."
)
BLOCKADES = (
    "Rest is what all other units do, gradient what passes the activation that was set apart, change the distance to "
    "runs of the same rest that set none apart, in points. Gradient norms are medians as in the figure, behind the "
    "activation and from its own unit on."
)


def page(
    title: str, groups: Sequence[Group], rows: Sequence[dict[str, Any]], pictures: Sequence[Picture], output: Path
) -> str:
    """The whole page, to be written into ``output``; ``rows`` are those of ``summary``, one a group."""
    runs = sum(len(group.runs) for group in groups)
    labels = escape("; ".join(group.label for group in groups))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_count(runs, 'run')} of {_count(len(groups), 'recipe')}: {labels}.</p>",
        section("Results", RESULTS, _results(rows)),
    ]
    for picture in pictures:
        content = image(picture.png, picture.title)
        if picture.file == "around_commits.png":
            content += f"<p>{escape(SAWTOOTH)}</p>" + _sawtooth(rows)
        elif picture.file == blockade.FILE:
            content += f"<p>{escape(BLOCKADES)}</p>" + _blockades(rows)
        parts.append(section(picture.title, picture.text, content))
    parts.append(section("Runs", "The folders that this page was made from.", _runs(groups, output)))
    return document(title, parts)


def state(run: Run) -> str:
    """ "finished", or how far the run got."""
    return "finished" if run.end is not None else f"unfinished: step {run.last_step:,} of {run.total_steps:,}"


def _results(rows: Sequence[dict[str, Any]]) -> str:
    headers = ("recipe", "regime", "surrogate", "order", "binarized", "seeds")
    numbers = ("steps", "frozen", "final", "best", "packed", "chance", "paper", "difference", "ms a step", "seconds")
    return table(headers, numbers, [_result(row) for row in rows])


def _result(row: dict[str, Any]) -> list[str]:
    runs = len(row["seeds"])
    final = _with_spread(row["accuracy"], row["accuracy_std"], 1, len(row["accuracies"]))
    if row["finished"] == 0:
        final += "<small>unfinished: last evaluation</small>"
    elif row["finished"] < runs:
        final += f"<small>{runs - row['finished']} of {runs} unfinished</small>"
    paper = _number(row["paper_accuracy"], 1)
    if row["paper_row"]:
        paper = f"{paper}<small>{escape(str(row['paper_row']))}</small>"
    packed = _number(row["packed_accuracy"], 1)
    if row["packed_bytes"] is not None:
        packed += f"<small>{_number(row['packed_bytes'], 0)} bytes</small>"
    steps = f"{row['steps']:,}"
    if row["steps"] < row["total_steps"]:
        steps += f"<small>of {row['total_steps']:,}</small>"
    if row["epochs"] is not None:
        steps += f"<small>{_text(row['epochs'])} epochs</small>"
    what = f"<small>{_text(row['model'])} on {_text(row['data'])}</small>"
    return [
        escape(row["group"]) + what,
        *(_text(row[key]) for key in ("regime", "surrogate", "order", "binarize")),
        escape(", ".join(str(seed) for seed in row["seeds"])),
        steps,
        _number(row["frozen"], 0),
        final,
        _number(row["best_accuracy"], 1),
        packed,
        _number(row["chance"], 1),
        paper,
        _number(row["difference"], 1, "+"),
        _number(row["step_ms"], 1),
        _number(row["seconds"], 0),
    ]


def _sawtooth(rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        teeth = row["sawtooth"]
        if teeth is not None:
            dip = _with_spread(teeth["dip"], teeth["dip_std"], 2, teeth["commits"])
            before, after = (_number(teeth[key], 1) for key in ("before", "after"))
            change = _number(teeth["after"] - teeth["before"], 2, "+")
            start = _number(teeth["at_start"], 2, "+")
            cells.append(
                [
                    escape(row["group"]),
                    _text(row["binarize"]),
                    f"{teeth['window']:,}",
                    before,
                    after,
                    change,
                    start,
                    dip,
                ]
            )
    numbers = ("window (steps)", "before", "after", "change at commit", "change at start", "depth of the dip")
    return table(("recipe", "binarized"), numbers, cells)


def _blockades(rows: Sequence[dict[str, Any]]) -> str:
    apart = [row for row in rows if row["blockade"] is not None]
    plain = {row["blockade"]["rest"]: row["accuracy"] for row in apart if not row["blockade"]["unit"]}
    cells = []
    for row in apart:
        found, compared = row["blockade"], plain.get(row["blockade"]["rest"])
        known = compared is not None and row["accuracy"] is not None
        cells.append(
            [
                escape(row["group"]),
                _text(found["rest"]),
                _text(found["surrogate"]),
                _text(found["unit"] or None),
                _with_spread(row["accuracy"], row["accuracy_std"], 1, len(row["accuracies"])),
                _number(row["accuracy"] - compared, 1, "+") if known and found["unit"] else "",
                *("" if found[key] is None else f"{found[key]:.1e}" for key in ("gradient_behind", "gradient_ahead")),
            ]
        )
    numbers = ("unit", "final", "change", "gradient behind", "gradient ahead")
    return table(("recipe", "rest", "gradient"), numbers, cells)


def _runs(groups: Sequence[Group], output: Path) -> str:
    cells = [
        [
            escape(run.name),
            _recipe_link(run, group, output),
            escape(state(run)),
            escape("; ".join(run.notes)),
            escape(str(run.recipe.get("seed", ""))),
            f"{run.last_step:,}",
        ]
        for group in groups
        for run in group.runs
    ]
    return table(("folder", "recipe", "state", "note"), ("seed", "steps"), cells)


def _recipe_link(run: Run, group: Group, output: Path) -> str:
    """The group's label; where the run has its recipe beside the log, as a link to that file."""
    recipe = None if run.folder is None else run.folder / "recipe.json"
    if recipe is None or not recipe.exists():
        return escape(group.label)
    target = quote(Path(os.path.relpath(recipe.resolve(), output.resolve())).as_posix())
    return f'<a href="{target}">{escape(group.label)}</a>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(value: Any) -> str:
    return "" if value is None else escape(str(value))


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{round(value, digits) + 0.0:{sign},.{digits}f}"  # + 0.0: no -0.0


def _with_spread(mean: float | None, std: float | None, digits: int, count: int) -> str:
    spread = "" if std is None else f" ± {_number(std, digits)}"
    return "" if mean is None else f"{_number(mean, digits)}{spread} ({count})"
