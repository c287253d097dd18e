"""Tells in ten lines what runs here, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator

import torch

from stompp_kernels import cuda_library, missing_library, native
from stompp_kernels.bench.machine import processor

# Optional parts: the extra of pyproject.toml, one of its modules, and what needs it.
EXTRAS = (
    ("train", "rich", "`stompp train` and `stompp demo`"),
    ("report", "matplotlib", "`stompp report`"),
    ("transformers", "transformers", "BERT"),
)


def lines(version: str) -> list[str]:
    """Describes this installation, at most ten lines.

    Args:
        version: of the package.
    """
    rows = [
        ("package", f"stompp_kernels {version} in {missing_library.PACKAGE}"),
        ("torch", f"{torch.__version__} with {_threads()}, Python {platform.python_version()}"),
        ("processor", f"{processor()}, {missing_library.this_platform()}"),
        ("CPU kernels", _cpu_kernels()),
        ("GPU", cuda_library.no_gpu() or torch.cuda.get_device_name()),
        ("GPU kernels", _gpu_kernels()),
    ]
    missing = list(_missing())
    rows += [("missing", text) for text in missing] or [("missing", "nothing")]
    return [f"{label:<12} {text}" for label, text in rows]


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''} of {os.cpu_count()} cores"


def _cpu_kernels() -> str:
    found = [item for item in native.implementations() if item.device == "cpu"]
    active = next(item for item in found if item.active)
    others = [item.name for item in found if item.available and not item.active]
    absent = [f"{item.name}: {item.reason}" for item in found if not item.available and item.name != "reference"]
    text = f"{active.name} is active, {active.description}"
    if others:
        text += f"; also {', '.join(others)}"
    return "; ".join([text, *absent])


def _gpu_kernels() -> str:
    found = [item for item in native.implementations() if item.device == "cuda"]
    return "; ".join(f"{item.name} {'active' if item.active else f'off, {item.reason}'}" for item in found)


def _missing() -> Iterator[str]:
    """What is missing, each in a sentence with the command that adds it; at most four."""
    if native.library is None:
        yield missing_library.remedy(OSError(native.missing_reason))
    package = missing_library.PACKAGE
    hidden = missing_library.compiled_copy(package)
    if native.library is not None and hidden is not None:
        yield f"{package} hides another copy in {hidden}: remove one with `pip uninstall stompp_kernels`"
    if torch.version.cuda is not None and not cuda_library.no_gpu() and native.cuda is None:
        yield f"the products on this GPU: {native.cuda_missing_reason}"
    absent = [(extra, use) for extra, module, use in EXTRAS if importlib.util.find_spec(module) is None]
    if absent:
        names = ",".join(extra for extra, _ in absent)
        yield f"packages for {'; for '.join(use for _, use in absent)}: run `pip install 'stompp_kernels[{names}]'`"
