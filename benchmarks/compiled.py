"""Programs on the core alone, without torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def compile_program(name: str, folder: Path) -> Path:
    """Compiles benchmarks/`name`.cpp and the core as the library is compiled; returns the program in `folder`."""
    program = folder / name
    sources = [ROOT / "benchmarks" / f"{name}.cpp", *sorted(ROOT.glob("csrc/core/**/*.cpp"))]
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*os.environ.get("CXX", "c++").split(), *flags, *sources, "-o", program], check=True)
    return program
