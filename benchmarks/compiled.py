"""Programs without torch, on the core alone or without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-pthread")


def default_compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split()


def compile_program(
    name: str, folder: Path, core: bool = True, compiler: Sequence[str] = (), tree: Path = ROOT
) -> Path:
    """Compiles benchmarks/`name`.cpp as the library is compiled.

    Args:
        folder: gets the program.
        core: link the core too.
        compiler: a command; :func:`default_compiler` if empty.
        tree: whose core it is; the program's own source is always the one beside this file.

    Returns:
        The program.

    Raises:
        subprocess.CalledProcessError: it does not compile; the compiler has said why.
    """
    program = folder / name
    sources = [ROOT / "benchmarks" / f"{name}.cpp", *(sorted(tree.glob("csrc/core/**/*.cpp")) if core else ())]
    command = [*(compiler or default_compiler()), *FLAGS, f"-I{tree / 'csrc'}"]
    subprocess.run([*command, *sources, "-o", program], check=True)
    return program
