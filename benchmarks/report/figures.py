"""The figures of the report: what each is called, what it shows and from which data it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import series
from benchmarks.report.data import Results
from stompp_kernels.report import png
from stompp_kernels.report.figures import Picture, drawing
from stompp_kernels.training.report import blockade

FOLDER = "figures"


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its file and of the function that draws it.
        data: what is drawn, or None where the result files for it are missing.
    """

    name: str
    title: str
    text: str
    data: Callable[[Results], Any]

    @property
    def file(self) -> str:
        return f"{self.name}.png"


PLOTS = (
    Plot(
        "speedups",
        "Kernels against PyTorch",
        "Geometric means over the cases of each group: the other side's time by ours. PyTorch is what a user writes, "
        "eager or under torch.compile, whichever is faster in a case; fp32 and int8 are torch's product alone.",
        series.speedups,
    ),
    Plot(
        "roofline",
        "Roofline",
        "Each case's speed against its operations a byte, below the speed that the machine reaches on products alone "
        "and on reading alone; and the share of its own bound, the larger of both times, that each case reaches. "
        "Drawing the random numbers of masks counts as no operation.",
        series.roofline,
    ),
    Plot(
        "sizes",
        "Matrix products against their size",
        "Billion multiplications and additions a second.",
        series.sizes,
    ),
    Plot(
        "threads",
        "Threads",
        "How many times as fast a group's cases are, geometric mean; the dotted line is as many times as there are "
        "more threads.",
        series.threads,
    ),
    Plot(
        "networks",
        "Whole networks",
        "Milliseconds of one sample, the best of eager, compiled and packaged; under each name how many times as fast "
        "as fp32 the packed network is. Its bound: its float layers' time, and its products at bgemm's speed.",
        series.networks,
    ),
    Plot(
        "step_time",
        "A training step as the network freezes",
        "STE-free StoMPP, the first layers committed.",
        series.step_time,
    ),
    Plot(
        "depth",
        "Accuracy against depth",
        "Residual networks on handwritten digits, trained from scratch with one schedule for all depths; mean over "
        "seeds, and bars from the lowest to the highest.",
        series.depth,
    ),
    Plot("blockade", blockade.TITLE, blockade.TEXT, series.blockade),
)


def draw(results: Results) -> list[Picture]:
    """The figures that the result files allow.

    Raises:
        ImportError: matplotlib is missing (the `report` extra).
    """
    drawn = []
    with drawing():
        from benchmarks.report import kernel_figures, network_figures

        for plot in PLOTS:
            data = png.rounded(plot.data(results))
            if data is not None:
                module = kernel_figures if hasattr(kernel_figures, plot.name) else network_figures
                content = png.png_of(getattr(module, plot.name)(data), **{png.KEY: png.digest(data)})
                drawn.append(Picture(plot.file, plot.title, plot.text, content))
    return drawn


def outdated(results: Results, folder: Path) -> list[str]:
    """Files of figures in ``folder`` that are not those of the result files, missing ones among them."""
    return [plot.file for plot in PLOTS if not png.is_current(folder / plot.file, plot.data(results))]
