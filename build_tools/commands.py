"""The commands that compile and link, without the files that they get."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from .flags import CXX_FLAGS, check_nvcc_flags, user_flags
from .tools import find_python_headers

# Words of $CXX that start a compiler and are none.
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")


def include_flags(torch_dir: Path) -> list[str]:
    # A system directory, so that warnings are about our own code only.
    return ["-Icsrc", "-isystem", str(torch_dir / "include")]


def prefix_map(torch_dir: Path) -> str:
    """torch's headers put their file names into error messages: not those of the build host."""
    return f"-ffile-prefix-map={torch_dir.parent}=."


def compile_command(compiler: list[str], torch_dir: Path) -> list[str]:
    return [*compiler, *CXX_FLAGS, prefix_map(torch_dir), *include_flags(torch_dir), *user_flags("CXXFLAGS")]


def numpy_compile_command(compiler: list[str]) -> list[str]:
    # The pybind11 that torch before 2.13 brings refuses torch's macro, and torch is not needed here.
    flags = [flag for flag in CXX_FLAGS if "TORCH" not in flag]
    includes = [word for path in find_python_headers() for word in ("-isystem", str(path))]
    return [*compiler, *flags, "-Icsrc", *includes, *user_flags("CXXFLAGS")]


def link_command(compiler: list[str], libraries: list[str]) -> list[str]:
    if sys.platform == "darwin":
        kind = ["-bundle", "-undefined", "dynamic_lookup"]
    else:
        kind = ["-shared", "-Wl,--as-needed"]
    # An -Ofast of a compiler's wrapper would link what makes the processor flush denormals; the last -O replaces it.
    return [*compiler, "-O3", *kind, "$in", *libraries, *user_flags("LDFLAGS")]


def torch_libraries(folder: str, *names: str) -> list[str]:
    # No rpath: `import torch` comes first, and the loader finds its libraries by their names.
    if sys.platform == "darwin":
        return [f"-L{folder}", *(f"-l{name}" for name in names)]
    # A linker takes libtorch, which stands for all others, and what is empty for unused.
    empty = bool(os.environ.get("STOMPP_TORCH_HEADERS"))
    kept = [f"-l{name}" for name in names if empty or name == "torch"]
    rest = [f"-l{name}" for name in names if f"-l{name}" not in kept]
    return [f"-L{folder}", "-Wl,--no-as-needed", *kept, "-Wl,--as-needed", *rest]


def to_host(flags: Iterable[str]) -> list[str]:
    """Flags of the C++ compiler among nvcc's, which takes a comma for the beginning of another one."""
    return ["-Xcompiler=" + flag.replace(",", "\\,") for flag in flags]


def nvcc_command(nvcc: str, compiler: list[str]) -> list[str]:
    check_nvcc_flags()
    if not os.environ.get("CXX", "").strip():
        return [nvcc]  # finds its own
    words = [word for word in compiler if os.path.basename(word) not in LAUNCHERS] or compiler
    return [nvcc, f"-ccbin={words[0]}", *to_host(words[1:])]


def compression_flags(version: tuple[int, ...]) -> list[str]:
    """The flags of this nvcc that make machine code small. A driver for CUDA 12 may not read what they make."""
    return ["--compress-mode=size"] if version >= (13,) else []


def cuda_compile_command(nvcc: list[str], torch_dir: Path, options: list[str]) -> list[str]:
    shared = [flag for flag in CXX_FLAGS if flag.startswith(("-std", "-O", "-D"))]
    host = [flag for flag in CXX_FLAGS if flag not in shared]
    return [
        *nvcc,
        *shared,
        *to_host([*host, prefix_map(torch_dir), *user_flags("CXXFLAGS")]),
        "--expt-relaxed-constexpr",
        # One file is compiled for as many architectures at once; ninja runs files side by side as well.
        f"--threads={min(4, os.cpu_count() or 1)}",
        *options,
        *include_flags(torch_dir),
        "$flags",
    ]


def cuda_link_command(compiler: list[str], torch_folder: str) -> list[str]:
    # libtorch stands for libtorch_cuda, which a torch for CPUs does not have.
    torch = torch_libraries(torch_folder, "torch", "torch_cpu", "c10")
    # A glibc before 2.34 has in these what the CUDA runtime calls. The runtime must neither be seen by others nor be
    # replaced by one that is loaded already; its local names would be a tenth of the wheel's file.
    glibc = ["-Wl,--no-as-needed", "-l:libpthread.so.0", "-l:libdl.so.2", "-l:librt.so.1", "-Wl,--as-needed"]
    hidden = ["-Wl,--exclude-libs,ALL", "-Wl,--discard-all"]
    return [*compiler, "-O3", "-shared", *hidden, "$in", *torch, *glibc, *user_flags("LDFLAGS")]
