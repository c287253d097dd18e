"""The compiled library runs on any x86-64 processor: newer instructions are in the kernels that are chosen for them."""

import os
import re
import shutil
import subprocess

import pytest
from processes import run_python

from stompp_kernels import native

pytestmark = pytest.mark.skipif(native.library is None, reason="there is no compiled library")

# Beyond SSE2: what is encoded by VEX or EVEX (all names in v but verr and verw), BMI, SSE3 to SSE4.2, bit counts, AMX.
NEWER = re.compile(
    r"v(?!err|erw)[a-z]|andn$|bextr|bls[ir]|blsmsk|bzhi|pdep|pext$|rorx|sarx|shlx|shrx|mulx|popcnt|[lt]zcnt|pshufb|"
    r"palignr|ptest|round[sp]|p(min|max)(s[bd]|u[wd])|pblend|blendv?p|pmul(ld|dq)|pcmpeqq|crc32|movbe|tdp|tile"
)
KERNELS = re.compile(r"stompp::(avx2|avx512|amx)\w*::")
ONLY_AVX512 = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b")


def instructions(path):
    """(function, mnemonic, operands) of each instruction."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function = ""
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = head[1]
        elif found := re.match(r"\s+[0-9a-f]+:\s+(\w+)(.*)", line):
            yield function, found[1], found[2]


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not on PATH")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads instructions of x86-64")
def test_only_kernels_for_newer_processors_have_newer_instructions():
    kernels, misplaced = set(), set()
    for function, name, operands in instructions(native.library.path):
        kernel = KERNELS.search(function)
        if kernel is None and NEWER.match(name):
            misplaced.add((function, name))
        elif kernel is not None and NEWER.match(name):
            kernels.add(kernel[1])
            if kernel[1] == "avx2" and ONLY_AVX512.search(operands):
                misplaced.add((function, name))
    assert kernels >= {"avx2", "avx512"}
    assert not misplaced


def test_loading_the_library_leaves_denormals_alone():
    """A library that is linked with -ffast-math sets the processor to flush them, in the thread that loads it."""
    result = run_python("import stompp_kernels, torch; print(5e-324 * 1.0 > 0, bool(torch.tensor([1e-45]) * 1 > 0))")
    assert result.stdout.split() == ["True", "True"], result.stderr
