"""The compiled libraries and the sources of each."""

from setuptools import Extension
from setuptools.errors import PlatformError

from .settings import ROOT, native_enabled, numpy_enabled, switch
from .tools import find_nvcc

CPP_LIBRARY, CUDA_LIBRARY = "stompp_kernels.libstompp_kernels", "stompp_kernels._cuda"
NUMPY_MODULE = "stompp_kernels._core"
# What both libraries hold.
SHARED_SOURCES = ("csrc/core/product/check_shapes.cpp", "csrc/torch/old_systems.cpp")


def sources_in(*patterns: str) -> list[str]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def native_sources() -> list[str]:
    return sources_in("csrc/core/**/*.cpp", "csrc/torch/*.cpp")


def cuda_sources() -> list[str]:
    return sources_in("csrc/cuda/**/*.cu", "csrc/torch/cuda/*.cpp", *SHARED_SOURCES)


def extensions() -> list[Extension]:
    found = []
    if native_enabled():
        found.append(Extension(CPP_LIBRARY, native_sources()))
        if find_nvcc() is not None:
            found.append(Extension(CUDA_LIBRARY, cuda_sources()))
    elif switch("STOMPP_CUDA", "") == "1":
        raise PlatformError("STOMPP_BUILD_NATIVE=0 and STOMPP_CUDA=1 contradict each other.")
    if numpy_enabled():
        found.append(Extension(NUMPY_MODULE, sources_in("csrc/core/**/*.cpp", "csrc/numpy/*.cpp")))
    return found
