"""Says what is wrong with the torch of this Python, before anything imports it in earnest. Needs no torch itself."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

OLDEST = (2, 10)
"""The first release whose stable ABI the libraries are built for."""

NO_TORCH = (
    "stompp_kernels needs torch >= 2.10, and there is none: run `pip install torch`. Without torch only "
    "stompp_kernels.core works."
)


def torch_is_there() -> bool:
    """Whether this Python finds a torch, of whatever release."""
    return importlib.util.find_spec("torch") is not None


def check_torch() -> None:
    """Checks that the installed torch is new enough.

    Raises:
        ImportError: it is not, or there is none.
    """
    if not torch_is_there():
        raise ImportError(NO_TORCH)
    version = _version()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and tuple(map(int, numbers.groups())) < OLDEST:
        raise ImportError(
            f"stompp_kernels needs torch >= {OLDEST[0]}.{OLDEST[1]}, and torch {version} is installed: run "
            "`pip install --upgrade torch`."
        )


def _version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:  # a build that was never installed
        import torch

        return torch.__version__
