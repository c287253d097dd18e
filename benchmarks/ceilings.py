"""The most that an instruction set can do on this machine: `python -m benchmarks.ceilings` (needs a compiler).

What the kernels' rates are read against. "binary" is the instruction mix of the product kernel for many rows, "signed
sum" that of floats with binary weights, "fp32" that of float products: with all operands in registers, so that only the
ports which run the instructions bound it. Loads, preparation and epilogues come on top: no product by this method is
faster. Then what vector loads read and copy, from working sets of each thread that fit its first cache to some that fit
none.

A figure is the sum of the threads' medians over repetitions of 0.2 ms, taken while all of them run.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compiled import compile_program
from benchmarks.timing import RESULTS, save
from stompp_kernels import native
from stompp_kernels.table import table

SECONDS = 0.3
LARGEST = 256 << 20


def measure(
    command: Sequence[str | Path], implementation: str, threads: int, seconds: float = SECONDS, largest: int = LARGEST
) -> list[dict[str, Any]]:
    """The rows of one number of threads.

    Args:
        command: benchmarks/ceilings.cpp, compiled.
        implementation: one that runs on this machine.
        seconds: of each figure.
        largest: working set of a thread, in bytes.

    Raises:
        subprocess.CalledProcessError: an implementation that the program does not know (status 2), no memory (3).
    """
    arguments = map(str, (implementation, threads, seconds, largest))
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return [_row(line.split(), threads) for line in done.stdout.splitlines()]


def _row(words: list[str], threads: int) -> dict[str, Any]:
    what, name, *numbers = words
    if what == "operations":
        return {"name": name.replace("_", " "), "threads": threads, "per_second": float(numbers[0])}
    return {"name": name, "threads": threads, "bytes": int(numbers[0]), "bytes_per_second": float(numbers[1])}


def size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def report(rows: list[dict[str, Any]]) -> str:
    operations, memory = ([row for row in rows if ("bytes" in row) == of_memory] for of_memory in (False, True))
    rates = [(row["name"], row["threads"], f"{row['per_second'] / 1e9:.1f}") for row in operations]
    speeds = [(r["name"], r["threads"], size(r["bytes"]), f"{r['bytes_per_second'] / 1e9:.1f}") for r in memory]
    return "\n\n".join(
        (
            table(("operations", "threads", "Gop/s"), rates),
            table(("memory", "threads", "working set of a thread", "GB/s"), speeds),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure (default: 1 2)"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"seconds to measure each figure (default: {SECONDS})"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    implementation = native.active_implementation()
    if implementation == "reference":
        parser.error("plain PyTorch has no instruction mix of its own: the compiled library is missing")
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program("ceilings", Path(folder), core=False)
        rows = [row for n in arguments.threads for row in measure([program], implementation, n, arguments.seconds)]
    print(report(rows))
    print(save(f"ceilings_{implementation}", "python -m benchmarks.ceilings", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
