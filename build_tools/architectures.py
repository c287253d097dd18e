"""The architectures of NVIDIA GPUs that a source is compiled for."""

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from setuptools.errors import PlatformError

from .settings import WITHOUT_CUDA

# 8.9 runs what is compiled for 8.6, and has nothing more that the kernels use.
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;9.0a;10.0;12.0+PTX"
OLDEST_ARCHITECTURE = 75


@dataclass(frozen=True)
class Architecture:
    """A GPU's architecture: 80, or 90a with what 9.0 alone has; PTX too, for GPUs that are yet to come."""

    number: int
    suffix: str = ""
    ptx: bool = False

    @property
    def name(self) -> str:
        return f"{self.number}{self.suffix}"

    def flags(self) -> list[str]:
        codes = [f"sm_{self.name}", *([f"compute_{self.name}"] if self.ptx else [])]
        return [f"-gencode=arch=compute_{self.name},code={code}" for code in codes]


def parse_architectures(text: str) -> list[Architecture]:
    """torch's syntax: "8.0;9.0a;12.0+PTX", also with spaces; oldest first. What is too old for b1 is left out."""
    found = {}
    for word in text.replace(";", " ").split():
        match = re.fullmatch(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise PlatformError(
                f"TORCH_CUDA_ARCH_LIST={text!r}: {word!r} is no architecture; write them as in "
                f'"{DEFAULT_ARCHITECTURES}". {WITHOUT_CUDA}'
            )
        number, suffix = int(match[1] + match[2]), match[3]
        before = found.get((number, suffix))
        found[number, suffix] = Architecture(number, suffix, bool(match[4]) or (before is not None and before.ptx))
    wanted = [found[key] for key in sorted(found) if key[0] >= OLDEST_ARCHITECTURE]
    if not wanted:
        raise PlatformError(f"TORCH_CUDA_ARCH_LIST={text!r}: name an architecture from 7.5 on. {WITHOUT_CUDA}")
    if len(wanted) < len(found):
        print(f"TORCH_CUDA_ARCH_LIST={text!r}: the kernels need 7.5; what is older is left out")
    return wanted


def requested_architectures(nvcc: str) -> list[Architecture]:
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    wanted = parse_architectures(text or DEFAULT_ARCHITECTURES)
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(map(int, re.findall(r"sm_(\d+)", listed)))
    unknown = [a.name for a in wanted if a.number not in known]
    if not text:  # a later nvcc may have dropped the oldest
        return [a for a in wanted if a.number in known]
    if unknown:
        raise PlatformError(f"TORCH_CUDA_ARCH_LIST={text!r}: {nvcc} does not know {', '.join(unknown)}. {WITHOUT_CUDA}")
    return wanted


def kernel_family(source: str) -> str:
    """ "80" of product_sm80.cu: the architecture that it is written for, "" for any."""
    match = re.search(r"_sm(\d+a?)\.cu$", source)
    return match[1] if match else ""


def architectures_of(source: str, wanted: list[Architecture], families: Iterable[str]) -> list[Architecture]:
    """Those of the wanted ones that a source is compiled for.

    A family is for what came from its architecture on to before the next family's; 90a for 9.0a alone, also where 9.0
    is wanted.
    """
    family = kernel_family(source)
    if not family:
        return wanted
    if family.endswith("a"):
        number = int(family[:-1])
        return [Architecture(number, "a")] if any(a.number == number for a in wanted) else []
    first = int(family)
    later = [int(name) for name in families if name.isdigit() and int(name) > first]
    return [a for a in wanted if first <= a.number < min(later, default=1000)]
