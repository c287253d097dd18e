"""The look of the figures: a side has one colour wherever it is drawn."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stompp_kernels.report.figures import canvas

COLOURS = {
    "ours": "#1f6fb4",
    "packed": "#1f6fb4",
    "fast": "#12416b",
    "PyTorch": "#e07b39",
    "fp32": "#eab78f",
    "bf16": "#a99bc9",
    "int8": "#6aa84f",
    "copy": "#9aa3ab",
    "two passes": "#c9b458",
}
LABELS = {
    "ours": "this package",
    "packed": "packed, this package",
    "PyTorch": "PyTorch (the better of eager and compiled)",
    "fp32": "torch's fp32 product alone",
    "int8": "torch's int8 product alone",
    "copy": "a copy of the floats",
    "two passes": "BatchNorm, then our packing",
}
SPARE = ("#7d5ba6", "#c0504d", "#4bacc6", "#8c564b", "#d770ad", "#5d6d7e")
INK = "0.25"


def colour(side: str, place: int = 0) -> str:
    """Returns the colour of a side; others take spare ones by their place."""
    return COLOURS.get(side, SPARE[place % len(SPARE)])


def figure(columns: int, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """Panels side by side; ``height`` in inches."""
    made = canvas(height)
    return made, list(made.subplots(1, columns, squeeze=False, **options).ravel())


def plain_ticks(axis: Any, *, subs: tuple[float, ...] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def counted(threads: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{threads} thread{'' if threads == 1 else 's'}"
