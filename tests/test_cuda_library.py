"""The library for NVIDIA GPUs without one: what is in it, the reasons not to use it, and which ops it takes over.

It is compiled once for one architecture, beside a copy of the package. In processes of their own, torch is told that it
has a GPU, so that everything but the kernels' launches happens as it does there.
"""

import importlib.util
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_python

from stompp_kernels import cuda_library, native
from stompp_kernels.ops.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

ONLY_CUDA = """
import setup
from build_tools.extensions import CUDA_LIBRARY, Extension, cuda_sources
setup.extensions = lambda: [Extension(CUDA_LIBRARY, cuda_sources())]
setup.main()
"""

# torch on a machine with a GPU of the given capability and a driver for the given CUDA, until the package is imported.
PRETEND = """
import ctypes, sys, warnings
import torch
warnings.simplefilter("error")
capability, driver = int(sys.argv[1]), int(sys.argv[2])
load, count = ctypes.CDLL, torch.cuda.device_count
def load_with_driver(path, *arguments, **keywords):
    if "libnvidia-ml" in str(path):
        raise OSError("no such library")
    library = load(path, *arguments, **keywords)
    if str(path).endswith("_cuda.so"):
        library.stompp_cuda_driver_version = lambda: driver
        library.stompp_cuda_finds_torch = lambda: 1
    return library
ctypes.CDLL = load_with_driver
torch.version.cuda, torch.cuda.device_count = "13.0", lambda: 1
torch.cuda.get_device_capability = lambda index: divmod(capability, 10)
import stompp_kernels as sk
from stompp_kernels import native, ops
torch.version.cuda, torch.cuda.device_count, ctypes.CDLL = None, count, load
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the package with a library for 8.0 alone."""
    folder = tmp_path_factory.mktemp("cuda")
    unwanted = shutil.ignore_patterns("__pycache__", "_cuda.so")
    for name in ("build_tools", "csrc", "stompp_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    variables = {"STOMPP_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0", "CXXFLAGS": "-march=native -g1"}
    result = subprocess.run(
        [sys.executable, "-c", ONLY_CUDA, "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    return folder


@pytest.fixture
def library(project):
    return cuda_library.CudaLibrary(project / "stompp_kernels" / "_cuda.so")


def run(project, code, *arguments):
    done = run_python(code, *arguments, folder=project, PYTHONPATH=os.pathsep.join([str(project), str(ROOT / "tests")]))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@needs_nvcc
def test_the_library_needs_torch_and_nothing_of_cuda_or_python(project):
    file = project / "stompp_kernels" / "_cuda.so"
    dynamic = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[([^\]]+?)\.so", dynamic))
    assert {"libtorch", "libtorch_cpu"} <= needed
    system = {"libstdc++", "libgcc_s", "libc", "libm", "libpthread", "libdl", "librt", "ld-linux-x86-64"}
    assert needed <= {"libtorch", "libtorch_cpu", "libc10"} | system
    assert not re.search("RPATH|RUNPATH", dynamic)
    symbols = subprocess.run(["nm", "-D", file], capture_output=True, text=True, check=True).stdout.splitlines()
    undefined = {line.split()[-1] for line in symbols if line.split()[-2] in "Uw"}
    assert not [name for name in undefined if re.match("cu[A-Z]|cuda|Py|_Py", name)]
    assert "aoti_torch_get_current_cuda_stream" in undefined
    functions = {line.split()[-1] for line in symbols if line.split()[-2] == "T"}
    assert functions == {
        *(f"stompp_cuda_{name}" for name in ("architectures", "code_for", "finds_torch", "packed_bytes", "register")),
        *(f"stompp_cuda_{name}_version" for name in ("runtime", "driver")),
    }
    assert str(Path(torch.__file__).parent.parent).encode() not in file.read_bytes()


@pytest.mark.slow
@needs_nvcc
def test_the_host_code_is_for_any_processor(project):
    [ninja_file] = project.glob("build/native/*/build.ninja")
    text = ninja_file.read_text()
    commands = "\n".join(line for line in text.splitlines() if line.startswith("  command"))
    assert "-g1" in commands
    assert not re.search(r"[ =]-m(arch|cpu|avx|sse|fma|bmi|popcnt|tune)", commands)
    assert re.findall(r": nvcc (\S+_sm\w+\.cu)", text) == ["csrc/cuda/product/product_sm80.cu"]


@pytest.mark.slow
@needs_nvcc
def test_what_a_library_for_one_architecture_runs_on(library):
    assert library.architectures == ["80"]
    capabilities = (75, 80, 86, 87, 89, 90, 100, 120)
    # 8.7 is a system on a chip, which runs no machine code of other GPUs.
    assert [library.code_for(c) for c in capabilities] == [0, 80, 80, 0, 80, 0, 0, 0]
    assert library.runtime_version >= 12080


def packed_bytes(O, I, kh, kw, groups):
    """The sizes that csrc/cuda/weight_layout.h describes."""
    taps, outputs = kh * kw, O // groups
    if groups > 1 and outputs == I and I in (1, 2, 4, 8):
        return 4 * math.ceil(O / 32) * I * taps
    padded = groups * math.ceil(outputs / 64) * 64
    blocks = math.ceil(taps * math.ceil(I / 32) / 16)
    return 4 * padded * (kh + 1) * (kw + 1) + padded * blocks * 64


@pytest.mark.slow
@needs_nvcc
def test_the_size_of_packed_weights(library):
    rng = random.Random(0)
    shapes = [(1, 1, 1, 1, 1), (8192, 8192, 1, 1, 1), (512, 512, 3, 3, 1), (64, 1, 3, 3, 64), (12, 2, 5, 1, 6)]
    for _ in range(300):
        groups = rng.choice([1, 1, 2, 3, 8])
        I, kh, kw = rng.randint(1, 600), rng.randint(1, 7), rng.randint(1, 7)
        shapes.append((groups * rng.randint(1, 300), rng.choice([I, 1, 2, 4, 8]), kh, kw, groups))
    for shape in shapes:
        assert library.packed_bytes(*shape) == packed_bytes(*shape), shape
    for shape in [(0, 1, 1, 1, 1), (3, 1, 1, 1, 2), (1, 1 << 30, 1, 1, 1)]:
        with pytest.raises(ValueError, match="no packed weight has"):
            library.packed_bytes(*shape)


def pretend_gpu(monkeypatch, count=1, capability=80):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(cuda_library, "_capabilities", lambda: [capability])


def test_reasons_without_a_library(monkeypatch, tmp_path):
    file = tmp_path / "_cuda.so"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_library.find(file) == (None, "this torch is built without CUDA")
    pretend_gpu(monkeypatch, count=0)
    assert cuda_library.find(file) == (None, "torch sees no NVIDIA GPU")
    pretend_gpu(monkeypatch)
    found, reason = cuda_library.find(file)
    assert found is None
    assert re.match("it was not built: .*STOMPP_CUDA=1", reason)
    file.write_bytes(b"not\na library")
    found, reason = cuda_library.find(file)
    assert found is None
    assert re.fullmatch(r"it did not load \(.*\)", reason)


@pytest.mark.slow
@needs_nvcc
def test_reasons_of_a_library_that_does_not_fit(library):
    if torch.version.cuda is None:
        assert library.problem([80]) == f"it did not find libtorch_cuda of torch {torch.__version__}"
    library.finds_torch, library.driver_version = True, library.runtime_version
    assert library.problem([80]) == ""
    assert library.problem([70, 86]) == ""
    reason = library.problem([70, 75, 70])
    assert reason.startswith("it is compiled for 80, and the GPU is of 7.0 and 7.5: ")
    assert "TORCH_CUDA_ARCH_LIST" in reason
    library.driver_version = 11040
    assert re.match(r"it is built with CUDA 1\d\.\d, and the driver is for CUDA 11\.4: ", library.problem([80]))


def test_gpu_implementations_are_listed_after_the_cpus(monkeypatch):
    *_, cuda, triton = native.implementations()
    assert (cuda.name, cuda.device, triton.name, triton.device) == ("cuda", "cuda", "triton", "cuda")
    assert {item.device for item in native.implementations()[:-2]} == {"cpu"}
    if not torch.cuda.is_available():
        assert not cuda.available
        assert not triton.available
        for op in ("bgemm", "pack_signs"):
            assert native.implementation_of(op, torch.device("cuda")) == "reference"
    monkeypatch.setattr(native, "cuda_missing_reason", "")
    assert native.implementations()[-2].active
    assert native.implementation_of("bconv2d", torch.device("cuda")) == "cuda"
    assert native.implementation_of("bgemm", torch.device("cpu")) == native.active_implementation()
    assert native.implementation_of("bgemm", torch.device("xpu")) == "reference"
    assert native.implementation_of("conv2d_float_signs", torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="'cuda' cannot run here"), native.use_implementation("cuda"):
        pass


def test_torch_for_amd_gpus_runs_the_triton_kernels_and_says_so_of_the_library(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.0", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found, reason = cuda_library.find()
    assert found is None
    assert reason == "this torch is built for AMD GPUs, and the library holds machine code of NVIDIA's"
    for installed in (True, False):
        found = object() if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert native.wants_triton() == installed
        triton = native.implementations()[-1]
        assert (triton.available, triton.reason) == (installed, "" if installed else "Triton is not installed")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert native.implementations()[-1].reason == "torch sees no AMD GPU"


REGISTERED = """
import ctypes, torch
library = ctypes.CDLL("stompp_kernels/_cuda.so")
def names():
    found = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    return {name.removeprefix("stompp::") for name in found if name.startswith("stompp::")}
assert not names()
for _ in range(2):
    assert library.stompp_cuda_register() == 0
print(*names())
"""


@pytest.mark.slow
@needs_nvcc
def test_loading_registers_nothing_and_registering_the_listed_ops(project):
    assert set(run(project, REGISTERED).split()) == set(cuda_library.OPS)
    assert set(cuda_library.OPS) < SCHEMAS.keys()


TAKEN_OVER = """
assert (native.cuda_missing_reason, native.cuda.architectures) == ("", ["80"])
found = {item.name: item for item in sk.implementations()}
assert found["cuda"].active and found["cuda"].reason == ""
assert native.active_implementation() != "cuda"
for name in ops.schemas.SCHEMAS:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("stompp::" + name, "CUDA"), name
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    for device in ("cuda", "cpu"):
        matrix = ops.pack_weight(torch.empty(70, 100, device=device))
        kernel = ops.pack_conv_weight(torch.empty(64, 8, 3, 3, device=device), 8)
        words = ops.pack_signs(torch.empty(3, 100, device=device))
        print(matrix.data.device.type, matrix.nbytes, kernel.nbytes, *ops.bgemm(words, matrix).shape)
        assert ops.PackedWeight.from_words(matrix.words(), matrix.shape).nbytes == matrix.nbytes
print("meta", ops.pack_weight(torch.empty(70, 100, device="meta")).nbytes)

def refusal(name, *arguments):
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    try:
        getattr(torch.ops.stompp, name).default.redispatch(keys, *arguments)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "answered"

a, weight = torch.zeros(3, 4, dtype=torch.int32), torch.zeros(10, dtype=torch.uint8)
image, bytes_ = torch.zeros(1, 5, 5, 1, dtype=torch.int32), torch.zeros(100, dtype=torch.uint8)
for name, arguments in [
    ("bgemm", (a, weight, 70, 100)),
    ("bconv2d", (image, bytes_, [64, 8, 3, 3], [1, 1], [1, 1], [1, 1], 8, 0)),
    ("pack_weight_words", (a, [3, 128], 1)),
    ("unpack_weight_words", (weight, [3, 128], 1)),
]:
    print(refusal(name, *arguments))
"""


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(native.library is None, reason="the copy of the package has no library for the CPU either")
def test_a_fitting_gpu_gets_the_kernels(project):
    on_gpu, on_cpu, meta, *refused = run(project, PRETEND + TAKEN_OVER, 80, 13000).splitlines()
    matrix, kernel = packed_bytes(70, 100, 1, 1, 1), packed_bytes(64, 8, 3, 3, 8)
    assert on_gpu.split() == ["cuda", str(matrix), str(kernel), "3", "70"]
    cpu = native.library.packed_bytes
    assert on_cpu.split() == ["cpu", str(cpu(70, 100, 1, 1, 1)), str(cpu(64, 8, 3, 3, 8)), "3", "70"]
    assert meta.split() == ["meta", str(70 * 4 * 4)]
    expected = [("bgemm", "a_words"), ("bconv2d", "x_words"), ("pack_weight_words", "words")]
    for line, (op, argument) in zip(refused, [*expected, ("unpack_weight_words", "weight")], strict=True):
        assert f"{op}: {argument} is on cpu and another argument on a GPU" in line


LEFT_ALONE = """
import re
assert native.cuda is None
[reason] = [item.reason for item in sk.implementations() if item.name == "cuda"]
print(reason)
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    print(ops.pack_weight(torch.empty(70, 100, device="cuda")).nbytes)
for name in ops.schemas.SCHEMAS:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("stompp::" + name, "CUDA"), name
"""


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize(
    ("capability", "driver", "expected"),
    [(75, 13000, "it is compiled for 80, and the GPU is of 7.5"), (80, 11080, "the driver is for CUDA 11.8")],
)
def test_a_gpu_that_does_not_fit_keeps_the_reference(project, capability, driver, expected):
    reason, nbytes = run(project, PRETEND + LEFT_ALONE, capability, driver).splitlines()
    assert expected in reason
    assert int(nbytes) == 70 * 4 * 4
