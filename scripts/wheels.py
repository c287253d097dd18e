"""Builds the wheels and the source distribution, and checks what is in them.

    python scripts/wheels.py [--output dist] [MACHINE ...]

On Linux there is a wheel for this machine and, where Debian's cross compiler is, for 64-bit Arm. They are compiled
against the headers of the oldest torch, which need not be installed, and tagged manylinux_2_28; on macOS there is one
for this machine. The kernels for NVIDIA GPUs are in the x86-64 wheel where nvcc is, and ask for a driver of nvcc's own
major release of CUDA or later: CUDA 12.8 makes a wheel for more drivers than 13 does.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import check_headers

sys.path.append(str(Path(__file__).resolve().parent.parent))

from build_tools.settings import GLIBC, ROOT
from build_tools.tools import MIN_NVCC, find_nvcc, nvcc_version

MACHINES = ("x86_64", "aarch64")
CROSS_COMPILER = "aarch64-linux-gnu-g++"
MAX_WHEEL, MAX_SDIST = 3_000_000, 1_000_000

# What a wheel may need: newest symbol versions of manylinux_2_28 (auditwheel's policy), and torch's libraries.
NEWEST = {"GLIBC": GLIBC, "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
NEEDED = re.compile(
    r"lib(torch|torch_cpu|c10|stdc\+\+|gcc_s|c|m|pthread|dl|rt)\.so[.\d]*|ld-linux-(x86-64|aarch64)\.so.*"
)


def output_of(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def problems_of_library(path):
    """What keeps an ELF library from loading under any Python and any glibc from 2.28 on; one line for each."""
    found = []
    symbols = output_of("readelf", "--dyn-syms", "--wide", path)
    undefined = re.findall(r"\sUND (\w\S*)", symbols)
    for name in undefined:
        version = re.fullmatch(r"(\w+)@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", name)
        if version is not None and tuple(map(int, version[3].split("."))) > NEWEST[version[2]]:
            found.append(f"{version[1]} needs {version[2]} {version[3]}")
    found += [f"{name} is Python's" for name in undefined if re.match(r"_?Py[A-Z_]", name)]
    dynamic = output_of("readelf", "--dynamic", "--wide", path)
    found += [f"it needs {name}" for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not NEEDED.fullmatch(name)]
    found += [f"it has {kind}" for kind in ("RPATH", "RUNPATH", "TEXTREL") if f"({kind})" in dynamic]
    return found


def problems_of_wheel(path, libraries):
    """What is wrong with a wheel that must hold these libraries and no others."""
    found = []
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if ".so" in name or name.endswith((".dylib", ".a"))]
        expected = [f"stompp_kernels/{library}" for library in libraries]
        if sorted(names) != sorted(expected):
            found.append(f"it holds {', '.join(names) or 'no library'}; expected {', '.join(expected)}")
        if "py3-none-" not in path.name:
            found.append(f"{path.name} is not for any Python")
        for name in names if "linux" in path.name else ():
            found += [f"{name}: {problem}" for problem in problems_of_library(archive.extract(name, folder))]
    if path.stat().st_size > MAX_WHEEL:
        found.append(f"it has {path.stat().st_size:,} bytes, more than {MAX_WHEEL:,}")
    return found


def build_wheel(machine, output):
    """Builds the wheel for a machine; its path and the libraries that it must hold."""
    environment, options = dict(os.environ), []
    libraries = ["libstompp_kernels.so"]
    if sys.platform == "linux":
        environment["STOMPP_TORCH_HEADERS"] = str(check_headers.fetch(check_headers.OLDEST).torch)
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"  # as in any cross build of Python's
        options = ["--plat-name", f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"]
    if machine != platform.machine():
        environment.update(CXX=CROSS_COMPILER, STOMPP_CUDA="0")
    elif find_nvcc() is not None:
        libraries.append("_cuda.so")
    with tempfile.TemporaryDirectory() as folder:
        # A build directory of its own: setuptools copies what an earlier build left in one.
        command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", f"{folder}/build"]
        command += ["bdist_wheel", *options, "--bdist-dir", f"{folder}/bdist", "--dist-dir", f"{folder}/dist"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        [built] = Path(folder, "dist").glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(built, output / built.name)), libraries


def drivers(nvcc):
    """Says which drivers the kernels for GPUs run under."""
    major, minor = nvcc_version(nvcc)
    oldest = "" if major == MIN_NVCC[0] else f"; CUDA {MIN_NVCC[0]}.{MIN_NVCC[1]} would make them for older drivers too"
    return f"kernels for GPUs by CUDA {major}.{minor}, for drivers of CUDA {major} and later{oldest}"


def build_sdist(output):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder], cwd=ROOT, check=True)
        [built] = Path(folder).glob("*.tar.gz")
        return Path(shutil.move(built, output / built.name))


def show_audit(wheel):
    """auditwheel's own answer, whose policies are the definition."""
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    print(done.stdout.strip() or done.stderr.strip(), flush=True)


def machines():
    here = platform.machine()
    if sys.platform != "linux":
        return [here]
    return [
        machine for machine in MACHINES if machine == here or (machine == "aarch64" and shutil.which(CROSS_COMPILER))
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "machines", nargs="*", metavar="MACHINE", help="x86_64 or aarch64 (default: all that can be built)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder to write to (default: dist)")
    arguments = parser.parse_args()
    wrong = []
    for machine in arguments.machines or machines():
        wheel, libraries = build_wheel(machine, arguments.output)
        wrong += [f"{wheel.name}: {problem}" for problem in problems_of_wheel(wheel, libraries)]
        print(f"{wheel}: {wheel.stat().st_size:,} bytes, {' and '.join(libraries)}", flush=True)
        if "_cuda.so" in libraries:
            print(drivers(find_nvcc()))
        if sys.platform == "linux":
            show_audit(wheel)
    sdist = build_sdist(arguments.output)
    print(f"{sdist}: {sdist.stat().st_size:,} bytes", flush=True)
    if sdist.stat().st_size > MAX_SDIST:
        wrong.append(f"{sdist.name} has more than {MAX_SDIST:,} bytes")
    if wrong:
        sys.exit("error: " + "\n".join(wrong))


if __name__ == "__main__":
    main()
