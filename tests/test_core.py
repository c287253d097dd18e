"""The torch-free core's own test program (tests/core): plain, sanitized, and emulated on 64-bit Arm."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compiling import compile_program, compiler, core_object

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # compiles the core, one to three times
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'core'}"]
TESTS = sorted(ROOT.glob("tests/core/*.cpp"))
# Sanitized code takes the compiler more than twice as long at -O2.
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(command, flags, folder):
    program = folder / "core_tests"
    compile_program(command, [*FLAGS, *flags], [*sorted(ROOT.glob("csrc/core/**/*.cpp")), *TESTS], program)
    return program


def passed(command, environment=None):
    """How many cases passed, by implementation; fails where one did not."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), done.stdout
    found = re.findall(r"^(\w+) \w+: ok$", done.stdout, re.MULTILINE)
    return {name: found.count(name) for name in set(found)}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("core") / "core_tests"
    compile_program(compiler(), [*FLAGS, "-O2"], TESTS, target, link=[core_object()])
    return target


def assert_every_implementation_ran_every_case(counts):
    assert set(counts) >= {"scalar"}
    assert len(set(counts.values())) == 1, counts


def test_the_core_passes_its_own_tests(program):
    assert_every_implementation_ran_every_case(passed([program]))


def test_the_core_passes_its_own_tests_sanitized(tmp_path):
    assert_every_implementation_ran_every_case(passed([build(compiler(), SANITIZED, tmp_path)]))


def test_the_program_fails_where_nothing_ran(program):
    assert subprocess.run([program], env={"STOMPP_CPU": "bogus"}, capture_output=True).returncode == 1


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="no cross-compiler or emulator for 64-bit Arm: `make setup-arm` installs them",
)
def test_the_core_passes_its_own_tests_on_64_bit_arm(tmp_path):
    program = build(["aarch64-linux-gnu-g++"], ["-O2", "-static"], tmp_path)
    assert set(passed(["qemu-aarch64", program])) == {"neon", "scalar", "amx_emulated", "amx_emulated_small"}
