"""The product kernels of one instruction set against each other: `python -m benchmarks.kernels` (needs a compiler).

csrc/core/product/choose.h picks one by the number of rows; its bounds come from this table. Sides alternate within one
process, medians, one thread, the preparation of the rows counted.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compiled import compile_program
from benchmarks.timing import RESULTS, save
from stompp_kernels import native
from stompp_kernels.table import table

SHAPES = ((512, 576), (1024, 1024), (4096, 4096))  # (N, K)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 56)


def measure(program: Path, N: int, K: int) -> list[dict[str, Any]]:
    """One row for each kernel and number of rows."""
    done = subprocess.run([program, *map(str, (N, K, *ROWS))], capture_output=True, text=True, check=True)
    rows = []
    for line in done.stdout.splitlines():
        count, kernel, nanoseconds, chosen = line.split()
        rows.append(
            {
                "N": N,
                "K": K,
                "rows": int(count),
                "kernel": kernel,
                "ns_per_256": float(nanoseconds),
                "chosen": chosen == "1",
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        program = compile_program("kernels", Path(name))
        rows = [row for N, K in SHAPES for row in measure(program, N, K)]
    groups: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["N"], row["K"], row["rows"]), []).append(row)
    cells = []
    for (N, K, count), of_count in groups.items():
        fastest = min(of_count, key=lambda row: row["ns_per_256"])
        chosen = next(row for row in of_count if row["chosen"])
        times = ", ".join(f"{row['kernel']} {row['ns_per_256']:.3f}" for row in of_count)
        cells.append((f"{N} x {K}", count, times, chosen["kernel"], fastest["kernel"]))
    print(table(("weights", "rows", "ns per 256 products", "chosen", "fastest"), cells))
    print(save(f"kernels_{native.active_implementation()}", "python -m benchmarks.kernels", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
