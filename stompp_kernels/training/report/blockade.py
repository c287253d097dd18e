"""What a study of the gradient blockade shows: accuracy and gradients against the unit that was set apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stompp_kernels.report.figures import canvas, legend_below
from stompp_kernels.training.report.logs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "blockade.png"
TITLE = "The gradient blockade"
TEXT = (
    "One activation is set apart: that of the unit at the bottom, 1 nearest the input. Left: test accuracy at the end, "
    "mean and standard deviation over seeds. Right: gradient norm of the weights behind it, towards the input, from "
    "its commitment on: the median over units, records and seeds; a unit without a gradient counts as 0, and where the "
    "median is 0 there is no point. Dotted lines are runs that set none apart, with the norm of all units."
)
Line = dict[int, tuple[Sequence[float], dict[str, Any]]]  # unit -> accuracies, and what blockade_of says


def blockade_of(group: Group) -> dict[str, Any] | None:
    """The activation set apart in a group's runs, and the gradient norms behind and ahead of it; None for no section.

    Norms are those of units' weights: the median over units, over records after the commitment, and over seeds; None
    where there are no such units or records. A unit without a gradient counts as 0.
    """
    blockade = group.recipe.get("blockade")
    if blockade is None:
        return None
    records = [
        np.nan_to_num(values["gradient_norm"])
        for run in group.runs
        for step, values in run.diagnostics.items()
        if step > blockade["start"] * run.total_steps
    ]
    unit = blockade["unit"]
    norms = np.array(records).reshape(len(records), len(group.runs[0].units))
    return {
        "unit": unit,
        "surrogate": str(blockade.get("surrogate")) if unit else None,
        "rest": str(blockade.get("rest")),
        "gradient_behind": _median(norms[:, : unit - 1] if unit else norms),
        "gradient_ahead": _median(norms[:, unit - 1 :] if unit else norms),
    }


def draw_blockades(groups: Sequence[Group], accuracies: Sequence[Sequence[float]]) -> Figure | None:
    """The figure; None where no activation was set apart.

    Args:
        accuracies: on test data, in percent, of each group's runs.
    """
    return draw_rows([(blockade_of(group), values) for group, values in zip(groups, accuracies, strict=True)])


def draw_rows(rows: Sequence[tuple[dict[str, Any] | None, Sequence[float]]]) -> Figure | None:
    """The figure of groups' :func:`blockade_of` and accuracies; None where no activation was set apart."""
    lines: dict[tuple[str, str], Line] = {}
    for found, values in rows:
        if found is not None and values:
            name = found["surrogate"] or ""
            lines.setdefault((found["rest"], name), {})[found["unit"]] = values, found
    if not any(surrogate for _, surrogate in lines):
        return None
    from matplotlib.ticker import MaxNLocator

    figure = canvas(3.8)
    accuracy, gradient = figure.subplots(1, 2)
    rests = list(dict.fromkeys(rest for rest, _ in lines))
    for (rest, surrogate), line in lines.items():
        colour = f"C{rests.index(rest)}"
        if not surrogate:
            values, found = line[0]
            accuracy.axhline(statistics.fmean(values), color=colour, linestyle=":", label=f"{rest}: none set apart")
            if found["gradient_behind"]:
                gradient.axhline(found["gradient_behind"], color=colour, linestyle=":")
            continue
        style = {"color": colour, "linestyle": "-" if surrogate == "none" else "--", "marker": "o", "markersize": 4}
        units = sorted(line)
        means = [statistics.fmean(line[unit][0]) for unit in units]
        spreads = [statistics.stdev(line[unit][0]) if len(line[unit][0]) > 1 else 0.0 for unit in units]
        accuracy.errorbar(units, means, spreads, capsize=3, label=f"{rest}: gradient {surrogate}", **style)
        gradient.plot(units, [line[unit][1]["gradient_behind"] or np.nan for unit in units], **style)
    accuracy.set_ylabel("test accuracy (%)")
    gradient.set_ylabel("gradient norm behind")
    gradient.set_yscale("log")
    for axes in (accuracy, gradient):
        axes.set_xlabel("unit whose activation is set apart")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, accuracy)
    return figure


def _median(norms: np.ndarray) -> float | None:
    return float(f"{np.median(norms):.4g}") if norms.size else None
