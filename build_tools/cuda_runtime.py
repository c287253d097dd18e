"""The CUDA runtime that the kernels for GPUs are linked with, and how it fits an old glibc."""

import re
import subprocess
from pathlib import Path

from setuptools.errors import PlatformError

from .settings import GLIBC, WITHOUT_CUDA


def find_cuda_runtime(nvcc: str) -> str:
    """The static library, in one of the directories that nvcc links with."""
    shown = subprocess.run([nvcc, "--dryrun", "-shared", "-o", "none.so", "none.o"], capture_output=True, text=True)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", shown.stderr, re.MULTILINE)
    for folder in re.findall(r'"-L([^"]*)"', line[1] if line else ""):
        if (path := Path(folder, "libcudart_static.a")).is_file():
            return str(path.resolve())
    raise PlatformError(f"{nvcc} comes without libcudart_static.a, which the kernels are linked with. {WITHOUT_CUDA}")


def older_symbols(compiler: list[str]) -> dict[str, str]:
    """Symbols with a version after GLIBC, each with the last one before: {"dlopen": "dlopen@GLIBC_2.2.5"}.

    libcudart_static.a names none, so a linker takes the newest. A loader finds an older one in whichever of glibc's
    libraries it is.
    """
    libc = subprocess.run([*compiler, "-print-file-name=libc.so.6"], capture_output=True, text=True).stdout.strip()
    listed = subprocess.run(["nm", "-D", "--defined-only", libc], capture_output=True, text=True).stdout
    versions: dict[str, list[tuple[int, ...]]] = {}
    for name, number in re.findall(r" (\w+)@@?GLIBC_([\d.]+)$", listed, re.MULTILINE):
        versions.setdefault(name, []).append(tuple(map(int, number.split("."))))
    found = {}
    for name, numbers in versions.items():
        old = [number for number in numbers if number <= GLIBC]
        if old and max(numbers) > GLIBC:
            found[name] = f"{name}@GLIBC_{'.'.join(map(str, max(old)))}"
    return found
