"""Every tile of the product kernel on some shapes: `python -m benchmarks.gpu_tiles`.

Shows which tile is fastest and which csrc/cuda/product/choose.h picks. Built with nvcc for this machine's GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gpu_rates import ROOT, run_program
from benchmarks.timing import RESULTS, save
from stompp_kernels.table import table

PRODUCT = ROOT / "csrc" / "cuda" / "product"


def rows_of(lines: list[str]) -> list[dict[str, Any]]:
    """From the program's lines, each "M N K kernel,milliseconds,chosen"."""
    rows = []
    for line in lines:
        case, ms, chosen = line.split(",")
        M, N, K, kernel = case.split(" ", 3)
        rows.append({"M": int(M), "N": int(N), "K": int(K), "kernel": kernel, "ms": float(ms), "chosen": chosen == "1"})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tiles", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    rows = rows_of(run_program(parser, [ROOT / "benchmarks" / "gpu_tiles.cu", *sorted(PRODUCT.glob("*.cu"))]))
    cells = []
    for row in rows:
        best = min(r["ms"] for r in rows if (r["M"], r["N"], r["K"]) == (row["M"], row["N"], row["K"]))
        shape = f"{row['M']} x {row['N']} x {row['K']}"
        rate = 2 * row["M"] * row["N"] * row["K"] / row["ms"] / 1e12
        cells.append(
            (shape, row["kernel"], f"{row['ms']:.4f}", f"{rate:.3f}", f"{row['ms'] / best:.2f}", "x" * row["chosen"])
        )
    print(table(("M x N x K", "kernel", "ms", "Pop/s", "of the best", "chosen"), cells))
    print(save("gpu_tiles", "python -m benchmarks.gpu_tiles", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
