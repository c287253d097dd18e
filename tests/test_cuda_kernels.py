"""The CUDA kernels without a GPU: run in an emulation on the CPU (tests/cuda), and read as machine code."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import sass
from compiling import compile_program, compiler, core_object

from benchmarks import gpu_programs, gpu_tiles

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


SOURCES = [ROOT / "tests" / "cuda" / "test_cuda.cpp", *sorted(ROOT.glob("csrc/cuda/**/*.cu"))]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=3600)


@pytest.fixture(scope="module")
def core():
    """The torch-free core as one object file, not sanitized: test_core.py runs it so."""
    return core_object()


@pytest.mark.slow
def test_the_emulated_kernels_equal_the_scalar_implementation(core, tmp_path):
    program = tmp_path / "cuda_tests"
    compile_program(compiler(), [*flags_for(), *SANITIZERS], SOURCES, program, link=[core])
    done = run(program)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), done.stdout


# What the emulation must notice: (the file of csrc/cuda/product, where it runs, what is taken out, what stands in its
# place).
FAULTS = {
    "no barrier before a stage is read": ("tiles", "sm80", "synchronize();  // this stage", "// this stage"),
    "a copy is not waited for": ("tiles", "sm80", "wait_for_copies<kAhead - 1>();", "wait_for_copies<kAhead>();"),
    "a stage is overwritten too early": (
        "tiles",
        "sm80",
        "T::kStages - 2 : T::kStages - 1",
        "T::kStages - 2 : T::kStages",
    ),
    "rows are swizzled in one place only": ("rows", "sm80", "swizzle(row, index % 4)", "index % 4"),
    "products are not waited for": ("multiply", "sm90a", "wait_for_products<1>();", ""),
    "wgmma still reads what is overwritten": ("tiles", "sm90a", "T::kStages - 2", "T::kStages - 1"),
    "weights in bulk are not waited for": ("tiles", "sm90a", "wait_barrier(barrier(step), step / T::kStages & 1);", ""),
    "rows are not published to the tensor cores": ("tiles", "sm90a", "publish_to_tensor_cores();", ";"),
    "registers are not fenced before products": ("multiply", "sm90a", "begin_products();", ""),
    "a descriptor begins between groups of rows": (
        "multiply",
        "sm90a",
        "describe_tile(rows + half * 8)",
        "describe_tile(rows + half * 4)",
    ),
    "a descriptor's address has too many bits": (
        "multiply",
        "sm90a",
        "describe_tile(weights + half * 8)",
        "describe_tile(weights + half * 8) | 1 << 14",
    ),
    "weights of another phase are waited for": ("tiles", "sm90a", "T::kStages & 1);", "T::kStages + 1 & 1);"),
    "bytes that never come are waited for": (
        "tiles",
        "sm90a",
        "expect_bytes(barrier(step), kBytes);",
        "expect_bytes(barrier(step), 2 * kBytes);",
    ),
    "more bytes come than are expected": (
        "tiles",
        "sm90a",
        "expect_bytes(barrier(step), kBytes);",
        "expect_bytes(barrier(step), kBytes / 2);",
    ),
    "a barrier waits for more warps than copy": (
        "tiles",
        "sm90a",
        "kStages, tile_panels()",
        "kStages, tile_panels() + 1",
    ),
    "a barrier waits for fewer warps than copy": ("tiles", "sm90a", "kStages, tile_panels()", "kStages, 1"),
    "barriers are used before they are made": (
        "tiles",
        "sm90a",
        "synchronize();  // before another",
        "// before another",
    ),
    "the other block's barriers are used before they are made": (
        "tiles",
        "sm90a",
        "arrive_in_cluster();\n        wait_for_cluster();  // before another",
        "synchronize();  // before another",
    ),
    "a block does not tell the other what it has read": (
        "tiles",
        "sm90a",
        "arrive_at_block(read_barrier(step - 1), 1 - cluster_rank());",
        ";",
    ),
    "a block tells itself what it has read": ("tiles", "sm90a", "1 - cluster_rank());", "cluster_rank());"),
    "a block tells the other too early that it has read": (
        "tiles",
        "sm90a",
        "if (kShares && step > 0) arrive_at_block(read_barrier(step - 1)",
        "if (kShares) arrive_at_block(read_barrier(step)",
    ),
    "the other block still reads what is overwritten": (
        "tiles",
        "sm90a",
        "if (step >= T::kStages) wait_barrier(",
        "if (step < 0) wait_barrier(",
    ),
    "the other block's reads of another phase are waited for": (
        "tiles",
        "sm90a",
        "(step / T::kStages - 1) & 1",
        "step / T::kStages & 1",
    ),
    "one warp of the other block is waited for": (
        "tiles",
        "sm90a",
        "T::kStages, T::kThreads / 32);",
        "T::kStages, 1);",
    ),
    "a block expects its own half of the weights alone": (
        "tiles",
        "sm90a",
        "expect_bytes(barrier(step), kBytes);",
        "expect_bytes(barrier(step), panel % 2 == cluster_rank() ? kBytes : 0);",
    ),
    "weights go to one block of the cluster": ("tiles", "sm90a", "copy_bulk<Mma::kBlocks>", "copy_bulk<1>"),
    "both blocks bring the same panels": ("tiles", "sm90a", "% Mma::kBlocks != cluster_rank()", "% Mma::kBlocks != 0"),
    "a block ends before the other has done with it": (
        "tiles",
        "sm90a",
        "wait_for_cluster();  // the other",
        ";  // the other",
    ),
    "resident weights are not waited for": ("resident", "sm90a", "wait_barrier(barriers + step, 0);", ""),
    "weights of another step are waited for": (
        "resident",
        "sm90a",
        "wait_barrier(barriers + step, 0);",
        "wait_barrier(barriers, 0);",
    ),
    "a step's weights go to another": (
        "resident",
        "sm90a",
        "kPanelBlockWords, kBytes, barriers + step);",
        "kPanelBlockWords, kBytes, barriers);",
    ),
    "resident weights come in more pieces than expected": (
        "resident",
        "sm90a",
        "p.rows.k_blocks, tile_panels());",
        "p.rows.k_blocks, 1);",
    ),
    "barriers of resident weights are used before they are made": (
        "resident",
        "sm90a",
        "synchronize();  // before another warp's",
        "// before another warp's",
    ),
    "the table is read before it is there": (
        "resident",
        "sm90a",
        "synchronize();  // before another warp reads",
        "// before another warp reads",
    ),
    "a warp group's rows are not published": ("resident", "sm90a", "publish_to_tensor_cores();", ""),
    "a warp group does not meet before it reads rows": (
        "resident",
        "sm90a",
        "synchronize_warp_group();  // these",
        "// these",
    ),
    "a warp group does not meet before it finishes a tile": (
        "resident",
        "sm90a",
        "synchronize_warp_group();  // ones",
        "// ones",
    ),
    "both warp groups meet at one barrier": (
        "resident",
        "sm90a",
        "synchronize_some(1 + warp_group,",
        "synchronize_some(1,",
    ),
    "both warp groups have one ring": ("resident", "sm90a", "kOutputWords + warp_group * kRingWords", "kOutputWords"),
    "both warp groups have one epilogue": (
        "resident",
        "sm90a",
        "kTableWords<T> + warp_group * kOwnWords",
        "kTableWords<T>",
    ),
    "both warp groups count into one place": ("resident", "sm90a", "kOwnWords) + warp_group * T::kRows", "kOwnWords)"),
    "the next tile's rows overwrite what is still read": (
        "resident",
        "sm90a",
        "    wait_for_all_products(c);\n    store_ones(counts);",
        "    store_ones(counts);",
    ),
    "rows of a ring are overwritten too early": ("resident", "sm90a", "T::kStages - 2;", "T::kStages - 1;"),
    "the ones of a row lack chunks": ("resident", "sm90a", "counts[i] += shuffle_xor(counts[i], 2);", ""),
}


@pytest.fixture(scope="module")
def whole(core, tmp_path_factory):
    """The test program as one object file."""
    target = tmp_path_factory.mktemp("whole") / "whole.o"
    compile_program(compiler(), flags_for(), SOURCES, target, link=[core, "-r", "-nostdlib"])
    return target


# One of each mechanism; all of them where STOMPP_FAULTS is set, as `make test-faults` does.
TRIED = (
    *("no barrier before a stage is read", "a copy is not waited for", "products are not waited for"),
    *("weights in bulk are not waited for", "rows are not published to the tensor cores"),
    *("registers are not fenced before products", "a descriptor begins between groups of rows"),
    *("the other block still reads what is overwritten", "a block does not tell the other what it has read"),
    *("a warp group does not meet before it reads rows", "the next tile's rows overwrite what is still read"),
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS if os.environ.get("STOMPP_FAULTS") else TRIED)
def test_the_emulation_notices(fault, whole, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", sources / "cuda")
    file, architecture, right, wrong = FAULTS[fault]
    kernel = sources / "cuda" / "product" / f"{file}.cuh"
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


def compile_kernels(nvcc, source, architectures, target, *flags):
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
    done = subprocess.run(
        [*command, *codes, *flags, "-c", source, "-o", target], capture_output=True, text=True, timeout=3600
    )
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
        kernels = sass.disassemble(disassembler, target, architecture)
        assert kernels
        for kernel in kernels:
            names = {instruction.name for instruction in kernel.code}
            # A kernel compiled for an older architecture than its file is for would be empty, and trap.
            assert {n for n in names if sass.MULTIPLICATION.match(n)} == {INSTRUCTIONS[name, architecture]}, kernel.name
            assert "BPT.TRAP" not in names, kernel.name
            if name != "product_sm75":
                assert any(n.startswith("LDGSTS.E.BYPASS") and n.endswith(".128") for n in names), kernel.name
            # Copies in bulk, and their barriers' arrivals and waits.
            for bulk in ("UBLKCP", "SYNCS.ARRIVE.TRANS64", "SYNCS.PHASECHK.TRANS64.TRYWAIT"):
                assert any(n.startswith(bulk) for n in names) == (name == "product_sm90a"), bulk
        for name_of_kernel, registers in re.findall(
            r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL
        ):
            threads = threads_of(name_of_kernel)
            assert -(-int(registers) // 8) * 8 * threads <= 65536, "a multiprocessor has registers for a block"


TILE = re.compile(r"4TileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E")


def threads_of(kernel):
    """The threads of a block, from a kernel's mangled name; a resident kernel has two tiles at once."""
    _, _, warps_m, warps_n, warps_k, _ = map(int, TILE.search(kernel).groups())
    return 32 * warps_m * warps_n * warps_k * (2 if "resident_kernel" in kernel else 1)


