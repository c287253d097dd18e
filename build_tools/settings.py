"""What is built, as environment variables ask for it, and what it is built for."""

import os
from pathlib import Path

from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parent.parent
MIN_TORCH = (2, 10)
# The newest glibc that a library may need, as the manylinux_2_28 wheels promise.
GLIBC = (2, 28)
WITHOUT_NATIVE = "STOMPP_BUILD_NATIVE=0 installs stompp_kernels without its compiled kernels."
WITHOUT_CUDA = "STOMPP_CUDA=0 leaves out the kernels for NVIDIA GPUs."


def switch(name: str, default: str) -> str:
    value = os.environ.get(name, default)
    if value not in ("0", "1", default):
        raise PlatformError(f"{name}={value!r}: only 0 and 1 are allowed.")
    return value


def native_enabled() -> bool:
    return switch("STOMPP_BUILD_NATIVE", "1") == "1"


def numpy_enabled() -> bool:
    return switch("STOMPP_CORE", "0") == "1"
