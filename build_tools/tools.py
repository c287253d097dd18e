"""Finds what the build runs and reads: torch, compilers, ninja, the headers of Python."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.version import InvalidVersion, Version
from setuptools.errors import PlatformError

from .flags import kept_flags
from .settings import MIN_TORCH, WITHOUT_CUDA, WITHOUT_NATIVE, switch

# The first nvcc that knows all of DEFAULT_ARCHITECTURES.
MIN_NVCC = (12, 8)


def find_torch() -> Path:
    """The directory of the torch to compile against, which must offer the stable ABI."""
    named = os.environ.get("STOMPP_TORCH_HEADERS", "")
    if named:
        if not Path(named, "include/torch/csrc/stable/library.h").is_file():
            raise PlatformError(
                f"STOMPP_TORCH_HEADERS={named!r} has no include/torch/csrc/stable/library.h: name the directory "
                "`torch` of an unpacked wheel of torch >= 2.10."
            )
        return Path(named).resolve()
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others
        raise PlatformError(
            f"stompp_kernels compiles against the torch that is installed, but `import torch` "
            f"failed in {sys.executable} ({type(error).__name__}: {error}). Install torch >= "
            f"{MIN_TORCH[0]}.{MIN_TORCH[1]} first, then build with `pip install "
            "--no-build-isolation .`: without that option pip builds in an isolated environment, "
            f"which cannot see your torch. {WITHOUT_NATIVE}"
        ) from None
    try:
        # `release` lets through vendor and nightly builds such as 2.10.0a0+git.
        new_enough = Version(str(torch.__version__)).release >= MIN_TORCH
    except InvalidVersion:
        new_enough = False
    if not new_enough:
        raise PlatformError(
            f"stompp_kernels needs torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]} (libtorch stable ABI), "
            f"but {sys.executable} has torch {torch.__version__}. Upgrade torch, then build with "
            f"`pip install --no-build-isolation .`. {WITHOUT_NATIVE}"
        )
    return Path(torch.__file__).resolve().parent


def find_compiler() -> list[str]:
    """The C++ compiler as a command: $CXX (it may carry a launcher, as in "ccache g++"), or c++."""
    if os.environ.get("CXX", "").strip():
        candidates = [kept_flags("CXX", shlex.split(os.environ["CXX"]))]
    else:
        candidates = [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    looked_for = ", ".join(command[0] for command in candidates)
    raise PlatformError(
        f"stompp_kernels needs a C++17 compiler, and none was found (looked for: {looked_for}). "
        f"Install gcc or clang, or set CXX to the compiler to use. {WITHOUT_NATIVE}"
    )


def find_nvcc() -> str | None:
    """nvcc where _cuda is to be built, else None."""
    wanted = switch("STOMPP_CUDA", "")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME", "")
    nvcc = shutil.which(os.path.join(home, "bin", "nvcc")) if home else None
    nvcc = nvcc or shutil.which("nvcc")
    if nvcc is None:
        problem = f"nvcc was found neither in CUDA_HOME={home!r} nor on PATH"
    else:
        version = nvcc_version(nvcc)
        if version >= MIN_NVCC:
            return nvcc
        needed, found = (".".join(map(str, v)) for v in (MIN_NVCC, version))
        problem = f"CUDA >= {needed} is needed, and {nvcc} is of {found}"
    if wanted == "1":
        raise PlatformError(f"STOMPP_CUDA=1 needs CUDA's compiler, but {problem}. {WITHOUT_CUDA}")
    if nvcc is not None:
        print(f"stompp_kernels/_cuda left out: {problem}")
    return None


def nvcc_version(nvcc: str) -> tuple[int, ...]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0, 0)


def find_ninja() -> str:
    on_path = shutil.which("ninja")
    if on_path:
        return on_path
    # The interpreter of a virtual environment may run without the environment's bin on PATH.
    try:
        distribution = metadata.distribution("ninja")
    except metadata.PackageNotFoundError:
        files = []
    else:
        files = distribution.files or []
    for file in files:
        if file.name == "ninja" and os.access(file.locate(), os.X_OK):
            return str(file.locate().resolve())
    raise PlatformError(
        "stompp_kernels is built with ninja, which was not found on PATH nor among the Python "
        f"packages. Run `pip install ninja`. {WITHOUT_NATIVE}"
    )


def find_python_headers() -> list[Path]:
    """The directories of Python's headers and of pybind11's: the installed ones, or those that come with torch."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise PlatformError(
            f"STOMPP_CORE=1 needs the headers of Python {sysconfig.get_python_version()}, and {include / 'Python.h'} "
            "does not exist. Install the package that has them (python3-dev on Debian and Ubuntu, python3-devel on "
            "Fedora)."
        )
    for name, below in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else spec.submodule_search_locations or []
        for found in (Path(folder, below) for folder in folders):
            if (found / "pybind11" / "numpy.h").is_file():
                return [include, found]
    raise PlatformError("STOMPP_CORE=1 needs pybind11, alone or as torch brings it. Run `pip install pybind11`.")
