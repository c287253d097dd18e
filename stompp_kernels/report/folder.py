"""The folder that a report is written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from stompp_kernels.files import replacing


def write_files(folder: Path, files: Mapping[str, bytes], all_figures: Iterable[str] = ()) -> list[Path]:
    """Writes a report's files by name into a folder, each replaced as a whole, and returns them in their order.

    Args:
        folder: made if need be.
        all_figures: names that a report may hold; a file of those that this one has not is of an earlier report, would
            not belong to this page, and is deleted.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    for name in set(all_figures) - set(files):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]
