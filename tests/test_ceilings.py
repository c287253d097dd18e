"""What measures the ceilings measures something: on every implementation, on 64-bit Arm under emulation too."""

import os
import platform
import re
import shutil
import subprocess

import pytest
from helpers import IMPLEMENTATIONS

from benchmarks import ceilings
from benchmarks.compiled import FLAGS, ROOT, compile_program

ARM = ["aarch64-linux-gnu-g++"]
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="mixes of x86-64")
on_arm = pytest.mark.skipif(
    not (shutil.which(ARM[0]) and shutil.which("qemu-aarch64")),
    reason="no cross-compiler or emulator for 64-bit Arm: `make setup-arm` installs them",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program("ceilings", tmp_path_factory.mktemp("ceilings"), core=False)


def check(rows, threads):
    operations = [row for row in rows if "bytes" not in row]
    memory = [row for row in rows if "bytes" in row]
    assert [row["name"] for row in operations] == ["binary", "signed sum", "fp32"]
    sizes = (16 << 10, 64 << 10)
    assert [(row["name"], row["bytes"]) for row in memory] == [(n, s) for s in sizes for n in ("read", "copy")]
    assert {row["threads"] for row in rows} == {threads}
    rates = [row["per_second"] for row in operations] + [row["bytes_per_second"] for row in memory]
    assert all(0 < rate < float("inf") for rate in rates)


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "reference"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_implementation_has_ceilings(program, implementation, threads):
    check(ceilings.measure([program], implementation, threads, 0.002, 64 << 10), threads)


@pytest.mark.slow
@on_arm
def test_64_bit_arm_has_ceilings(tmp_path):
    program = compile_program("ceilings", tmp_path, core=False, compiler=[*ARM, "-static"])
    for implementation in ("neon", "scalar"):
        check(ceilings.measure(["qemu-aarch64", program], implementation, 2, 0.002, 64 << 10), 2)


def test_an_implementation_without_ceilings_is_refused(program):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        ceilings.measure([program], "bogus", 1)
    assert refused.value.returncode == 2


# What a mix must hold so many times: a compiler that saw through it would take most of them out of the loop.
X86_MIXES = {
    "portable::binary": {"xorq": 8, "popcntq": 8, "addq": 8},
    "portable::signed_sum": {"pxor|xorps": 8, "addps": 8},
    "portable::fp32": {"mulps": 8, "addps": 8},
    "avx2::binary": {"vpshufb": 12, "vpaddb": 16, "vpsrlw": 4},
    "avx2::signed_sum": {"vpermps": 12, "vaddps": 12},
    "avx2::fp32": {"vfmadd...ps": 12},
    "avx512::binary": {"vpxor[dq]": 16, "vpopcntq": 16, "vpaddq": 16},
    "avx512::signed_sum": {"vpermps": 16, "vaddps": 16},
    "avx512::fp32": {"vfmadd...ps": 16},
    "amx::binary": {"tdpbssd": 4},
}
ARM_MIXES = {
    "portable::binary": {"cnt": 8},
    "portable::signed_sum": {"eor": 8, "fadd": 8},
    "neon::binary": {"eor": 16, "cnt": 16, "add": 16},
    "neon::fp32": {"fmla": 16},
}


def assembly(compiler):
    """Instructions of the functions of the compiled program, by their mangled names."""
    source = ROOT / "benchmarks" / "ceilings.cpp"
    command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", "-S", source, "-o", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"^(_ZN8ceilings[^:\s]+):[^\n]*\n(.*?)\.cfi_endproc", text, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"^\s+(\w+)\s", body, re.MULTILINE) for name, body in functions}


def check_mixes(functions, mixes):
    for name, instructions in mixes.items():
        mangled = "".join(f"{len(part)}{part}" for part in name.split("::"))
        (found,) = (body for key, body in functions.items() if key.startswith(f"_ZN8ceilings{mangled}E"))
        for pattern, count in instructions.items():
            assert sum(bool(re.fullmatch(pattern, word)) for word in found) >= count, (name, pattern)


@on_x86
def test_the_compiler_leaves_the_mixes_in_their_loops():
    check_mixes(assembly(os.environ.get("CXX", "c++").split()), X86_MIXES)


@on_arm
def test_the_cross_compiler_leaves_the_mixes_in_their_loops():
    check_mixes(assembly(ARM), ARM_MIXES)
