"""The example in examples/cpp: a packed network that AOTInductor compiled, run by a C++ program without Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import IMPLEMENTATIONS
from models_for_tests import committed

import stompp_kernels as sk
from stompp_kernels import native

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.library is None, reason="the program needs the compiled library"),
    pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("program") / "packed_inference"
    compiler = os.environ.get("CXX", "c++").split()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", abi, "-isystem", TORCH / "include"]
    subprocess.run([*compiler, *flags, EXAMPLE / "main.cpp", "-o", target, *libraries], check=True)
    return target


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A residual network's package, the network and an input."""
    folder = tmp_path_factory.mktemp("package")
    model, x = committed("residual", 3)
    packed = sk.convert(model)
    exported = sk.export_packed(packed, folder / "net.pt2", x[:1])
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "package.pt2"))
    return path, packed, x


def run(program, *arguments, data=b"", **environment):
    return subprocess.run(
        [program, *map(str, arguments)], input=data, capture_output=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_program_without_python_gives_the_same_results(name, threads, program, package):
    path, packed, x = package
    for batch in (1, 5, 16):
        variables = {"STOMPP_CPU": name, "OMP_NUM_THREADS": str(threads)}
        inputs = x[:batch].contiguous()
        result = run(program, native.CPP_LIBRARY, path, *inputs.shape, data=inputs.numpy().tobytes(), **variables)
        assert result.returncode == 0, result.stderr.decode()
        output = torch.frombuffer(bytearray(result.stdout), dtype=torch.float32).view(batch, 4)
        with torch.no_grad():
            # Float layers are compiled: their rounding differs, the bits between the binary layers do not.
            torch.testing.assert_close(output, packed(inputs), rtol=1e-4, atol=1e-5)


def test_neither_the_program_nor_the_library_needs_python(program):
    for file in (program, native.CPP_LIBRARY):
        listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
        assert "libtorch_cpu" in listed
        assert "libpython" not in listed


def test_the_programs_errors(program, package):
    path, _, x = package
    for arguments, data, message in [
        ((), b"", "usage: "),
        (("/nonexistent/lib.so", path, 1), b"", "error: /nonexistent/lib.so: cannot open shared object file"),
        ((native.CPP_LIBRARY, path, *x.shape), b"1234", "error: the input has fewer values than its shape"),
        ((native.CPP_LIBRARY, "/nonexistent.pt2", 1), b"1234", "error: "),
    ]:
        result = run(program, *arguments, data=data)
        assert result.returncode in (1, 2)
        assert message in result.stderr.decode()
        assert result.stdout == b""


def test_an_unknown_implementation_is_an_error_of_the_op(program, package):
    path, _, x = package
    result = run(program, native.CPP_LIBRARY, path, *x.shape, data=x.numpy().tobytes(), STOMPP_CPU="bogus")
    assert result.returncode == 1
    assert "error: " in result.stderr.decode()
