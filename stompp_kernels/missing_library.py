"""Says what brings the compiled library back where it did not load, from the files that are there."""

from __future__ import annotations

import json
import os
import platform
import re
import struct
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

PACKAGE = Path(__file__).resolve().parent
LIBRARY = "libstompp_kernels.so"

# (what the dynamic loader says, what it means): the first that fits.
LOADER_ERRORS = (
    (r"GLIBC\w*_\d", "was built on a newer system than this one"),
    (r"undefined symbol: stompp_", "is of another version of this package"),
    (r"undefined symbol|symbol not found", "was built against another torch than {torch}"),
    (r"cannot open shared object file|library not loaded", "does not find a library that it was built against"),
    (r"file too short|invalid elf|wrong elf|mach-o|exec format", "is damaged"),
)

# The machines of ELF files (Linux) and of Mach-O files (macOS), as their headers number them.
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
MACH_O_MACHINES = {0x01000007: "x86_64", 0x0100000C: "arm64"}


def remedy(error: Exception, package: Path = PACKAGE) -> str:
    """What is wrong with the copy of this package in a directory, and the command that mends it, in full sentences."""
    library = package / LIBRARY
    if library.is_file():
        return f"{library} {_meaning(error, library)}. {_install(package, again=True)}"
    compiled = compiled_copy(package)
    if compiled is not None:
        return (
            f"The copy in {package} is imported, which is not compiled, and it hides the compiled one in {compiled}. "
            f"Start Python in another directory or take {package.parent} out of PYTHONPATH to use that one. "
            f"{_install(package)}"
        )
    return _install(package)


def _meaning(error: Exception, library: Path) -> str:
    made_for, here = platform_of(library), this_platform()
    if made_for not in ("", here):
        return f"is for {made_for}, and this is {here}"
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        return "needs glibc, which a system with musl (Alpine Linux) has not: take one with glibc, such as Debian"
    for pattern, meaning in LOADER_ERRORS:
        if re.search(pattern, str(error), re.IGNORECASE):
            return meaning.format(torch=torch.__version__)
    return "does not load"


def platform_of(library: Path) -> str:
    """The system and the processor that a library is for, "Linux on x86_64" say; empty if its header does not tell."""
    with library.open("rb") as file:
        header = file.read(20)
    if header[:4] == b"\x7fELF" and len(header) == 20:
        machine = ELF_MACHINES.get(struct.unpack_from("<H", header, 18)[0], "another processor")
        return f"Linux on {machine}"
    if header[:4] == b"\xcf\xfa\xed\xfe" and len(header) == 20:
        machine = MACH_O_MACHINES.get(struct.unpack_from("<I", header, 4)[0], "another processor")
        return f"macOS on {machine}"
    return ""


def this_platform() -> str:
    """The system and the processor of this Python, in the words of :func:`platform_of`."""
    return f"{platform.system().replace('Darwin', 'macOS')} on {platform.machine()}"


def two_copies(other: str) -> str:
    """What to do where the ops of another copy of this package, with this library, are in the process already."""
    return (
        f"The ops of stompp_kernels are registered in this process by another copy ({other}), and {PACKAGE} cannot "
        "register them again: import one copy, and remove the other with `pip uninstall stompp_kernels` or from "
        "PYTHONPATH."
    )


def compiled_copy(package: Path) -> Path | None:
    """Another copy of this package that has its compiled library, of those that are on sys.path or installed."""
    folders = (folder.resolve() for folder in (*_on_path(), *_installed()))
    return next((folder for folder in folders if folder != package and (folder / LIBRARY).is_file()), None)


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


def _install(package: Path, again: bool = False) -> str:
    tree = package.parent
    if (tree / "setup.py").is_file():  # not installed by it: what this copy needs is built in place
        return f"Build it {'again ' if again else ''}with `pip install --no-build-isolation -e .` in {tree}."
    return "Install it again with `pip install --force-reinstall --no-deps stompp_kernels`."
