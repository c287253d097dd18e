"""Every tile of the product kernel on some shapes: `python -m benchmarks.gpu_tiles`.

Shows which tile is fastest and which csrc/cuda/product/choose.h picks. Built for this machine's GPU where it is not in
--programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import gpu_programs
from benchmarks.timing import save_each
from stompp_kernels.table import table


def rows_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """From the program's lines, each "M N K kernel,milliseconds,chosen"."""
    for line in lines:
        print(line, flush=True)
        case, ms, chosen = line.split(",")
        M, N, K, kernel = case.split(" ", 3)
        yield {"M": int(M), "N": int(N), "K": int(K), "kernel": kernel, "ms": float(ms), "chosen": chosen == "1"}


def main() -> int:
    lines, output = gpu_programs.started("tiles", "python -m benchmarks.gpu_tiles", __doc__)
    rows = save_each("gpu_tiles", "python -m benchmarks.gpu_tiles", rows_of(lines), output)
    cells = []
    for row in rows:
        best = min(r["ms"] for r in rows if (r["M"], r["N"], r["K"]) == (row["M"], row["N"], row["K"]))
        shape = f"{row['M']} x {row['N']} x {row['K']}"
        rate = 2 * row["M"] * row["N"] * row["K"] / row["ms"] / 1e12
        cells.append(
            (shape, row["kernel"], f"{row['ms']:.4f}", f"{rate:.3f}", f"{row['ms'] / best:.2f}", "x" * row["chosen"])
        )
    print(table(("M x N x K", "kernel", "ms", "Pop/s", "of the best", "chosen"), cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
