"""The figures of the report on runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stompp_kernels.report.figures import Picture, canvas, drawing, legend_below
from stompp_kernels.report.png import png_of
from stompp_kernels.training.report import blockade
from stompp_kernels.training.report.logs import Group, Run
from stompp_kernels.training.report.summary import (
    EIGHTHS,
    aligned,
    commit_steps,
    final_accuracies,
    relative,
    window_starts,
)

COLOURS = matplotlib.color_sequences["tab10"]
LINES = ("-", "--", ":", "-.")
MISSING = "0.82"
POINTS = 1000  # of a line, at most
COLUMNS = 400  # of a heat map, at most
_MOST = 0.99  # of a heat map's values lie within its colours' range


def draw(groups: Sequence[Group]) -> list[Picture]:
    """The figures that the runs' records allow, in the page's order."""
    pictures = []
    with drawing():
        for file, title, text, make in FIGURES:
            figure = make(groups)
            if figure is not None:
                pictures.append(Picture(file, title, text, png_of(figure)))
    return pictures


def _blockades(groups: Sequence[Group]) -> Figure | None:
    return blockade.draw_blockades(groups, [final_accuracies(group) for group in groups])


def _test_accuracy(groups: Sequence[Group]) -> Figure | None:
    if not any(run.evaluations for group in groups for run in group.runs):
        return None
    figure, axes = _single("step", "test accuracy (%)")
    frontier = axes.twinx()
    frontier.set_ylabel("units committed (stepped lines)")
    frontier.yaxis.set_major_locator(MaxNLocator(integer=True))
    frontier.grid(visible=False)
    histories = [_frontier(group.runs[0]) for group in groups]
    for history in dict.fromkeys(histories):
        owners = [i for i, other in enumerate(histories) if other == history]
        colour = _style(owners[0])["color"] if len(owners) == 1 and len(groups) > 1 else "0.45"
        frontier.step(*np.array(history).reshape(-1, 2).T, where="post", color=colour, linewidth=0.8, alpha=0.6)
    frontier.set_ylim(0)
    for i, group in enumerate(groups):
        steps, low, mean, high = _spread(group)
        axes.fill_between(steps, low, high, color=_style(i)["color"], alpha=0.18, linewidth=0)
        axes.plot(steps, mean, **_style(i), label=_plain(group.label))
        for run in group.runs:
            if run.end is None and run.evaluations:
                last = max(run.evaluations)
                axes.plot(last, run.evaluations[last], "x", color=_style(i)["color"], markersize=8, markeredgewidth=2)
    legend_below(figure, axes)
    return figure


def _batch_accuracy(groups: Sequence[Group]) -> Figure | None:
    shown = [(i, group) for i, group in enumerate(groups) if any(run.batch_accuracy for run in group.runs)]
    if not shown:
        return None
    figure, panels = _panels([group.label for _, group in shown], 2, 1.6, "batch accuracy (%)", sharey=True)
    settled: list[np.ndarray] = []  # the start of training would leave no height for the teeth
    for axes, (i, group) in zip(panels, shown, strict=True):
        steps, values = _smoothed(group)
        axes.vlines(
            commit_steps(group.runs[0]), 0, 1, transform=axes.get_xaxis_transform(), color="0.75", linewidth=0.7
        )
        axes.plot(steps, values, color=_style(i)["color"], linewidth=1)
        settled.append(values[len(values) // 20 :])
    every = np.concatenate(settled)
    margin = 0.5 + 0.05 * np.ptp(every)
    panels[0].set_ylim(every.min() - margin, every.max() + margin)
    return figure


def _around_commits(groups: Sequence[Group]) -> Figure | None:
    sides: list[tuple[Callable[[Run], list[int]], str]] = [
        (window_starts, "around the start of a unit's window"),
        (commit_steps, "around a unit's commit"),
    ]
    shown = [(i, group) for i, group in enumerate(groups) if len(aligned(group, commit_steps))]
    if not shown:
        return None
    figure = canvas(3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (steps_of, title) in zip(panels, sides, strict=True):
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("steps, in windows of a unit")
        for i, group in shown:
            stretches = aligned(group, steps_of)
            if len(stretches):
                axes.plot(*_binned(relative(stretches).mean(axis=0)), **_style(i), label=_plain(group.label))
    panels[0].set_ylabel("batch accuracy off the line (points)")
    for left, right in ((-5, -3), (3, 5), (0, 2)):
        panels[1].axvspan(left / 8, right / 8, color="0.95" if left else "0.88", zorder=0)
    legend_below(figure, panels[1])
    return figure


def _loss(groups: Sequence[Group]) -> Figure | None:
    shown = [(i, group) for i, group in enumerate(groups) if any(run.losses for run in group.runs)]
    if not shown:
        return None
    figure = canvas(3.4)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("losses", "lr"), strict=True):
        axes.set_xlabel("step")
        ends: list[float] = []
        for i, group in shown:
            steps = _thin(np.array(sorted({step for run in group.runs for step in run.losses})), POINTS)
            of_runs = [getattr(run, name) for run in group.runs]
            means = [np.mean([values[step] for values in of_runs if step in values]) for step in steps.tolist()]
            axes.plot(steps, means, **_style(i), label=_plain(group.label))
            ends.append(np.nanmax(means[len(means) // 20 :]))
        top = _middle(ends)
        if np.isfinite(top) and top > 0:  # a run that diverges leaves the picture, not the others' lines flat
            axes.set_ylim(0, 1.05 * min(max(end for end in ends if np.isfinite(end)), 3 * top))
    panels[0].set_ylabel("training loss")
    panels[1].set_ylabel("learning rate")
    legend_below(figure, panels[0])
    return figure


def _step_time(groups: Sequence[Group]) -> Figure | None:
    if not any(run.step_ms for group in groups for run in group.runs):
        return None
    figure, axes = _single("units committed", "median time of a step (ms)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for i, group in enumerate(groups):
        times: dict[int, list[float]] = {}
        for run in group.runs:
            for frontier, ms in run.step_ms.values():
                times.setdefault(frontier, []).append(ms)
        units = sorted(times)
        medians = [float(np.median(times[unit])) for unit in units]
        axes.plot(units, medians, **_style(i), marker="o", markersize=4, label=_plain(group.label))
    axes.set_ylim(0)
    legend_below(figure, axes)
    return figure


def _gradient_norms(groups: Sequence[Group]) -> Figure | None:
    return _heat_maps(groups, "gradient_norm", "gradient norm of the weights", _decades)


def _frozen(groups: Sequence[Group]) -> Figure | None:
    return _heat_maps(groups, "frozen", "frozen fraction", lambda tables: Normalize(0, 1))


def _flip_ratio(groups: Sequence[Group]) -> Figure | None:
    return _heat_maps(groups, "flip_ratio", "flipped signs, fraction", _square_root)


def _saturation(groups: Sequence[Group]) -> Figure | None:
    return _heat_maps(groups, "saturation", "inputs beyond 1, fraction", lambda tables: Normalize(0, 1))


def _square_root(tables: Sequence[np.ndarray]) -> PowerNorm:
    return PowerNorm(0.5, 0, _middle([np.quantile(values, _MOST) for values in tables]) or 1)


def _decades(tables: Sequence[np.ndarray]) -> LogNorm:
    positive = [values[values > 0] for values in tables if (values > 0).any()]
    if not positive:
        return LogNorm(0.1, 1)
    high = _middle([np.quantile(values, _MOST) for values in positive])
    low = _middle([np.quantile(values, 1 - _MOST) for values in positive])
    return LogNorm(min(max(low, 1e-8 * high), high) * 0.999, high, clip=True)


def _middle(values: Sequence[float]) -> float:
    """The median over groups, the lower one of two: a group that diverges does not decide on the others' scale."""
    return float(sorted(values)[(len(values) - 1) // 2])


def _heat_maps(
    groups: Sequence[Group], name: str, label: str, norm_of: Callable[[Sequence[np.ndarray]], Normalize]
) -> Figure | None:
    """A panel a group, of its first run: units downwards, steps to the right; red ticks are commits."""
    tables = [(group, *_table(group.runs[0], name)) for group in groups if group.runs[0].diagnostics]
    tables = [(group, edges, table) for group, edges, table in tables if np.isfinite(table).any()]
    if not tables:
        return None
    norm = norm_of([table[np.isfinite(table)] for _, _, table in tables])
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=MISSING)
    figure, panels = _panels([group.label for group, _, _ in tables], 3, 2.0, "unit")
    for axes, (group, edges, table) in zip(panels, tables, strict=True):
        run = group.runs[0]
        image = np.ma.masked_invalid(np.maximum(table, norm.vmin))
        drawn = axes.pcolormesh(edges, np.arange(len(table) + 1) + 0.5, image, norm=norm, cmap=colours)
        middles = np.array(sorted(run.commits)) + 1
        axes.vlines(
            [run.commits[i] for i in sorted(run.commits)], middles - 0.5, middles + 0.5, color="red", linewidth=1
        )
        axes.set_ylim(len(table) + 0.5, 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    beyond = any(np.nanmax(table) > norm.vmax for _, _, table in tables)
    figure.colorbar(drawn, ax=panels, label=label, aspect=30, shrink=0.9, extend="max" if beyond else "neither")
    return figure


def _table(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the columns in steps, and the values float64 [units, columns].

    Each record fills the steps before it, as many as records usually lie apart; the rest of a longer gap is empty.
    """
    steps = _thin(np.array(sorted(run.diagnostics)), COLUMNS)
    usual = float(np.median(np.diff(steps))) if len(steps) > 1 else float(steps[0])
    edges, columns = [0.0], []
    for step in steps.tolist():
        values = run.diagnostics[step][name]
        if step - edges[-1] > 2 * usual:
            edges.append(step - usual)
            columns.append(np.full_like(values, np.nan))
        edges.append(step)
        columns.append(values)
    return np.array(edges), np.stack(columns, axis=1)


def _frontier(run: Run) -> tuple[tuple[int, int], ...]:
    """(step, units committed) where it changes, and the last step."""
    steps = sorted(run.frontier)
    pairs = [(step, run.frontier[step]) for step in steps]
    changes = [pair for before, pair in itertools.pairwise(pairs) if before[1] != pair[1]]
    return (*pairs[:1], *changes, *pairs[-1:])


def _spread(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and the lowest, mean and highest test accuracy of the runs evaluated there."""
    steps = _thin(np.array(sorted({step for run in group.runs for step in run.evaluations}), dtype=np.int64), POINTS)
    values = [[run.evaluations[step] for run in group.runs if step in run.evaluations] for step in steps.tolist()]
    low, mean, high = ([function(row) for row in values] for function in (min, np.mean, max))
    return steps, np.array(low), np.array(mean), np.array(high)


def _smoothed(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Steps and batch accuracy, the mean over the runs and over a window of a 200th of the steps, at least 5."""
    steps = np.array(sorted({step for run in group.runs for step in run.batch_accuracy}))
    means = [np.mean([r.batch_accuracy[s] for r in group.runs if s in r.batch_accuracy]) for s in steps.tolist()]
    width = min(max(5, len(steps) // 200), len(steps))
    total = np.concatenate([[0.0], np.cumsum(means)])
    middle = (width - 1) // 2
    return _thin(steps[middle : middle + len(steps) - width + 1], POINTS), _thin(
        (total[width:] - total[:-width]) / width, POINTS
    )


def _binned(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over at most 20 equal stretches of an aligned curve, against their middles in windows."""
    edges = np.linspace(0, len(curve), min(20, len(curve)) + 1).astype(np.int64)
    means = np.add.reduceat(curve, edges[:-1]) / np.diff(edges)
    return ((edges[:-1] + edges[1:]) / len(curve) - 1) * EIGHTHS / 8, means


def _thin(values: np.ndarray, most: int) -> np.ndarray:
    """At most that many of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


def _single(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = canvas(4.4)
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _panels(
    titles: Sequence[str], columns: int, height: float, ylabel: str, sharey: bool = False
) -> tuple[Figure, list[Any]]:
    """A titled panel each in a grid; ``height`` in inches."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = canvas(rows * height + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    panels, spare = list(grid[: len(titles)]), grid[len(titles) :]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(_plain(title))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.grid(visible=False)
    for axes in spare:
        axes.remove()
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    return figure, panels


def _style(index: int) -> dict[str, Any]:
    """Colour and line style of the group with that place in the report."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // 5 % len(LINES)]}


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: no formula, not hidden for a leading underscore; 60 characters at most."""
    text = text if len(text) <= 60 else text[:59] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


FIGURES: tuple[tuple[str, str, str, Callable[[Sequence[Group]], Figure | None]], ...] = (
    (
        "test_accuracy.png",
        "Test accuracy",
        "Test accuracy against step: the mean over a recipe's seeds, in a band from the lowest to the highest of them; "
        "the thin stepped lines count the units committed (grey where recipes share them), and a cross ends a run that "
        "did not finish.",
        _test_accuracy,
    ),
    (blockade.FILE, blockade.TITLE, blockade.TEXT, _blockades),
    (
        "loss.png",
        "Training loss and learning rate",
        "The mean over a recipe's seeds and over the steps since the record before; a run that diverges may leave the "
        "picture.",
        _loss,
    ),
    (
        "batch_accuracy.png",
        "Batch accuracy and commits",
        "Accuracy on the training batches, the mean over seeds and over a sliding window of a 200th of the steps (at "
        "least 5); vertical lines are commits, and the rise in the first twentieth of the run may be cut off.",
        _batch_accuracy,
    ),
    (
        "around_commits.png",
        "The sawtooth",
        "Batch accuracy around the starts of the units' windows and around their commits, mean over units and seeds, "
        "relative to the straight line from half a window before to half a window after (light bands); the depth of "
        "the dip is how far it lies below that line in the dark band.",
        _around_commits,
    ),
    (
        "gradient_norm.png",
        "Gradient norms",
        "Norm of the gradient of each unit's weights in a recipe's first run, log10 colours, unit 1 nearest the input; "
        "grey is no gradient or no record, red ticks are commits. The middle recipe decides on the range of "
        "colours.",
        _gradient_norms,
    ),
    (
        "frozen.png",
        "Frozen fraction",
        "Fraction of each unit's weight and activation masks that is frozen, in a recipe's first run; red ticks are "
        "commits.",
        _frozen,
    ),
    (
        "flip_ratio.png",
        "Flip ratio",
        "Fraction of each unit's latent weights whose sign changed since the record before, in a recipe's first run; "
        "colours follow the square root.",
        _flip_ratio,
    ),
    (
        "saturation.png",
        "Saturation of activations",
        "Fraction of the inputs of each unit's activation that lie outside [-1, 1], in a recipe's first run; grey is a "
        "unit that owns no activation.",
        _saturation,
    ),
    (
        "step_time.png",
        "Step time",
        "Median time of a training step at each number of committed units, over the seeds of a recipe.",
        _step_time,
    ),
)
