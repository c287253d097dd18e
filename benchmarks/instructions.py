"""Instructions per 256 products, all included: `python -m benchmarks.instructions` (needs valgrind and a compiler).

callgrind counts them the same on every run, so they compare two versions of a kernel on any machine, however loaded.
What one more repetition of a product costs is counted; packing the weights is not. valgrind knows no AVX-512.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.compiled import ROOT, compile_program
from stompp_kernels.files import write_json
from stompp_kernels.table import table

CASES = (
    ("bgemm", 1024, 1024, 1024),
    ("bgemm", 256, 256, 4096),
    ("bgemm", 128, 768, 768),
    ("bgemm", 1, 4096, 4096),
    ("bgemm", 4, 4096, 4096),
    ("bconv2d", 56, 64, 64, 3),
    ("bconv2d", 28, 128, 128, 3),
    ("bconv2d", 14, 256, 256, 3),
    ("bconv2d", 7, 512, 512, 3),
)


@dataclass(frozen=True)
class Count:
    """Instructions of a case."""

    case: str
    implementation: str
    per_256: float


def missing_tool() -> str:
    """Why nothing can be counted here; empty if it can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def counts_of(program: Path) -> list[Count]:
    """Those of every case, by the compiled instructions.cpp.

    Raises:
        subprocess.CalledProcessError: the program fails.
    """
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            (once, implementation, units), (twice, _, _) = (run(program, case, n, Path(folder)) for n in (1, 2))
            shape = " x ".join(map(str, case[1:]))
            counts.append(Count(f"{case[0]} {shape}", implementation, (twice - once) / units))
    return counts


def run(program: Path, case: tuple[str | int, ...], repeats: int, folder: Path) -> tuple[int, str, float]:
    """(instructions of the whole program, implementation, how often 256 products a repetition computes)."""
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}"]
    # What valgrind does not know cannot be asked for: the best that it knows runs then.
    variables = {k: v for k, v in os.environ.items() if k != "STOMPP_CPU" or not v.startswith("avx512")}
    command = [*tool, program, *map(str, case), str(repeats)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None:
        raise RuntimeError(f"callgrind printed no count: {done.stderr[-500:]}")
    implementation, units = done.stdout.split()
    return int(collected.group(1)), implementation, float(units)


def main() -> int:
    if missing_tool():
        print(missing_tool(), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        counts = counts_of(compile_program("instructions", Path(folder)))
    cells = [(count.case, count.implementation, f"{count.per_256:.2f}") for count in counts]
    print(table(("case", "implementation", "instructions per 256 products"), cells))
    write_json(
        ROOT / "benchmarks" / "results" / "instructions.json",
        {"command": "python -m benchmarks.instructions", "rows": [asdict(count) for count in counts]},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
