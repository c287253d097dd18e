"""Figures of the suite: speedups, roofline, size and threads."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.report.style import INK, LABELS, colour, counted, figure, plain_ticks
from stompp_kernels.report.figures import canvas

GAP = 0.7  # between groups, in bars


def speedups(panels: Any) -> Figure:
    """Bars by group and side; the bar is for the fewest threads, a tick for the most."""
    groups = list(dict.fromkeys(group["group"] for panel in panels for group in panel["groups"]))
    shown = {
        name: list(dict.fromkeys(s for p in panels for g in p["groups"] if g["group"] == name for s in g["ratios"]))
        for name in groups
    }
    bars = sum(map(len, shown.values())) + GAP * len(groups)
    made, axes = figure(len(panels), max(0.135 * bars + 1.2, 2.5), sharey=True, sharex=True)
    for axis, panel in zip(axes, panels, strict=True):
        counts = " / ".join(map(counted, panel["threads"]))
        axis.set_title(panel["title"])
        axis.set_xlabel(f"times as fast,\nwith {counts}")
        axis.set_xscale("log")
        ratios = {group["group"]: group["ratios"] for group in panel["groups"]}
        at, middles = 0.0, []
        for group in groups:
            middles.append(at + (len(shown[group]) - 1) / 2)
            for place, side in enumerate(shown[group]):
                _bar(axis, at, ratios.get(group, {}).get(side, [None]), colour(side, place))
                at += 1
            at += GAP
        axis.axvline(1, color=INK, linewidth=0.8)
        axis.set_yticks(middles, groups)
        axis.set_ylim(at - GAP, -0.8)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.17)
        plain_ticks(axis.xaxis)
    sides = dict.fromkeys(side for names in shown.values() for side in names)
    handles: list[Any] = [Patch(color=colour(side, i), label=LABELS.get(side, side)) for i, side in enumerate(sides)]
    counts = panels[0]["threads"]
    if len(counts) > 1:
        tick = Line2D([], [], color=INK, marker="|", markersize=9, markeredgewidth=1.5, linestyle="")
        tick.set_label(f"with {counted(counts[-1])} (bar: {counts[0]})")
        handles.append(tick)
    made.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.2)
    return made


def _bar(axis: Any, at: float, values: list[float | None], fill: str) -> None:
    """``values`` by number of threads; None where no case was timed."""
    timed = [value for value in values if value is not None]
    if values[0] is not None:
        axis.barh(at, values[0] - 1, left=1, height=0.86, color=fill)
    if values[-1] is not None and len(values) > 1:
        axis.plot(values[-1], at, "|", color=INK, markersize=6, markeredgewidth=1.5)
    text = " / ".join("-" if value is None else f"{value:.1f}" for value in values)
    style = {"va": "center", "fontsize": 6.5, "color": INK}
    if timed:
        axis.annotate(text, (max(1, *timed), at), (5, 0), textcoords="offset points", **style)


FAMILIES = (  # (beginning of a group's name, marker, colour), the first that fits
    ("bgemm few rows", "v", "#7fb2dd"),
    ("bgemm", "o", "#1f6fb4"),
    ("bconv2d depthwise", "P", "#e8a33d"),
    ("bconv2d 1x1", "D", "#8bc34a"),
    ("bconv2d", "s", "#3d8b57"),
    ("binary weight, linear", "^", "#b05fae"),
    ("binary weight, conv depthwise", "X", "#f2a2a2"),
    ("binary weight", "*", "#c94f4f"),
    ("float conv", "p", "#4aa7a0"),
)
OTHERS = ("packing, pooling, masks", "h", "0.5")
PEAKS = {"binary": "products of bits", "signed sum": "sums with binary weights", "fp32": "fp32 products"}


def _family(group: str) -> tuple[str, str, str]:
    return next((family for family in FAMILIES if group.startswith(family[0])), OTHERS)


def roofline(panels: Any) -> Figure:
    """Above, cases under the ceilings; below, the share of its own bound that each reaches."""
    groups = list(dict.fromkeys(group for panel in panels for group in panel["shares"]))
    made = canvas(5.0 + 0.19 * len(groups))
    heights = [4.0, 0.5 + 0.19 * len(groups)]
    grid: Any = made.subplots(2, len(panels), squeeze=False, sharex="row", sharey="row", height_ratios=heights)
    for roofs, shares, panel in zip(*grid, panels, strict=True):
        _roofs(roofs, panel, _limits(panels))
        _shares(shares, panel, groups)
    largest = max(share for panel in panels for found in panel["shares"].values() for share in found)
    grid[1][0].set_xlim(0, 105 * max(1, largest))
    grid[0][0].set_ylabel("billion operations a second")
    present = dict.fromkeys(_family(group) for group in groups)
    handles = [Line2D([], [], marker=marker, color=fill, linestyle="", label=name) for name, marker, fill in present]
    made.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=1.2)
    return made


def _limits(panels: Any) -> tuple[float, float, float]:
    """The least and the most operations a byte, and the least speed, that are shown."""
    operations, speeds = zip(*(point["at"] for panel in panels for point in panel["points"]), strict=True)
    return min(operations) / 2, 2 * max(operations), min(speeds) / 2


def _roofs(axis: Any, panel: Any, limits: tuple[float, float, float]) -> None:
    left, right, bottom = limits
    top = max(panel["peaks"].values())
    axis.set(xscale="log", yscale="log", xlabel="operations a byte")
    axis.set_title(f"{panel['title']}, {counted(panel['threads'])}")
    for place, (kind, peak) in enumerate(sorted(panel["peaks"].items(), key=lambda item: item[1])):
        axis.hlines(peak, left, right, color=INK, linewidth=0.9, linestyle="--" if kind == "fp32" else "-")
        style = {"ha": "right", "va": "bottom" if place else "top", "fontsize": 7, "color": INK}
        label = f"{PEAKS.get(kind, kind)}: {peak:,.0f}"
        axis.annotate(label, (right, peak), (-3, 1 if place else -2), textcoords="offset points", **style)
    for size, rate in (panel["read"][0], panel["read"][-1]):
        axis.plot([left, top / rate], [left * rate, top], color="0.6", linewidth=0.9)
        _along(axis, 1.3 * max(left, bottom / rate), rate, f"{_size(size)}: {rate:,.0f} GB/s")
    for point in panel["points"]:
        _, marker, fill = _family(point["group"])
        axis.plot(*point["at"], marker=marker, color=fill, markersize=5, markeredgewidth=0, alpha=0.85)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, max(2 * top, axis.get_ylim()[1]))
    plain_ticks(axis.xaxis, subs=(1,))
    plain_ticks(axis.yaxis, subs=(1,))


def _along(axis: Any, x: float, slope: float, text: str) -> None:
    """Writes on the line of a slope, from x on."""
    angle = math.degrees(math.atan(slope))
    turned = axis.text(x, 1.1 * x * slope, text, fontsize=7, color="0.45", rotation_mode="anchor", rotation=angle)
    turned.set_transform_rotates_text(True)


def _shares(axis: Any, panel: Any, groups: list[str]) -> None:
    for at, group in enumerate(groups):
        values = [100 * share for share in panel["shares"].get(group, [])]
        if values:
            _, marker, fill = _family(group)
            axis.hlines(at, min(values), max(values), color=fill, linewidth=1, alpha=0.5)
            axis.plot(values, [at] * len(values), marker, color=fill, markersize=5, markeredgewidth=0, alpha=0.85)
    axis.axvline(100, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(groups)), groups)
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("share of the bound reached, %")


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**20:g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:g} KiB"


def sizes(panels: Any) -> Figure:
    """Speed of matrix products against their size."""
    columns = min(2, len(panels))
    made = canvas(0.6 + 2.7 * -(-len(panels) // columns))
    axes = list(made.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True).ravel())
    for spare in axes[len(panels) :]:
        spare.remove()
    made.supylabel("billion operations a second", fontsize="medium")
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel["title"])
        axis.set(xscale="log", yscale="log", xlabel="M")
        fewest = min(threads for _, threads, _ in panel["lines"])
        for side, threads, points in panel["lines"]:
            dash = "-" if threads == fewest else "--"
            label = f"{LABELS[side]}, {counted(threads)}"
            axis.plot(*zip(*points, strict=True), dash, marker="o", markersize=4, color=colour(side), label=label)
        ticks = [M for M, _ in panel["lines"][0][2]]
        axis.set_xticks(ticks, [str(M) for M in ticks], minor=False)
        axis.set_xticks([], minor=True)
        plain_ticks(axis.yaxis, subs=(1, 3))
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=2)
    return made


def threads(panels: Any) -> Figure:
    """How many times as fast groups are with more threads."""
    groups = list(dict.fromkeys(group["group"] for panel in panels for group in panel["groups"]))
    made, axes = figure(len(panels), max(0.25 * len(groups) + 1.2, 2.5), sharey=True, sharex=True)
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(f"{panel['title']}: {counted(panel['many'])},\ntimes as fast as {panel['few']}")
        for at, group in enumerate(groups):
            faster: dict[str, float] = next((g["faster"] for g in panel["groups"] if g["group"] == group), {})
            for offset, (side, value) in zip((-0.2, 0.2), faster.items(), strict=False):
                axis.barh(at + offset, value, height=0.38, color=colour(side))
        axis.axvline(1, color=INK, linewidth=0.8)
        axis.axvline(panel["many"] / panel["few"], color=INK, linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(groups)), groups)
        axis.set_ylim(len(groups) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=False, axis="y")
    handles = [Patch(color=colour(side), label=LABELS[side]) for side in ("ours", "PyTorch")]
    made.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.2)
    return made
