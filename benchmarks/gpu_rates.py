"""What each instruction for products of bits reaches on this GPU: `python -m benchmarks.gpu_rates`.

Loops over mma .and, mma .xor, mma on bytes, POPC and, on sm_90, wgmma .and, on random bits and with nothing to load:
the peaks that the kernels' rates are read against. Built for this machine's GPU where it is not in --programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import gpu_programs
from benchmarks.timing import save_each
from stompp_kernels.table import table


def rows_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """From the program's lines, each "instruction operations a second"."""
    for line in lines:
        print(line, flush=True)
        name, rate = line.split()
        yield {"name": name, "operations_per_s": float(rate)}


def main() -> int:
    lines, output = gpu_programs.started("rates", "python -m benchmarks.gpu_rates", __doc__)
    rows = save_each("gpu_rates", "python -m benchmarks.gpu_rates", rows_of(lines), output)
    print(table(("instruction", "Pop/s"), [(row["name"], f"{row['operations_per_s'] / 1e15:.3f}") for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
