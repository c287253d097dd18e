"""Figures of networks: their time, a training step's, and accuracy against depth and with a blockade."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from benchmarks.report.style import INK, colour, counted, figure, plain_ticks
from stompp_kernels.training.report.blockade import draw_rows

FORMS = {
    "fp32": "torch fp32",
    "bf16": "torch bf16",
    "int8": "torch int8",
    "packed": "packed, this package",
    "fast": "packed, fast float layers",
}
SIDE_OF = {"fp32": "PyTorch"}  # a whole network in fp32 is what is PyTorch's side of a kernel
LINES = {
    "StoMPP + STE": ("#1f6fb4", "o", "-"),
    "StoMPP, STE-free": ("#3d8b57", "s", "-"),
    "vanilla STE": ("#e07b39", "^", "--"),
}


def networks(panels: Any) -> Figure:
    """Bars by network and form; a tick where the bound is."""
    made, axes = figure(len(panels), 3.9, sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(f"{panel['title']}, batch 1, {counted(panel['threads'])}")
        axis.set_yscale("log")
        forms = [form for form in FORMS if any(form in row["ms"] for row in panel["networks"])]
        width = 0.84 / len(forms)
        for i, form in enumerate(forms):
            rows = [(at, row) for at, row in enumerate(panel["networks"]) if form in row["ms"]]
            places = [at + (i - (len(forms) - 1) / 2) * width for at, _ in rows]
            fill = colour(SIDE_OF.get(form, form))
            axis.bar(places, [row["ms"][form] for _, row in rows], width * 0.94, color=fill, label=FORMS[form])
            if form == "packed":
                _bounds(axis, places, [row["bound"] for _, row in rows], width)
        axis.set_xticks(range(len(panel["networks"])), [_name(row) for row in panel["networks"]])
        axis.tick_params(axis="x", length=0)
        axis.grid(visible=False, axis="x")
        plain_ticks(axis.yaxis)
    axes[0].set_ylabel("milliseconds")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=1.4)
    return made


def _bounds(axis: Any, places: list[float], bounds: list[float | None], width: float) -> None:
    known = [(at, bound) for at, bound in zip(places, bounds, strict=True) if bound is not None]
    if known:
        at, values = zip(*known, strict=True)
        lefts, rights = [x - width / 2 for x in at], [x + width / 2 for x in at]
        axis.hlines(values, lefts, rights, color=INK, linewidth=1.5, label="its bound")


def _name(row: Any) -> str:
    """With how many times as fast as fp32 the packed network is."""
    ms = row["ms"]
    factor = f"\n{ms['fp32'] / ms['packed']:.1f}x" if {"fp32", "packed"} <= set(ms) else ""
    return row["network"] + factor


def step_time(data: Any) -> Figure:
    """Time and memory of a training step against the share of layers committed."""
    made, (time, memory) = figure(2, 3.4)
    time.plot(data["committed"], data["time"], "o-", color=colour("ours"), label="STE-free StoMPP")
    for name, value in data["plain"].items():
        time.axhline(value, color=colour("PyTorch"), linestyle="--", label=name)
    for percent, value in zip(data["committed"], data["time"], strict=True):
        text = f"{1 / value:.1f}x"
        time.annotate(text, (percent, value), (6, 5), textcoords="offset points", fontsize=8, color=INK)
    time.set_title("time of a training step, relative to nothing committed")
    time.margins(x=0.08)
    time.set_ylim(0, 1.2 * max(data["time"]))
    time.legend(loc="lower left")
    memory.bar(data["committed"], data["kept_mbytes"], width=12, color=colour("ours"))
    for percent, value in zip(data["committed"], data["kept_mbytes"], strict=True):
        memory.annotate(f"{value:.0f}", (percent, value), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    memory.set_title("MB kept for backward")
    memory.grid(visible=False, axis="x")
    for axis in (time, memory):
        axis.xaxis.set_major_locator(FixedLocator(data["committed"]))
        axis.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axis.set_xlabel("layers committed")
    return made


def depth(lines: Any) -> Figure:
    """Accuracy against the number of binarized layers: means, and bars from the lowest to the highest seed."""
    made, (axis,) = figure(1, 3.9)
    for regime, (fill, marker, dash) in LINES.items():
        if regime in lines:
            layers, means, lows, highs = zip(*lines[regime], strict=True)
            below = [mean - low for mean, low in zip(means, lows, strict=True)]
            above = [high - mean for mean, high in zip(means, highs, strict=True)]
            style = {"color": fill, "marker": marker, "linestyle": dash, "markersize": 6, "capsize": 3}
            axis.errorbar(layers, means, (below, above), **style, label=regime)
    axis.set_xlabel("binarized layers")
    axis.set_ylabel("test accuracy, every layer binary (%)")
    axis.xaxis.set_major_locator(FixedLocator(sorted({point[0] for points in lines.values() for point in points})))
    axis.legend(loc="best")
    return made


def blockade(rows: Any) -> Figure:
    """As the study's own report draws it."""
    made = draw_rows(rows)
    if made is None:
        raise ValueError("the groups of blockade_digits/report set no activation apart")
    return made
