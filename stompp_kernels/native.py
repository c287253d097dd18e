"""Finds the compiled libraries, says which implementation runs and why another does not.

Without them the package works on the plain-PyTorch reference path: right, and slow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from stompp_kernels import cpu_library, cuda_library, missing_library
from stompp_kernels.cpu_library import CpuLibrary
from stompp_kernels.torch_release import torch_problem


@dataclass(frozen=True)
class Implementation:
    """Describes one way to run ops.

    Attributes:
        name: for the CPU what :func:`use_implementation` and ``STOMPP_CPU`` take.
        description: the method in a few words.
        available: whether it can run here.
        active: whether it is the one that runs now.
        reason: why it is not available; empty when it is.
        device: of its ops, "cpu" or "cuda".

    Example:
        >>> [i.name for i in sk.implementations() if i.active and i.device == "cpu"] != []
        True
    """

    name: str
    description: str
    available: bool
    active: bool
    reason: str = ""
    device: str = "cpu"


CPP_LIBRARY = cpu_library.PATH
"""The ops and their CPU kernels, which this module loads and C++ programs may open: there is no Python in it."""


def _load() -> tuple[CpuLibrary | None, str]:
    """Returns the library and "", or None and the reason, of which a warning says more.

    Raises:
        ImportError: torch is too old, or another copy of this package has defined the ops in this process.
        ValueError: STOMPP_CPU names an implementation that cannot run.
    """
    problem = torch_problem()
    if problem:
        raise ImportError(problem)
    other = cpu_library.other_copy()
    if other is not None:
        raise ImportError(missing_library.two_copies(other))
    try:
        library = CpuLibrary(CPP_LIBRARY)
    except (OSError, AttributeError) as error:
        reason, remedy = f"the compiled library did not load ({error})", missing_library.remedy(error)
        forced = os.environ.get("STOMPP_CPU", "")
        if forced not in ("", "reference"):
            raise ValueError(f"STOMPP_CPU={forced!r} cannot run here: {reason}. {remedy}") from error
        warnings.warn(
            f"stompp_kernels runs on the slow reference path: {reason}. {remedy}", RuntimeWarning, stacklevel=3
        )
        return None, reason
    if library.active_implementation() is None:
        names = ", ".join(name for name, _, missing in library.implementations() if not missing)
        raise ValueError(f"STOMPP_CPU={os.environ['STOMPP_CPU']!r} cannot run here; allowed: {names}")
    return library, ""


library, missing_reason = _load()

# The library for GPUs, or None and the reason.
cuda, cuda_missing_reason = cuda_library.find()


def wants_triton() -> bool:
    """Whether to load the Triton kernels: torch is built for NVIDIA's or AMD's GPUs, or Triton is to interpret them."""
    built_for_gpus = torch.version.cuda is not None or torch.version.hip is not None
    wanted = built_for_gpus or os.environ.get("TRITON_INTERPRET") == "1"
    return wanted and importlib.util.find_spec("triton") is not None


def kernels_check(x: Any) -> bool:
    """Whether an op on ``x`` runs a compiled kernel, which checks its arguments before it touches memory.

    The same checks in Python cost as much again as a small call: they run where this is false, or to explain a refusal.
    """
    return library is not None and isinstance(x, torch.Tensor) and x.is_cpu


def product_kernels_check(x: Any) -> bool:
    """Answers the same for the binary products, which have compiled kernels on GPUs too."""
    # Repeats the other, which to call would take as long.
    return isinstance(x, torch.Tensor) and ((library is not None and x.is_cpu) or (cuda is not None and x.is_cuda))


def implementations() -> list[Implementation]:
    """Lists every implementation of the ops: the CPU's, best first, then those for GPUs.

    On each device ``reference``, plain PyTorch, runs what none of them covers. Under torch for AMD GPUs, whose devices
    torch calls "cuda" too, these are the binary products; the Triton kernels run there.

    Example:
        >>> "reference" in [implementation.name for implementation in sk.implementations()]
        True
    """
    return [*_cpu_implementations(), *_gpu_implementations()]


def _gpu_implementations() -> list[Implementation]:
    no_triton = cuda_library.no_gpu() or ("" if wants_triton() else "Triton is not installed")
    return [
        Implementation(name, description, not reason, not reason, reason, "cuda")
        for name, description, reason in (
            ("cuda", "bgemm and bconv2d on binary tensor cores", cuda_missing_reason),
            ("triton", "elementwise ops, packing and pooling of signs, floats with binary weights", no_triton),
        )
    ]


def _cpu_implementations() -> list[Implementation]:
    if library is None:
        return [Implementation("reference", "plain PyTorch", True, True, "")]
    active = library.active_implementation()
    found = [
        Implementation(name, description, not missing, name == active, missing)
        for name, description, missing in library.implementations()
    ]
    reference = Implementation(
        "reference", "plain PyTorch", False, False, "runs only where the compiled library is missing"
    )
    return [*found, reference]


def active_implementation() -> str:
    """Returns the name of the implementation that runs CPU ops now."""
    return "reference" if library is None else library.active_implementation() or ""


def multiplies_bfloat16() -> bool:
    """Whether the implementation that runs now has instructions for products of bfloat16."""
    return library is not None and library.multiplies_bfloat16()


def implementation_of(op: str, device: torch.device) -> str:
    """Returns the name of the implementation that runs an op, "bgemm" for example, on a device."""
    if device.type == "cpu":
        return active_implementation()
    if op.startswith("conv2d_float"):
        return "torch"
    active = {item.name for item in _gpu_implementations() if item.active} if device.type == "cuda" else set()
    triton = sys.modules.get("stompp_kernels.ops.triton")  # imported where it may run
    if triton is not None and op in triton.OPS:
        wanted = "triton"
    else:
        wanted = "cuda" if op in cuda_library.OPS else "reference"
    return wanted if wanted in active else "reference"


@contextlib.contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Forces an implementation of the CPU ops inside a ``with`` block, for the whole process (all threads).

    Weights that were packed for another implementation's layout still work, but are packed again at every call.

    Args:
        name: one of :func:`implementations` that is available, for the CPU.

    Raises:
        ValueError: the name is unknown or cannot run here.

    Example:
        >>> name = next(i.name for i in sk.implementations() if i.available and i.device == "cpu")
        >>> with sk.use_implementation(name):
        ...     [i.name for i in sk.implementations() if i.active and i.device == "cpu"] == [name]
        True
    """
    available = [implementation.name for implementation in _cpu_implementations() if implementation.available]
    if name not in available:
        raise ValueError(f"implementation {name!r} cannot run here; available: {', '.join(available)}")
    before = active_implementation()
    if library is not None:
        library.select_implementation(name)
    try:
        yield
    finally:
        if library is not None:
            library.select_implementation(before)
