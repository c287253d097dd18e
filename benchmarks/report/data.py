"""The result files: which there are, what makes the others, and the means that figures and tables show.

They are read from the folder that benchmarks write to, or from what the repository keeps of them (benchmarks/keep.py).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.roofline import Ceilings

Row = Mapping[str, Any]

KEPT = Path(__file__).parents[1] / "results"
"""What the repository keeps: one file for each machine, and one of all studies."""
README_SOURCES = (KEPT / "emerald_rapids.json", KEPT / "studies.json")

HELD_TO_AVX2 = "bash benchmarks/avx2.sh"
FAMILIES = {  # name before "_<implementation>.json": the command
    "suite": "pytest benchmarks --benchmark-only --results build/results",
    "ceilings": "python -m benchmarks.ceilings",
    "peers": "python -m benchmarks.peers --larq FOLDER",
    "networks": "python -m benchmarks.networks",
}
IMPLEMENTATIONS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}
NEEDED = ("avx2", "avx512")  # for tables
FILES = {
    **{
        f"{family}_{name}": f"{HELD_TO_AVX2} {command}" if name == "avx2" else f"{command} (with {title})"
        for family, command in FAMILIES.items()
        for name, title in IMPLEMENTATIONS.items()
    },
    "training_speed": "python -m benchmarks.training_speed",
    "demo_ste": "stompp demo --results build/results/demo_ste.json",
    "demo_ste_free": "stompp demo --regime ste_free --results build/results/demo_ste_free.json",
    "instructions": "python -m benchmarks.instructions",
}
STUDIES = (  # those that tables and figures show
    *("resnet20_cifar10_small", "modern_cifar10_small"),
    *("depth_digits", "blockade_digits"),
)
GPU_FILES = ("gpu_bgemm", "gpu_progressive", "gpu_rates", "gpu_tiles", "training_speed_cuda")
GPU_COMMAND = "bash benchmarks/gpu_check.sh OUT"
PLAIN = ("eager", "compiled")
PYTORCH = "PyTorch"  # the better of PLAIN
DEFAULTS = {"kind": "binary", "operations": 0}
"""What a kept row of cases leaves out where it is so."""


class Results:
    """Result files, by name without ".json".

    Args:
        sources: folders of result files, or files that benchmarks/keep.py wrote.

    Raises:
        ValueError: a source is neither, or a file is not JSON.
    """

    def __init__(self, *sources: Path) -> None:
        self.sources = sources
        self.files: dict[str, dict[str, Any]] = {}
        for source in sources:
            self.files |= _kept(source) if source.suffix == ".json" else _in_folder(source)

    def get(self, name: str) -> dict[str, Any] | None:
        """The content of a file, without ".json"; None where there is none."""
        return self.files.get(name)

    def need(self, name: str) -> dict[str, Any]:
        """The content of a file.

        Raises:
            ValueError: there is none.
        """
        if name not in self.files:
            places = ", ".join(str(source) for source in self.sources)
            raise ValueError(f"{name}.json is missing in {places}; {self.command(name)} makes it")
        return self.files[name]

    def command(self, name: str) -> str:
        """What makes a file that is here or could be."""
        if name in GPU_FILES:
            return GPU_COMMAND
        study, _, report = name.partition("/")
        if report:
            return f"stompp ablate recipes/studies/{study}.toml --output build/results/{study} --jobs 2"
        return FILES.get(name) or FAMILIES[name.partition("_")[0]]

    def by_implementation(self, family: str) -> dict[str, dict[str, Any]]:
        """The files of a family, by the name of the implementation that ran."""
        prefix = f"{family}_"
        return {name.removeprefix(prefix): file for name, file in self.files.items() if name.startswith(prefix)}

    def implementations(self, family: str) -> dict[str, str]:
        """The titles of those that tables compare: AVX2 and AVX-512, and AMX where it was measured.

        Raises:
            ValueError: a file of the first two is missing.
        """
        for name in NEEDED:
            self.need(f"{family}_{name}")
        return {name: title for name, title in IMPLEMENTATIONS.items() if f"{family}_{name}" in self.files}

    def ceilings(self, implementation: str) -> Ceilings:
        """Empty where none were measured."""
        return Ceilings((self.get(f"ceilings_{implementation}") or {"rows": ()})["rows"])

    def missing(self) -> dict[str, str]:
        """Files that are not there, with the command that makes them; those of a GPU only where none is."""
        wanted = (*FILES, *(f"{study}/report" for study in STUDIES))
        found = {f"{name}.json": self.command(name) for name in wanted if name not in self.files}
        if not any(name in self.files for name in GPU_FILES):
            found["gpu_*.json"] = GPU_COMMAND
        return found


def _in_folder(folder: Path) -> dict[str, dict[str, Any]]:
    if not folder.is_dir():
        raise ValueError(f"results must be a folder, got {str(folder)!r}")
    names = dict.fromkeys((*FILES, *GPU_FILES))
    names |= dict.fromkeys(path.stem for family in FAMILIES for path in sorted(folder.glob(f"{family}_*.json")))
    names |= {f"{path.parent.name}/report": None for path in sorted(folder.glob("*/report.json"))}
    return {name: content for name in names if (content := _read(folder / f"{name}.json")) is not None}


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """The result files in a kept file; cases get back the times and rates that follow from our time."""
    found = _read(path)
    if found is None:
        raise ValueError(f"results must be a folder or a kept file, and there is no {str(path)!r}")
    for file in found.values():
        for key, value in file.items():
            if isinstance(value, list) and value and isinstance(value[0], list):
                columns, *rows = value
                file[key] = [_row(dict(zip(columns, row, strict=False))) for row in rows]
    return found


def _row(kept: Row) -> dict[str, Any]:
    """A kept row as benchmarks write it."""
    row = {key: value for key, value in kept.items() if value is not None}
    if not {"group", "ms", "ratios"} <= row.keys():
        return row
    ours, row = row["ms"], {**DEFAULTS, **row}
    row["ms"] = {"ours": {"median": ours}} | {side: {"median": r * ours} for side, r in row["ratios"].items()}
    if "bytes" in row:
        row |= {"gops": row["operations"] / ours / 1e6, "gbytes_per_s": row["bytes"] / ours / 1e6}
    return row


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def title_of(implementation: str) -> str:
    return IMPLEMENTATIONS.get(implementation, implementation)


def threads_of(rows: Iterable[Row]) -> list[int]:
    return sorted({row["threads"] for row in rows})


def sides(row: Row) -> dict[str, float]:
    """How many times as fast as each side we are; of plain PyTorch, eager or compiled, the faster counts."""
    plain = [row["ratios"][side] for side in PLAIN if side in row["ratios"]]
    others = {side: ratio for side, ratio in row["ratios"].items() if side not in PLAIN}
    return {PYTORCH: min(plain), **others} if plain else others


def pytorch_ms(row: Row) -> float:
    """Returns the milliseconds of the faster of eager and compiled."""
    return min(row["ms"][side]["median"] for side in PLAIN if side in row["ms"])


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by group, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def mean_ratio(rows: Iterable[Row], group: str, side: str, threads: int) -> float | None:
    """The geometric mean over a group's cases; None where no case has that side."""
    ratios = [
        sides(row)[side] for row in rows if (row["group"], row["threads"]) == (group, threads) and side in sides(row)
    ]
    return statistics.geometric_mean(ratios) if ratios else None
