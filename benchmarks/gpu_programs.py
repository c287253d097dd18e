"""The programs in CUDA C++ that check and measure the kernels: `python -m benchmarks.gpu_programs FOLDER`.

They need no torch. Builds them in FOLDER for this machine's GPU alone, with the CUDA runtime in them, files side by
side: rates (what instructions reach), products (every kernel against the core) and tiles (every tile on some shapes). A
program that is there already, carried from elsewhere, stays if it runs here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
KERNELS = sorted(ROOT.glob("csrc/cuda/**/*.cu"))
CORE = sorted(ROOT.glob("csrc/core/**/*.cpp"))
PROGRAMS = {
    "rates": [ROOT / "benchmarks" / "gpu_rates.cu"],
    "products": [ROOT / "tests" / "cuda" / "test_cuda.cpp", *KERNELS, *CORE],
    "tiles": [ROOT / "benchmarks" / "gpu_tiles.cu", *KERNELS],
}


def capability() -> tuple[int, int]:
    """Returns the compute capability of this machine's first GPU.

    Raises:
        RuntimeError: nvidia-smi names no GPU.
    """
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        major, minor = text.splitlines()[0].split(".")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as error:
        raise RuntimeError(f"this needs an NVIDIA GPU, and nvidia-smi names none: {error}") from None
    return int(major), int(minor)


def flags(of: tuple[int, int]) -> list[str]:
    """nvcc's flags for a GPU of this capability."""
    major, minor = of
    code = "90a" if major == 9 else f"{major}{minor}"
    return [
        *("-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-gencode=arch=compute_{code},code=sm_{code}"),
        *(f"-DSTOMPP_{family.upper()}" for family, belongs in families(of).items() if belongs),
        *(f"-I{ROOT / folder}" for folder in ("csrc", "benchmarks", "tests/core", "tests/cuda")),
    ]


def families(of: tuple[int, int]) -> dict[str, bool]:
    """Whether a GPU of this capability runs the kernels of a family."""
    major = of[0]
    return {"sm75": major == 7, "sm80": 8 <= major <= 9, "sm90a": major == 9, "sm100": major >= 10}


def sources(program: str, of: tuple[int, int]) -> list[Path]:
    """Returns a program's files, without the kernels of families that the GPU does not run."""
    left_out = [f"product_{family}.cu" for family, belongs in families(of).items() if not belongs]
    return [source for source in PROGRAMS[program] if source.name not in left_out]


def object_name(source: Path) -> str:
    return "_".join(source.relative_to(ROOT).parts) + ".o"


def compile_command(nvcc: str, of: tuple[int, int], source: Path, folder: Path) -> list[str]:
    # The core is C++ of the host's; the tests of the kernels launch some.
    language = ["-x", "cu"] if source.name == "test_cuda.cpp" else []
    return [nvcc, *flags(of), *language, "-c", str(source), "-o", str(folder / object_name(source))]


def build(folder: Path, jobs: int, names: Iterable[str] = PROGRAMS) -> None:
    """Builds those of the named programs that do not run yet.

    Raises:
        RuntimeError: there is no GPU or no nvcc, or a file does not compile.
    """
    missing = [name for name in names if not runs(folder / name)]
    if not missing:
        return
    nvcc, of = shutil.which("nvcc"), capability()
    if nvcc is None:
        raise RuntimeError(f"{', '.join(missing)} must be built in {folder}, and nvcc is not on PATH")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(source for name in missing for source in sources(name, of)))
    wanted.sort(key=lambda source: "product_sm" not in source.name)  # what takes longest first
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda source: run(compile_command(nvcc, of, source, folder)), wanted))
    for name in missing:
        objects = [str(folder / object_name(source)) for source in sources(name, of)]
        run([nvcc, "-cudart=static", *objects, "-o", str(folder / name)])


def runs(program: Path) -> bool:
    """Whether a program starts here: with --starts it does nothing else."""
    try:
        return subprocess.run([program, "--starts"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def lines_of(program: Path) -> Iterator[str]:
    """Yields what a program prints, line by line as it does.

    Raises:
        RuntimeError: it ended with an error.
    """
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")
    if process.returncode != 0:
        raise RuntimeError(f"{program} ended with {process.returncode}")


def started(name: str, command: str, about: str | None) -> tuple[Iterator[str], Path]:
    """Reads a benchmark's arguments; returns what its program prints and the folder of its results file."""
    from benchmarks.timing import RESULTS  # which imports torch: building works without it

    parser = argparse.ArgumentParser(prog=command, description=about)
    parser.add_argument("--programs", type=Path, default=FOLDER, help="folder of the programs (default: build/gpu)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    try:
        build(arguments.programs, os.cpu_count() or 1, [name])
    except RuntimeError as error:
        parser.error(str(error))
    return lines_of(arguments.programs / name), arguments.output


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_programs", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to build in")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files compiled at once (default: cores)")
    arguments = parser.parse_args()
    try:
        build(arguments.folder, arguments.jobs)
    except RuntimeError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
