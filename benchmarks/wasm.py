"""Binary products in WebAssembly, with its vectors and without: `make bench-wasm`, or `python -m benchmarks.wasm`.

Needs the extra `wasm`: ziglang's compiler and wasmtime. Both modules hold the same program, benchmarks/products.cpp.
They run in turns, on one thread; a figure is the median of its turns. Browsers have other compilers than wasmtime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import RESULTS, ROOT, save
from build_tools.wasm import VECTORS, compile_module, core_sources, run_program
from stompp_kernels.table import table

MODULES: Mapping[str, Sequence[str]] = {"scalar": (), "wasm": (VECTORS,)}  # by the implementation that runs: its flags


def measure(modules: Mapping[str, Path], turns: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each product and module, with the billions of operations a second."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(turns):
        for implementation, module in modules.items():
            status, printed = run_program(module, (str(seconds),), {"STOMPP_CPU": implementation})
            if status != 0:
                raise RuntimeError(f"{module.name} ended with status {status}")
            for line in printed.splitlines():
                product, rate = line.split()
                found.setdefault((product, implementation), []).append(float(rate))
    return [
        {"product": product, "implementation": implementation, "gops": statistics.median(rates)}
        for (product, implementation), rates in found.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wasm", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="turns of both modules (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds of a product in a turn (default: 0.3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sources = [ROOT / "benchmarks" / "products.cpp", *core_sources()]
        modules = {key: compile_module(Path(name) / f"{key}.wasm", sources, flags) for key, flags in MODULES.items()}
        rows = measure(modules, arguments.turns, arguments.seconds)
    rates = {(row["product"], row["implementation"]): row["gops"] for row in rows}
    cells = [
        (product, f"{scalar:.0f}", f"{rates[product, 'wasm']:.0f}", f"{rates[product, 'wasm'] / scalar:.1f}")
        for (product, implementation), scalar in rates.items()
        if implementation == "scalar"
    ]
    print(table(("product", "scalar, GOPS", "vectors, GOPS", "ratio"), cells))
    print(save("wasm", "python -m benchmarks.wasm", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
