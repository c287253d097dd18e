"""`python -m benchmarks.report`: the page and the figures on result files, and the tables in README and docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import readme
from benchmarks.report.data import KEPT, README_SOURCES, Results
from benchmarks.report.figures import FOLDER, PLOTS, draw
from benchmarks.report.page import page
from stompp_kernels.files import replacing

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "report"


def write(results: Results, output: Path) -> list[Path]:
    """Writes report.html and the figures into a folder, which is made if need be; returns the files."""
    pictures = draw(results)
    files = {output / FOLDER / picture.file: picture.png for picture in pictures}
    files[output / "report.html"] = page(results, pictures).encode()
    (output / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with replacing(path) as file:
            file.write(content)
    for plot in PLOTS:
        if output / FOLDER / plot.file not in files:
            (output / FOLDER / plot.file).unlink(missing_ok=True)  # of results that are gone
    return list(files)


def write_pages(results: Results) -> list[Path]:
    """Writes the tables of the README and the documentation, and the figures that they show; returns the files."""
    files = {path: readme.filled(path.read_text(), results, where).encode() for path, where in readme.PAGES.items()}
    shown = readme.kept_pictures()
    files |= {KEPT / FOLDER / picture.file: picture.png for picture in draw(results) if picture.file in shown}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    return list(files)


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
