"""`python -m benchmarks.report`: the page and the figures on result files, and the tables in README and docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import readme
from benchmarks.report.data import KEPT, README_SOURCES, Results
from benchmarks.report.figures import FOLDER, PLOTS, draw
from benchmarks.report.page import page
from stompp_kernels.report.folder import write_files

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "report"


def write(results: Results, output: Path) -> list[Path]:
    """Writes report.html and the figures into a folder, which is made if need be; returns the files."""
    pictures = draw(results)
    files = {f"{FOLDER}/{picture.file}": picture.png for picture in pictures}
    files["report.html"] = page(results, pictures).encode()
    return write_files(output, files, (f"{FOLDER}/{plot.file}" for plot in PLOTS))


def write_pages(results: Results) -> list[Path]:
    """Writes the tables of the README and the documentation, and the figures that they show; returns the files."""
    pages = {path: readme.filled(path.read_text(), results, where).encode() for path, where in readme.PAGES.items()}
    shown = readme.kept_pictures()
    pictures = {picture.file: picture.png for picture in draw(results) if picture.file in shown}
    written = write_files(ROOT, {path.relative_to(ROOT).as_posix(): content for path, content in pages.items()})
    return written + write_files(KEPT / FOLDER, pictures, (plot.file for plot in PLOTS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=list(README_SOURCES),
        help="folders of result files, or kept files (default: the kept files that README and docs show)",
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for report.html and figures/ (default: build/report)"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="rewrite the tables and figures of the README and docs/benchmarks.md instead of a page",
    )
    arguments = parser.parse_args()
    try:
        results = Results(*arguments.results)
        written = write_pages(results) if arguments.readme else write(results, arguments.output)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    for path in written:
        print(path)
    for name, command in results.missing().items():
        print(f"left out: {name}; {command} makes it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
