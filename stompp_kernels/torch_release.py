"""Says what is wrong with the torch of this Python. Needs no torch itself."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

OLDEST = (2, 10)
"""The first release whose stable ABI the libraries are built for."""

PACKAGES = (2, 12)
"""The first release whose AOTInductor hands ops the types that a network names (PyTorch's pull request 173562)."""


def torch_problem() -> str:
    """Says why this package cannot run with the torch that is installed, and what to do; empty if it can."""
    needed = f"stompp_kernels needs torch >= {OLDEST[0]}.{OLDEST[1]}"
    if importlib.util.find_spec("torch") is None:
        return f"{needed}, and there is none: run `pip install torch` (stompp_kernels.core works without)"
    if torch_is_before(OLDEST):
        return f"{needed}, and torch {torch_version()} is installed: run `pip install --upgrade torch`"
    return ""


def torch_is_before(release: tuple[int, int]) -> bool:
    """Whether the installed torch is of an earlier release; False for a version that is no number."""
    numbers = re.match(r"(\d+)\.(\d+)", torch_version())
    return numbers is not None and tuple(map(int, numbers.groups())) < release


def torch_version() -> str:
    """Returns the version of the installed torch."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:  # a build that was never installed
        import torch

        return str(torch.__version__)
