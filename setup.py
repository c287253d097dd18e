"""Compiles stompp_kernels/libstompp_kernels.so and, where nvcc is, _cuda.so; the metadata is in pyproject.toml.

The first holds the torch-free core and the operators (libtorch stable ABI), the second the kernels for NVIDIA GPUs with
a CUDA runtime of its own; it builds against a torch for CPUs too. There is no Python in either: one build serves every
Python, and every torch from 2.10 on. Ninja runs the compilers directly: the flags are exactly those written here, and
a second build compiles only what changed, also under `pip install -e`, whose temporary directories would defeat that.

With STOMPP_CORE=1 it compiles the extension module _core as well, which binds the core to NumPy arrays by pybind11 and
needs no torch.

Environment: CXX, CXXFLAGS, LDFLAGS, MAX_JOBS as usual, flags that name a processor or loosen arithmetic (-march=native,
-ffast-math) being left out; CFLAGS, CPPFLAGS and ARCHFLAGS are not read. STOMPP_BUILD_NATIVE=0 leaves both libraries
out, STOMPP_CUDA=0 leaves _cuda out and STOMPP_CUDA=1 insists on it; CUDA_HOME says where nvcc is, TORCH_CUDA_ARCH_LIST
("8.0;9.0a;12.0+PTX") what _cuda is compiled for. STOMPP_TORCH_HEADERS names a directory with torch's "include" to
compile against in the place of an installed torch, for another platform say.

On Linux the libraries need nothing of a glibc beyond 2.28, whatever the building machine has:
csrc/torch/old_systems.cpp and build_tools/cuda_runtime.py see to it.
"""

import sys
from pathlib import Path

import setuptools

try:
    # Recent releases of setuptools bring both along.
    import setuptools.command.bdist_wheel
    from packaging.version import Version
except ModuleNotFoundError:
    raise SystemExit(
        "error: stompp_kernels is built with setuptools >= 77.0.3, packaging and ninja. Run "
        "`pip install -U setuptools packaging ninja`."
    ) from None

# A build backend runs this file with neither its folder nor the working directory on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from setuptools.errors import PlatformError

from build_tools.build_ext import BuildNative
from build_tools.extensions import extensions
from build_tools.wheel import DistInfo, Wheel

MIN_SETUPTOOLS = Version("77.0.3")  # the first release that reads pyproject's `license = "..."`


def main() -> None:
    if Version(setuptools.__version__) < MIN_SETUPTOOLS:
        raise SystemExit(
            f"error: stompp_kernels is built with setuptools >= {MIN_SETUPTOOLS}, and "
            f"{sys.executable} has {setuptools.__version__}. Run `pip install -U setuptools`."
        )
    try:
        libraries = extensions()
    except PlatformError as error:
        raise SystemExit(f"error: {error}") from None
    setuptools.setup(
        ext_modules=libraries,
        cmdclass={"bdist_wheel": Wheel, "build_ext": BuildNative, "dist_info": DistInfo},
    )


if __name__ == "__main__":
    main()
