"""What figures share, drawn on Agg canvases of their own: no pyplot, no window, no state that outlives a figure.

matplotlib is imported where it is used, so that a report can say that it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches
_DPI = 85
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its file's name, heading, what it shows in a sentence, and the PNG."""

    file: str
    title: str
    text: str
    png: bytes


@contextmanager
def drawing() -> Iterator[None]:
    """Inside this ``with`` block figures have the reports' style.

    Raises:
        ImportError: matplotlib is missing (the `report` extra).
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('the report is drawn by matplotlib: pip install "stompp_kernels[report]"') from error
    with matplotlib.rc_context(_STYLE):
        yield


def canvas(height: float) -> Figure:
    """An empty figure of the page's width; ``height`` in inches."""
    from matplotlib.figure import Figure

    return Figure((WIDTH, height), dpi=_DPI, layout="constrained")


def legend_below(figure: Figure, axes: Any) -> None:
    """Puts the axes' legend below them, in as many columns as the labels leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    columns = min(len(labels), max(1, 150 // (longest + 10)))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
