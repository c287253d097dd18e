"""Finds prose that is no sentence: comments, docstrings and help texts that begin as the rest of one would.

    python scripts/check_prose.py [FILE ...]

It reads the files of the repository, or those named, prints a line for each finding and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("stompp_kernels", "tests", "benchmarks", "scripts", "build_tools", "examples", "csrc")
LEFT_OUT: tuple[str, ...] = ()
PYTHON, CPP = (".py",), (".h", ".cpp", ".cuh", ".cu")

_FRAGMENT = re.compile(r"(Of|That)\b(?! (is|said)\b)")
_HELP_FRAGMENT = re.compile(r"(of|that|by|than|for|in|under|gets|default:)(\s|$)")
_TAKES_HELP = ("add_argument", "add_parser", "addoption")


def problems_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and text of each finding in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in CPP:
        yield from _comments(enumerate((line.strip() for line in text.splitlines()), 1), "//")
        return
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    own = (t for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#"))
    yield from _comments(((t.start[0], t.string) for t in own), "#")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary = ast.get_docstring(node) or ""
            if _FRAGMENT.match(summary):
                yield node.body[0].lineno, summary.splitlines()[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in _TAKES_HELP:
            yield from _help(node)


def _comments(lines: Iterator[tuple[int, str]] | enumerate[str], mark: str) -> Iterator[tuple[int, str]]:
    """Finds comments whose first line is a fragment; the lines below it go on with its sentence."""
    last = -1
    for number, line in lines:
        if line.startswith(mark):
            text = line.lstrip(mark).strip()
            if number != last + 1 and _FRAGMENT.match(text):
                yield number, line
            last = number


def _help(call: ast.Call) -> Iterator[tuple[int, str]]:
    for keyword in call.keywords:
        if keyword.arg in ("help", "description"):
            parts = keyword.value.values if isinstance(keyword.value, ast.JoinedStr) else [keyword.value]
            first = parts[0].value if isinstance(parts[0], ast.Constant) else ""
            if isinstance(first, str) and _HELP_FRAGMENT.match(first):
                yield keyword.value.lineno, f"help={first!r}"


def files() -> list[Path]:
    """Returns the repository's files of Python and C++, but for what is left out."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in PYTHON + CPP]
    names = ((path, path.relative_to(ROOT).as_posix()) for path in [*found, ROOT / "setup.py"])
    return sorted(path for path, name in names if not name.startswith(LEFT_OUT))


def main() -> int:
    """Runs the check and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="files to check (default: those of the repository)")
    count = 0
    for path in parser.parse_args().files or files():
        for line, text in problems_in(path):
            print(f"{path}:{line}: begins as the rest of a sentence: {text}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
