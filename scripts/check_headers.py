"""Compiles the bindings and the C++ example against the headers of several releases of torch.

    python scripts/check_headers.py [--fetch] [VERSION ...]

The headers come out of the wheels for macOS, a tenth of those for Linux in size and equal in what is compiled here.
They are kept in build/headers, with CUDA's, so that neither nvcc nor a second torch needs to be installed. Nothing is
linked or written: this finds what a release does not declare yet or declares no more.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from build_tools.commands import compile_command
from build_tools.settings import ROOT
from build_tools.tools import find_compiler

CACHE = ROOT / "build" / "headers"

OLDEST = "2.10.0"
VERSIONS = (OLDEST, "2.11.0", "2.12.1", "2.13.0", "2.14.1")
# Any Python's wheels have the same headers.
MAC_WHEEL = ("--python-version", "3.11", "--platform", "macosx_11_0_arm64", "--platform", "macosx_14_0_arm64")
CUDA_PACKAGES = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
CUDA_WHEEL = ("--platform", "manylinux2014_x86_64")
TORCH_FILES = "torch/(include|share/cmake/Torch)/"
CUDA_FILES = "nvidia/cu13/include/"


class Unreachable(Exception):
    """The package index does not answer."""


@dataclass(frozen=True)
class Headers:
    """The headers of one release of torch, and those of CUDA.

    Attributes:
        torch: a directory with torch's ``include``, as in an installed torch.
        cuda: CUDA's include directory.
        standard: the C++ standard that torch's CMake files ask of programs, "17" or "20".
    """

    torch: Path
    cuda: Path
    standard: str


def fetch(version: str, cache: Path = CACHE) -> Headers:
    """The headers of a release, downloaded where the cache does not hold them.

    Raises:
        Unreachable: the package index does not answer.
        RuntimeError: pip failed otherwise, for example because there is no such release.
    """
    torch = unpacked(cache / f"torch-{version}", [f"torch=={version}"], MAC_WHEEL, TORCH_FILES)
    name = "cuda-" + CUDA_PACKAGES[0].split("==")[1]
    cuda = unpacked(cache / name, CUDA_PACKAGES, CUDA_WHEEL, CUDA_FILES)
    config = (torch / "torch/share/cmake/Torch/TorchConfig.cmake").read_text()
    return Headers(torch / "torch", cuda / CUDA_FILES, re.search(r"CXX_STANDARD (\d+)", config)[1])


def unpacked(folder: Path, packages: Sequence[str], wheel: Sequence[str], wanted: str) -> Path:
    """A folder with those files of the packages' wheels whose names begin as wanted."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it is complete when it gets its name.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        files = Path(scratch, folder.name)
        files.mkdir()
        for path in download(packages, wheel, Path(scratch, "wheels")):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(files, [name for name in archive.namelist() if re.match(wanted, name)])
        files.rename(folder)
    return folder


def download(packages: Sequence[str], wheel: Sequence[str], folder: Path) -> Iterator[Path]:
    print(f"fetching the headers of {', '.join(packages)}", flush=True)
    options = ["--quiet", "--retries", "1", "--no-deps", "--only-binary", ":all:", *wheel, "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if "connection broken by" in done.stderr and done.returncode != 0:  # pip's words for it
        raise Unreachable(f"the package index does not answer: {done.stderr.strip().splitlines()[0]}")
    if done.returncode != 0:
        raise RuntimeError(f"pip could not download {' '.join(packages)}: {done.stderr.strip()}")
    return folder.glob("*.whl")


def sources() -> list[str]:
    """Every file that includes a header of torch: the bindings and the example."""
    found = [*ROOT.glob("csrc/torch/**/*.cpp"), *ROOT.glob("examples/cpp/*.cpp")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def command(source: str, headers: Headers) -> list[str]:
    """The build's own command, without code generation."""
    build = compile_command(find_compiler(), headers.torch)
    if source.startswith("examples/"):  # C++ programs use torch's whole interface and its standard
        build = [word for word in build if not word.startswith("-DTORCH_TARGET_VERSION")]
        build.append(f"-std=c++{headers.standard}")
    return [*build, "-isystem", str(headers.cuda), "-fsyntax-only", source]


def compile_all(headers: Headers) -> dict[str, str]:
    """The sources that do not compile, and what the compiler says."""

    def compile_one(source: str) -> tuple[str, str]:
        done = subprocess.run(command(source, headers), cwd=ROOT, capture_output=True, text=True)
        return source, done.stderr if done.returncode != 0 else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {source: error for source, error in pool.map(compile_one, sources()) if error}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help=f"releases of torch (default: {' '.join(VERSIONS)})"
    )
    parser.add_argument(
        "--fetch", action="store_true", help=f"only download the headers (default: {OLDEST}, for the tests)"
    )
    arguments = parser.parse_args()
    failed = False
    for version in arguments.versions or ((OLDEST,) if arguments.fetch else VERSIONS):
        try:
            headers = fetch(version)
        except (Unreachable, RuntimeError) as error:
            sys.exit(f"error: {error}")
        if arguments.fetch:
            continue
        errors = compile_all(headers)
        for source, text in errors.items():
            print(f"{source}:\n{text}")
        failed |= bool(errors)
        print(f"torch {version}: {len(sources()) - len(errors)} of {len(sources())} files compile", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
