"""The compiled library stompp_kernels/libstompp_kernels.so: the ops and their CPU kernels, without Python.

Loading it registers torch.ops.stompp, in a C++ program as well. What involves no tensor is asked of its C functions.
"""

from __future__ import annotations

import ctypes
import os
import re
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t
from pathlib import Path

import torch  # before the library, which finds torch's symbols in it

PATH = Path(__file__).with_name("libstompp_kernels.so")

_AN_OP = "stompp::pack_signs"


class CpuLibrary:
    """The C functions of csrc/torch/c_functions.cpp.

    Raises:
        OSError: the file is no library, or what it needs is missing.
        AttributeError: it is of another version of this package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        functions = ctypes.CDLL(str(path))
        self._implementation = functions.stompp_implementation
        self._implementation.argtypes = [c_size_t, *[POINTER(c_char_p)] * 3]
        self._active = functions.stompp_active_implementation
        self._active.restype = c_char_p
        self._select = functions.stompp_select_implementation
        self._select.restype, self._select.argtypes = c_char_p, [c_char_p]
        self._packed_bytes = functions.stompp_packed_bytes
        self._packed_bytes.restype = c_char_p
        self._packed_bytes.argtypes = [*[c_int64] * 5, c_int, POINTER(c_int64)]
        self._multiplies_bfloat16 = functions.stompp_multiplies_bfloat16
        functions.stompp_compiler.restype = c_char_p
        self.compiler: str = functions.stompp_compiler().decode()

    def implementations(self) -> list[tuple[str, str, str]]:
        """Returns the name and the description of each, and why it cannot run here, best first."""
        name, description, missing = c_char_p(), c_char_p(), c_char_p()
        found: list[tuple[str, str, str]] = []
        while self._implementation(len(found), byref(name), byref(description), byref(missing)):
            found.append((_text(name), _text(description), _text(missing)))
        return found

    def active_implementation(self) -> str | None:
        """Returns None where STOMPP_CPU names none that can run."""
        name = self._active()
        return None if name is None else name.decode()

    def select_implementation(self, name: str) -> None:
        """Forces an implementation.

        Raises:
            ValueError: none of this name can run here.
        """
        _raise(self._select(name.encode()))

    def multiplies_bfloat16(self) -> bool:
        """Whether the active implementation multiplies bfloat16 by instructions of its own."""
        return bool(self._multiplies_bfloat16())

    def packed_bytes(self, O: int, I: int, kh: int, kw: int, groups: int, for_floats: bool = False) -> int:
        """Returns the bytes of a weight as the active implementation packs it for binary inputs, or for floats.

        Raises:
            ValueError: no weight has this shape.
        """
        found = c_int64()
        _raise(self._packed_bytes(*map(int, (O, I, kh, kw, groups)), for_floats, byref(found)))
        return found.value


def _text(pointer: c_char_p) -> str:
    return "" if pointer.value is None else pointer.value.decode()


def _raise(error: bytes | None) -> None:
    if error is not None:
        raise ValueError(error.decode())


def other_copy(path: Path = PATH) -> str | None:
    """Names the library of another copy of this package that defines the ops in this process; None if there is none."""
    if not torch._C._dispatch_has_kernel(_AN_OP) or is_loaded(path):
        return None
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # Linux alone has it
        maps = ""
    found = re.search(rf"/.*/(?:_C\..*|{re.escape(PATH.stem)})\.so$", maps, re.MULTILINE)
    return found[0] if found else "one without a compiled library"


def is_loaded(path: Path) -> bool:
    """Whether a library is in this process."""
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True
