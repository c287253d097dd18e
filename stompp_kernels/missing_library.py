"""Says what brings the compiled library back where it did not load, from the files that are there."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

PACKAGE = Path(__file__).resolve().parent

# (what the dynamic loader says, what it means): the first that fits.
LOADER_ERRORS = (
    (r"GLIBC\w*_\d", "was built on a newer system than this one"),
    (r"undefined symbol|symbol not found", "was built against another torch than {torch}"),
    (r"cannot open shared object file|library not loaded", "does not find a library that it was built against"),
    (r"file too short|invalid elf|wrong elf|mach-o|exec format", "is damaged or was built for another system"),
)


def remedy(error: ImportError, package: Path = PACKAGE) -> str:
    """What is wrong with the copy of this package in a directory, and the command that mends it, in full sentences."""
    here = library_in(package)
    if here is not None:
        for pattern, meaning in LOADER_ERRORS:
            if re.search(pattern, str(error), re.IGNORECASE):
                return f"{here} {meaning.format(torch=torch.__version__)}. {_build(package, again=True)}"
        return _build(package, again=True)
    compiled = compiled_copy(package)
    if compiled is not None:
        return (
            f"The copy in {package} is imported, which is not compiled, and it hides the compiled one in {compiled}. "
            f"Start Python in another directory or take {package.parent} out of PYTHONPATH to use that one. "
            f"{_build(package)}"
        )
    foreign = sorted(path.name for path in package.glob("_C.*") if path.suffix in (".so", ".pyd"))
    if foreign:
        ours = EXTENSION_SUFFIXES[0].removeprefix(".")
        return (
            f"{package} holds {', '.join(foreign)}, built for another Python than this one, which loads "
            f"_C.{ours}. {_build(package, again=True)}"
        )
    if (package / "libstompp_kernels.so").is_file():
        return f"{package} holds libstompp_kernels.so and no _C: a build was interrupted. {_build(package, again=True)}"
    return _build(package)


def library_in(package: Path) -> Path | None:
    """The file in a directory that this Python would load as ``_C``."""
    files = [package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def compiled_copy(package: Path) -> Path | None:
    """Another copy of this package that has its compiled library, of those that are on sys.path or installed."""
    folders = (folder.resolve() for folder in (*_on_path(), *_installed()))
    return next((folder for folder in folders if folder != package and library_in(folder) is not None), None)


def _on_path() -> Iterator[Path]:
    for entry in sys.path:
        yield Path(entry or os.getcwd(), "stompp_kernels")


def _installed() -> Iterator[Path]:
    for distribution in metadata.distributions(name="stompp_kernels"):
        yield Path(str(distribution.locate_file("stompp_kernels")))
        # An editable installation is elsewhere: pip notes where.
        origin = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
        if origin.startswith("file:"):
            yield Path(url2pathname(urlsplit(origin).path), "stompp_kernels")


def _build(package: Path, again: bool = False) -> str:
    word = "again " if again else ""
    tree = package.parent
    if (tree / "setup.py").is_file():  # not installed by it: what this copy needs is built in place
        return f"Build it {word}with `pip install --no-build-isolation -e .` in {tree}."
    return f"Build it {word}with `pip install --no-build-isolation .` from the source tree."
