"""Instructions per 256 products, all included: `python -m benchmarks.instructions` (needs valgrind and a compiler).

callgrind counts them the same on every run, so they compare two versions of a kernel on any machine, however loaded.
What one more repetition of a product costs is counted; packing the weights is not. valgrind knows no AVX-512.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
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


def count(program: Path, case: tuple[str | int, ...], repeats: int, folder: Path) -> tuple[int, str, float]:
    """(instructions of the whole program, implementation, how often 256 products a repetition computes)."""
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}"]
    done = subprocess.run([*tool, program, *map(str, case), str(repeats)], capture_output=True, text=True, check=True)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None:
        raise RuntimeError(f"callgrind printed no count: {done.stderr[-500:]}")
    implementation, units = done.stdout.split()
    return int(collected.group(1)), implementation, float(units)


def main() -> int:
    if shutil.which("valgrind") is None:
        print("valgrind is not installed", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compile_program("instructions", folder)
        for case in CASES:
            (once, implementation, units), (twice, _, _) = (count(program, case, n, folder) for n in (1, 2))
            shape = " x ".join(map(str, case[1:]))
            rows.append(
                {"case": f"{case[0]} {shape}", "implementation": implementation, "per_256": (twice - once) / units}
            )
    cells = [(row["case"], row["implementation"], f"{row['per_256']:.2f}") for row in rows]
    print(table(("case", "implementation", "instructions per 256 products"), cells))
    write_json(
        ROOT / "benchmarks" / "results" / "instructions.json",
        {"command": "python -m benchmarks.instructions", "rows": rows},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
