"""Programs without torch, on the core alone or without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-pthread", f"-I{ROOT / 'csrc'}")


def compile_program(name: str, folder: Path, core: bool = True, compiler: Sequence[str] = ()) -> Path:
    """Compiles benchmarks/`name`.cpp as the library is compiled.

    Args:
        folder: gets the program.
        core: link the core too.
        compiler: a command; CXX, or else c++, if empty.

    Returns:
        The program.
    """
    program = folder / name
    sources = [ROOT / "benchmarks" / f"{name}.cpp", *(sorted(ROOT.glob("csrc/core/**/*.cpp")) if core else ())]
    command = compiler or os.environ.get("CXX", "c++").split()
    subprocess.run([*command, *FLAGS, *sources, "-o", program], check=True)
    return program
