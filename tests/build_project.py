"""A small project with our setup.py beside a fake torch, a fake compiler and a fake nvcc."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Flags that take liberties with floats.
LOOSE = (
    *("-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-fassociative-math"),
    *("-freciprocal-math", "-fno-signed-zeros", "-ffp-contract=fast", "-mfpmath=387", "-fno-honor-nans"),
)


# Stands in for a compiler: notes its arguments and leaves the files that ninja expects, among them
# the list of the headers that were included.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> commands.log
while [ $# -gt 0 ]; do
    case "$1" in
        -o) : > "$2" ;;
        -MF) echo "object: csrc/core/base/bits.h" > "$2" ;;
    esac
    shift
done
"""


def make_project(tmp_path, monkeypatch):
    """A small project with our setup.py, beside a fake torch, and no build variables set."""
    folder = tmp_path / "a project"
    for name in ("csrc/core/base", "csrc/core/signs", "csrc/torch", "stompp_kernels", "site/torch"):
        (folder / name).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "build_tools", folder / "build_tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "stompp_kernels/__init__.py", "stompp_kernels/py.typed"):
        (folder / name).touch()
    for name in ("csrc/core/base/bits.h", "csrc/core/signs/pack.cpp", "csrc/torch/bindings.cpp"):
        (folder / name).touch()
    (folder / "fake-c++").write_text(FAKE_COMPILER)
    (folder / "fake-c++").chmod(0o755)
    fake_torch(folder, "__version__ = '2.10.0'")
    for name in (
        *("CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "STOMPP_BUILD_NATIVE", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"),
        *("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "STOMPP_CORE", "STOMPP_TORCH_HEADERS"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STOMPP_CUDA", "0")  # a real nvcc takes its time
    return folder


# Stands in for nvcc, of CUDA 13.0.
FAKE_NVCC = """#!/bin/sh
home=$(dirname "$(dirname "$0")")
case "$1" in
    --version) echo "Cuda compilation tools, release ${FAKE_RELEASE-13.0}, V0.0.1"; exit ;;
    --list-gpu-code) echo sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120; exit ;;
    --dryrun) echo '#$ LIBRARIES=  "-L/nonexistent/stubs" "-L'"$home"'/lib"' >&2; exit ;;
esac
"""


def make_cuda_home(project):
    """Sources for GPUs in the project, and a directory with the fake nvcc and its library."""
    for name in ("any.cu", "tile_sm75.cu", "tile_sm80.cu", "tile_sm90a.cu", "tile_sm100.cu"):
        (project / "csrc" / "cuda").mkdir(exist_ok=True)
        (project / "csrc" / "cuda" / name).touch()
    for name in ("torch/cuda/binding.cpp", "core/product/check_shapes.cpp"):
        (project / "csrc" / name).parent.mkdir()
        (project / "csrc" / name).touch()
    home = project / "cuda"
    for name in ("bin/nvcc", "lib/libcudart_static.a"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    (home / "lib/libcudart_static.a").write_text("!<arch>\n")
    (home / "bin/nvcc").write_text(FAKE_NVCC + FAKE_COMPILER.removeprefix("#!/bin/sh\n"))
    (home / "bin/nvcc").chmod(0o755)
    return home


def fake_torch(project, source):
    (project / "site" / "torch" / "__init__.py").write_text(source + "\n")


def run_setup(project, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(project / "site"), **variables}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