# A family's widest kernel with thresholds alone: its architecture, and the most that a warp may issue: in the main loop
# for 16 x 8 products of 256 bits, and behind it for a row of a word of 32 outputs.
FAMILIES_CODE = {
    "Xor": ("75", 8.0, 8.0),
    "And": ("80", 4.0, 8.0),
    "WarpGroup": ("90a", 3.0, 8.0),
    "WarpGroupPair": ("90a", 3.0, 8.0),
    "Resident": ("90a", 2.0, 8.0),
    "Bytes": ("120", 40.0, 8.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES_CODE)
def test_kernels_issue_few_instructions_besides_their_multiplications(family, tools, tmp_path):
    nvcc, disassembler = tools
    architecture, most_in_loop, most_behind = FAMILIES_CODE[family]
    target = tmp_path / "kernel.o"
    source = ROOT / "tests" / "cuda" / "threshold_kernels.cu"
    compile_kernels(nvcc, source, [architecture], target, f"-DSTOMPP_KERNEL={family}")
    [kernel] = sass.disassemble(disassembler, target, architecture)
    rows, outputs, warps_m, warps_n, _, _ = map(int, TILE.search(kernel.name).groups())
    warp_rows, warp_outputs = rows // warps_m, outputs // warps_n
    # A step of the loop is a block of 512 bits, whatever ptxas unrolls.
    loop, behind = kernel.main_loop(), kernel.after_main_loop()
    assert sass.share_of_moves(loop) < 0.1
    assert len(loop) / (warp_rows // 16 * (warp_outputs // 8) * 2) <= most_in_loop
    assert len(behind) / (warp_rows * warp_outputs // 32) <= most_behind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu_rates", "gpu_tiles", "test_cuda"])
def test_the_programs_for_a_gpu_compile(name, tools, tmp_path):
    folder = "tests/cuda" if name == "test_cuda" else "benchmarks"
    [source] = (ROOT / folder).glob(f"{name}.c*")
    command = gpu_programs.compile_command(tools[0], (9, 0), source, tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tile_rows_are_read_from_the_programs_lines():
    row = {"M": 1, "N": 2, "K": 3, "kernel": "wide wgmma", "ms": 0.5, "chosen": True}
    assert next(gpu_tiles.rows_of(["1 2 3 wide wgmma,0.5,1", "4 5 6 few,0.25,0"])) == row


def test_loops_are_found_in_machine_code():
    text = """
\t\tFunction : kernel
        /*0000*/                   MOV R1, R2 ;                /* 0x0 */
        /*0010*/              @!P0 IMAD.MOV.U32 R3, RZ, RZ, R1 ;
        /*0020*/                   BMMA.168256.AND.POPC R4, R8.ROW, R12.COL, R4 ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   STG.E [R2], R4 ;
        /*0050*/                   EXIT ;
        /*0060*/                   BRA 0x60;
        /*0070*/                   NOP;
"""
    [kernel] = sass.parse(text)
    assert [i.name for i in kernel.main_loop()] == ["IMAD.MOV.U32", "BMMA.168256.AND.POPC", "BRA"]
    assert [i.name for i in kernel.after_main_loop()] == ["STG.E", "EXIT"]
    assert sass.share_of_moves(kernel.main_loop()) == 1 / 3
    assert sass.multiplications(kernel.main_loop()) == 1
