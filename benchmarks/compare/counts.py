"""Instructions of the core's products on both sides: a measure without noise."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.decision import FASTER, SAME, SLOWER
from benchmarks.compare.trees import Tree, TreeError
from benchmarks.compiled import FLAGS, ROOT, compile_program, default_compiler
from benchmarks.instructions import Count, counts_of, missing_tool

LIMIT = 1.02  # counts repeat exactly; what is below is a compiler's choice between equals


@dataclass(frozen=True)
class CountRow:
    """Instructions per 256 products, all included."""

    case: str
    implementation: str
    verdict: str
    base: float
    head: float

    @property
    def ratio(self) -> float:
        return self.head / self.base


def compare_counts(base: Tree, head: Tree, cache: Path) -> tuple[list[CountRow], str]:
    """The counts of both sides, and why there are none, if so.

    Raises:
        TreeError: HEAD's core cannot be counted though valgrind is there.
    """
    if missing_tool():
        return [], f"instructions not counted: {missing_tool()}"
    try:
        of_head = counts_of(program_of(head, cache))
    except subprocess.CalledProcessError as error:
        raise TreeError(f"instructions.cpp and the core of {head.name} do not go together: {error}") from None
    try:
        of_base = counts_of(program_of(base, cache))
    except subprocess.CalledProcessError as error:
        return (
            [],
            f"instructions not compared: instructions.cpp and the core of {base.name} do not go together: {error}",
        )
    return [row_of(old, new) for old, new in zip(of_base, of_head, strict=True)], ""


def row_of(base: Count, head: Count) -> CountRow:
    ratio = head.per_256 / base.per_256
    found = SLOWER if ratio > LIMIT else FASTER if ratio < 1 / LIMIT else SAME
    return CountRow(head.case, head.implementation, found, base.per_256, head.per_256)


def program_of(tree: Tree, cache: Path) -> Path:
    """The compiled instructions.cpp with a tree's core; one program for all trees with the same core."""
    program = cache / f"instructions-{digest(tree.folder)}"
    if not program.exists():
        print(f"compiling instructions.cpp with the core of {tree.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            compile_program("instructions", Path(folder), tree=tree.folder).replace(program)
    return program


def digest(tree: Path) -> str:
    """Hashes all that the program is compiled from, and how."""
    found = hashlib.sha256(repr([*default_compiler(), *FLAGS]).encode())
    core = sorted(path for path in (tree / "csrc" / "core").rglob("*") if path.is_file())
    for path in (ROOT / "benchmarks" / "instructions.cpp", *core):
        name = path.relative_to(tree).as_posix() if path.is_relative_to(tree) else path.name
        found.update(repr((name, hashlib.sha256(path.read_bytes()).hexdigest())).encode())
    return found.hexdigest()[:16]
