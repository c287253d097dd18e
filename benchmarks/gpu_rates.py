"""What each instruction for products of bits reaches on this GPU: `python -m benchmarks.gpu_rates`.

Loops over mma .and, mma .xor, mma on bytes, POPC and, on sm_90, wgmma .and, with nothing to load: the peaks that the
kernels' rates are read against. Built with nvcc for this machine's GPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import RESULTS, save
from stompp_kernels.table import table

ROOT = Path(__file__).parents[1]


def build_command(nvcc: str, capability: tuple[int, int], sources: list[Path], target: Path) -> list[str]:
    """For a GPU of this capability: of the product's kernels those whose family it belongs to."""
    major, minor = capability
    code = "90a" if major == 9 else f"{major}{minor}"
    families = {"SM75": major == 7, "SM80": 8 <= major <= 9, "SM90A": major == 9, "SM100": major >= 10}
    left_out = [f"product_{family.lower()}.cu" for family, belongs in families.items() if not belongs]
    return [
        *(nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-gencode=arch=compute_{code},code=sm_{code}"),
        *(f"-DSTOMPP_{family}" for family, belongs in families.items() if belongs),
        *(f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'benchmarks'}"),
        *(str(source) for source in sources if source.name not in left_out),
        *("-o", str(target)),
    ]


def run_program(parser: argparse.ArgumentParser, sources: list[Path]) -> list[str]:
    """The lines that a CUDA program prints, built for this machine's GPU."""
    nvcc = shutil.which("nvcc")
    if not torch.cuda.is_available() or nvcc is None:
        parser.error("needs an NVIDIA GPU and nvcc on PATH")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        subprocess.run(build_command(nvcc, torch.cuda.get_device_capability(), sources, program), check=True)
        return subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_rates", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    lines = run_program(parser, [ROOT / "benchmarks" / "gpu_rates.cu"])
    rows: list[dict[str, Any]] = [
        {"name": name, "operations_per_s": float(rate)} for name, rate in (line.split() for line in lines)
    ]
    print(table(("instruction", "Pop/s"), [(row["name"], f"{row['operations_per_s'] / 1e15:.3f}") for row in rows]))
    print(save("gpu_rates", "python -m benchmarks.gpu_rates", rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
