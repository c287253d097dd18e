"""What the README and a page of the documentation show of the results, between markers; only this writes there.

<!-- benchmarks.report: NAME -->
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import tables
from benchmarks.report.data import Results
from benchmarks.report.figures import FOLDER, PLOTS

MARKED = re.compile(r"(<!-- benchmarks\.report: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
START = "<!-- benchmarks.report:"
PICTURES = f"benchmarks/results/{FOLDER}"

ROOT = Path(__file__).parents[2]
PAGES = {ROOT / "README.md": PICTURES, ROOT / "docs" / "benchmarks.md": f"../{PICTURES}"}
"""The pages with markers, and where each finds the pictures."""


def kept_pictures() -> set[str]:
    """Files of the figures that the README or a page of the documentation shows, which the repository keeps."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = re.compile(rf"{re.escape(PICTURES)}/(\w+\.png)")
    return {name for page in pages for name in shown.findall(page.read_text())} & {plot.file for plot in PLOTS}


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": tables.summary,
    "demo": tables.demo,
    "kernels": tables.kernels,
    "networks": tables.networks,
    "networks with AMX": tables.networks_with_amx,
    "peers": tables.peers,
    "training speed": tables.training_speed,
    "study": tables.study,
}


def block(name: str, results: Results, pictures: str = PICTURES) -> str:
    """A table, or the picture of that name in the folder ``pictures``; empty where there are no data to draw one from.

    Raises:
        ValueError: there is no such table or picture, or a result file that the table needs is missing.
    """
    if name in TABLES:
        return TABLES[name](results) + "\n"
    plots = {plot.name: plot for plot in PLOTS}
    if name not in plots:
        raise ValueError(f"the page asks for {name!r}; there are {', '.join([*TABLES, *plots])}")
    plot = plots[name]
    return "" if plot.data(results) is None else f"![{plot.title}]({pictures}/{plot.file})\n"


def filled(text: str, results: Results, pictures: str = PICTURES) -> str:
    """A page's text with what the result files say between its markers.

    Raises:
        ValueError: as :func:`block`; a marker has no end.
    """
    new, count = MARKED.subn(lambda found: found[1] + block(found[2], results, pictures) + found[4], text)
    if count != text.count(START) or any(START in found[3] for found in MARKED.finditer(text)):
        raise ValueError("each '<!-- benchmarks.report: NAME -->' needs an '<!-- end -->' of its own")
    return new
