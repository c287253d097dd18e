"""`python -m benchmarks.report`: the page and the figures on all result files, and the README's tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import readme
from benchmarks.report.data import Results
from benchmarks.report.figures import FOLDER, PLOTS, draw
from benchmarks.report.page import page
from stompp_kernels.files import replacing

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--output", type=Path, help="folder of report.html and figures/ (default: that of the results)")
    parser.add_argument("--readme", action="store_true", help="rewrite README.md's tables and pictures too")
    arguments = parser.parse_args()
    try:
        results = Results(arguments.results)
        text = readme.filled((ROOT / "README.md").read_text(), results) if arguments.readme else None
        for path in write(results, arguments.output or arguments.results):
            print(path)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if text is not None:
        with replacing(ROOT / "README.md") as file:
            file.write(text.encode())
    for name, command in results.missing().items():
        print(f"left out: {name}; {command} makes it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
