"""The compiled library, stompp_kernels/_C.so: loading it registers torch.ops.stompp and its kernels for the CPU.

It is a plain shared library. There is no Python in it: a C++ program that has torch's libraries loads it too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

PATH = Path(__file__).parent / "_C.so"


class CpuLibrary:
    """The C functions of csrc/torch/functions.cpp.

    Raises:
        OSError: the file is no library, or what it needs is missing.
        AttributeError: it is of another version of this package.
    """

    def __init__(self, path: Path) -> None:
        self._functions = functions = ctypes.CDLL(str(path))
        names = ("compiler", "active_implementation", "select_implementation")
        for name in (*names, "implementation_name", "implementation_description"):
            getattr(functions, f"stompp_{name}").restype = ctypes.c_char_p
        for name in ("name", "description", "supported"):
            getattr(functions, f"stompp_implementation_{name}").argtypes = [ctypes.c_int64]
        functions.stompp_implementation_count.restype = ctypes.c_int64
        for packed_bytes in (functions.stompp_packed_bytes, functions.stompp_packed_binary_weight_bytes):
            packed_bytes.restype = ctypes.c_int64
            packed_bytes.argtypes = [ctypes.c_int64] * 5
        self.compiler: str = functions.stompp_compiler().decode()

    def implementations(self) -> list[tuple[str, str, bool]]:
        """Name, description and whether it runs here, best first."""
        f = self._functions
        return [
            (
                f.stompp_implementation_name(index).decode(),
                f.stompp_implementation_description(index).decode(),
                bool(f.stompp_implementation_supported(index)),
            )
            for index in range(f.stompp_implementation_count())
        ]

    def active_implementation(self) -> str | None:
        """None where STOMPP_CPU names one that cannot run here."""
        name = self._functions.stompp_active_implementation()
        return None if name is None else name.decode()

    def select_implementation(self, name: str) -> None:
        """Raises:
        ValueError: it is unknown or cannot run here.
        """
        problem = self._functions.stompp_select_implementation(name.encode())
        if problem is not None:
            raise ValueError(problem.decode())

    def packed_bytes(self, O: int, I: int, kh: int, kw: int, groups: int) -> int:
        """Bytes of a weight packed for the active implementation.

        Raises:
            ValueError: no weight has this shape.
        """
        return _checked(self._functions.stompp_packed_bytes, O, I, kh, kw, groups)

    def packed_binary_weight_bytes(self, O: int, I: int, kh: int, kw: int, groups: int) -> int:
        """The same of a weight packed for float activations, which no implementation changes."""
        return _checked(self._functions.stompp_packed_binary_weight_bytes, O, I, kh, kw, groups)


def _checked(packed_bytes: Callable[..., int], O: int, I: int, kh: int, kw: int, groups: int) -> int:
    found = packed_bytes(*map(int, (O, I, kh, kw, groups)))
    if found < 0:
        raise ValueError(f"no packed weight has {O} outputs of {I} x {kh} x {kw} in {groups} groups")
    return found
