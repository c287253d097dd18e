"""Writes the report: the page, its figures and its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stompp_kernels.report.figures import drawing
from stompp_kernels.report.folder import write_files
from stompp_kernels.training.report.logs import REPORT, group_runs, read_runs, runs_in
from stompp_kernels.training.report.page import page, state
from stompp_kernels.training.report.summary import row


def write_report(runs: Sequence[Path], output: Path, title: str | None = None) -> list[Path]:
    """Writes report.html, report.json and the figures as PNG into the folder ``output``, which is made if need be.

    The page holds its figures itself and loads nothing. A file is replaced as a whole, and the page comes last.

    Args:
        runs: folders that `stompp train` wrote, or a study with such folders in it.
        output: a folder.
        title: of the page.

    Returns:
        The files written, the page first.

    Raises:
        FileNotFoundError: a folder has no log.jsonl.
        ValueError: a log is damaged elsewhere than in its last line; no run, or one given twice; ``output`` is a file.
        ImportError: matplotlib is missing (the `report` extra).
    """
    with drawing():  # the error where matplotlib is missing comes first
        from stompp_kernels.training.report.figures import FIGURES, draw

    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, got the file {str(output)!r}")
    groups = group_runs(read_runs([run for folder in runs for run in runs_in(Path(folder))]))
    rows = [row(group) for group in groups]
    pictures = draw(groups)
    files = {picture.file: picture.png for picture in pictures}
    states = [
        {"run": run.name, "group": g.label, "state": state(run), "notes": run.notes} for g in groups for run in g.runs
    ]
    numbers = {"groups": rows, "runs": states}
    files[REPORT] = (json.dumps(numbers, indent=2) + "\n").encode()
    files["report.html"] = page(title or "Training report", groups, rows, pictures, output).encode()

    return write_files(output, files, (figure[0] for figure in FIGURES))[::-1]
