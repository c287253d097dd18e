"""The flags of the C++ compiler: ours, and those of the user that leave the kernels' results as they are."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from setuptools.errors import PlatformError

from .settings import MIN_TORCH, ROOT, WITHOUT_CUDA

# The oldest stable ABI to run under: major in the top byte, minor in the next.
TORCH_TARGET_VERSION = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # A fused multiply-add rounds once: float epilogues would differ between instruction sets.
    "-ffp-contract=off",
    "-DNDEBUG",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]
# Kernels pick their instruction set at run time, through target attributes on their functions.
CPU_FEATURE_FLAG = re.compile(
    r"--?m(arch|cpu|fpu|no-(avx|sse|fma)|avx|sse|ssse|fma|f16c|bmi|lzcnt|popcnt|amx|abm|adx|aes|apx|evex|gfni|movbe|"
    r"pclmul|sha|tbm|vaes|vpclmul|xop|3dnow)"
)
# Arithmetic that is not IEEE 754's: NaN packs as either sign, results differ between instruction sets, and a library
# that is linked with some of these sets the processor to flush denormals in the whole process.
FLOAT_FLAG = re.compile(
    r"--?(Ofast|ffast-math|funsafe-math|ffinite-math|fassociative-math|freciprocal-math|fno-signed-zeros|fno-honor-|"
    r"fapprox-func|ffp-contract=(?!off)|ffp-(model|eval)|fp-model|fdenormal-fp-math|fsingle-precision-constant|"
    r"mfpmath|mdaz-ftz|mrecip)"
)
# The same of nvcc's own flags.
NVCC_FLOAT_FLAG = re.compile(r"--?(use_fast_math|ftz[= ](true|1)|prec-(div|sqrt)[= ](false|0))")
# gcc and clang hand the next word to a part of theirs.
FORWARDS_NEXT = re.compile(r"-X\w+$|-mllvm$")


def user_flags(variable: str) -> list[str]:
    """The flags of an environment variable that leave the kernels' results and instruction sets as they are."""
    return kept_flags(variable, shlex.split(os.environ.get(variable, "")))


def kept_flags(variable: str, words: list[str]) -> list[str]:
    """Those of a variable's flags that do not change what the kernels compute, or on which processor.

    People and distributions set flags for all that they build. The scalar kernels would get instructions that the
    machine they run on may lack, and NaN or -0.0 would pack as any bit. csrc/core/base/bits.h refuses what comes in
    another way, by a wrapper or a configuration file of the compiler.
    """
    kept: list[str] = []
    left_out = []
    for word in expand_response_files(variable, words):
        if not (CPU_FEATURE_FLAG.match(word) or FLOAT_FLAG.match(word)):
            kept.append(word)
            continue
        forward = [kept.pop()] if kept and FORWARDS_NEXT.match(kept[-1]) else []
        left_out += [*forward, word]
    if left_out:
        print(
            f"{variable}: {' '.join(left_out)} left out; kernels are dispatched at run time, and their arithmetic is "
            "that of IEEE 754"
        )
    return kept


def expand_response_files(variable: str, words: list[str]) -> Iterator[str]:
    """The words, and in the place of @file those that are in the file."""
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        try:
            text = Path(ROOT, word[1:]).read_text()
        except OSError as error:
            raise PlatformError(f"{variable} names the file {word!r}, which cannot be read ({error}).") from None
        yield from expand_response_files(variable, shlex.split(text))


def check_nvcc_flags() -> None:
    """Refuses what nvcc itself reads from the environment where it changes results."""
    for variable in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        text = os.environ.get(variable, "")
        found = [match[0] for match in NVCC_FLOAT_FLAG.finditer(text)]
        # The host compiler's come as in -Xcompiler=-ffast-math,-mavx2.
        words = re.split(r"[\s,]+|(?<=-Xcompiler)=|(?<=-compiler-options)=", text)
        found += [word for word in words if CPU_FEATURE_FLAG.match(word) or FLOAT_FLAG.match(word)]
        if found:
            raise PlatformError(
                f"{variable} holds {' '.join(found)}, which nvcc reads by itself: kernels would flush denormals, "
                f"lose NaN or need this machine's processor. Unset {variable} for this build. {WITHOUT_CUDA}"
            )
