"""The CUDA kernels without a GPU: run in an emulation on the CPU (tests/cuda), and read as machine code."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import compile_program

from benchmarks import gpu_rates, gpu_tiles

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-clobbered", "-ffp-contract=off"]
SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FAMILIES = ("SM75", "SM80", "SM90A", "SM100")

# The multiplication that each family's kernels must become, by architecture; building the library compiles for all.
INSTRUCTIONS = {
    ("product_sm75", "75"): "BMMA.88128.XOR.POPC",
    ("product_sm80", "80"): "BMMA.168256.AND.POPC",
    ("product_sm80", "90a"): "BMMA.168256.AND.POPC",
    ("product_sm90a", "90a"): "BGMMA.64x256x256.AND.POPC",
    ("product_sm100", "100"): "IMMA.16832.U8.U8",
}


def flags_for(sources=ROOT / "csrc"):
    includes = [f"-I{folder}" for folder in (sources, ROOT / "csrc", ROOT / "tests" / "core", ROOT / "tests" / "cuda")]
    return [*FLAGS, "-DSTOMPP_EMULATE_CUDA", *(f"-DSTOMPP_{family}" for family in FAMILIES), *includes]


def compiler():
    return os.environ.get("CXX", "c++").split()


SOURCES = [ROOT / "tests" / "cuda" / "test_cuda.cpp", *sorted(ROOT.glob("csrc/cuda/**/*.cu"))]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The torch-free core as one object file, not sanitized: test_core.py runs it so."""
    target = tmp_path_factory.mktemp("core") / "core.o"
    compile_program(compiler(), flags_for(), sorted(ROOT.glob("csrc/core/**/*.cpp")), target, link=["-r", "-nostdlib"])
    return target


@pytest.mark.slow
def test_the_emulated_kernels_equal_the_scalar_implementation(core, tmp_path):
    program = tmp_path / "cuda_tests"
    compile_program(compiler(), [*flags_for(), *SANITIZERS], SOURCES, program, link=[core])
    done = run(program)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), done.stdout


# What the emulation must notice in the tile kernel: (where it runs, what is taken out, what stands in its place).
FAULTS = {
    "no barrier before a stage is read": ("sm80", "synchronize();  // this stage", "// this stage"),
    "a copy is not waited for": ("sm80", "wait_for_copies<kAhead - 1>();", "wait_for_copies<kAhead>();"),
    "a stage is overwritten too early": ("sm80", "T::kStages - 2 : T::kStages - 1", "T::kStages - 2 : T::kStages"),
    "rows are swizzled in one place only": ("sm80", "swizzle(row, chunk) * kChunkWords;\n", "chunk * kChunkWords;\n"),
    "products are not waited for": ("sm90a", "wait_for_products<1>();", ""),
    "wgmma still reads what is overwritten": ("sm90a", "T::kStages - 2", "T::kStages - 1"),
    "weights in bulk are not waited for": ("sm90a", "wait_barrier(barrier(step), step / T::kStages & 1);", ""),
    "weights of another phase are waited for": ("sm90a", "T::kStages & 1);", "T::kStages + 1 & 1);"),
    "bytes that never come are waited for": ("sm90a", "panels * kBytes", "kTilePanels * kBytes"),
    "more bytes come than are expected": ("sm90a", "panels * kBytes", "kBytes"),
}


@pytest.fixture(scope="module")
def whole(core, tmp_path_factory):
    """The test program as one object file."""
    target = tmp_path_factory.mktemp("whole") / "whole.o"
    compile_program(compiler(), flags_for(), SOURCES, target, link=[core, "-r", "-nostdlib"])
    return target


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_notices(fault, whole, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", sources / "cuda")
    kernel = sources / "cuda" / "product" / "tiles.cuh"
    architecture, right, wrong = FAULTS[fault]
    text = kernel.read_text()
    assert text.count(right) == 1, right
    kernel.write_text(text.replace(right, wrong))
    changed = [sources / "cuda" / "product" / f"product_{architecture}.cu"]
    # The first of two definitions counts.
    link = [whole, "-Wl,--allow-multiple-definition"]
    compile_program(compiler(), flags_for(sources), changed, tmp_path / "cuda_tests", link=link)
    assert run(tmp_path / "cuda_tests", "stop at the first failure").returncode != 0


@pytest.fixture(scope="module")
def tools():
    """nvcc, and cuobjdump with its disassembler."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here: the CUDA kernels cannot be compiled")
    triton = pytest.importorskip("triton")
    return nvcc, Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_kernels(nvcc, source, architectures, target):
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        "--expt-relaxed-constexpr",
        f"-I{ROOT / 'csrc'}",
        "-Xptxas",
        "-v",
        "--threads",
        "2",
    ]
    done = subprocess.run([*command, *codes, "-c", source, "-o", target], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in INSTRUCTIONS))
def test_products_become_their_architectures_instructions(name, tools, tmp_path):
    nvcc, disassembler = tools
    architectures = [architecture for file, architecture in INSTRUCTIONS if file == name]
    target = tmp_path / "kernels.o"
    report = compile_kernels(nvcc, ROOT / "csrc" / "cuda" / "product" / f"{name}.cu", architectures, target)
    # ptxas may give up a few bytes, outside the loop over K, for one more block on a multiprocessor.
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill stores", report)]
    assert spills
    assert max(spills) <= 16, report
    for architecture in architectures:
        # cuobjdump runs the disassembler beside it.
        environment = {**os.environ, "PATH": f"{disassembler}:{os.environ['PATH']}"}
        command = [disassembler / "cuobjdump", "-sass", "-arch", f"sm_{architecture}", target]
        sass = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        found = set(re.findall(r"\b(?:[BI]G?MMA)\.[\w.]+", sass))
        assert found == {INSTRUCTIONS[name, architecture]}, architecture
        if name not in ("product_sm75",):
            assert re.search(r"LDGSTS\.E\.BYPASS\.128", sass), "copies of 16 bytes past the registers"
        kernels = sass.split("Function : ")[1:]
        assert kernels
        # Copies in bulk, and their barriers' arrivals and waits.
        for bulk in ("UBLKCP", "SYNCS.ARRIVE.TRANS64", "SYNCS.PHASECHK.TRANS64.TRYWAIT"):
            assert all((bulk in kernel) == (name == "product_sm90a") for kernel in kernels), bulk


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu_rates", "gpu_tiles"])
def test_the_benchmark_programs_compile(name, tools, tmp_path):
    source = ROOT / "benchmarks" / f"{name}.cu"
    command = [*gpu_rates.build_command(tools[0], (9, 0), [source], tmp_path / "program.o"), "-c"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tile_rows_are_read_from_the_programs_lines():
    row = {"M": 1, "N": 2, "K": 3, "kernel": "wide wgmma", "ms": 0.5, "chosen": True}
    assert gpu_tiles.rows_of(["1 2 3 wide wgmma,0.5,1", "4 5 6 few,0.25,0"])[0] == row
