"""The example in examples/cpp: a packed network that AOTInductor compiled, run by a C++ program without Python."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import IMPLEMENTATIONS
from models_for_tests import committed
from torch._subclasses.fake_tensor import FakeTensorMode

import stompp_kernels as sk
from stompp_kernels import cuda_library, native, torch_release
from stompp_kernels.torch_release import PACKAGES, torch_is_before

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.library is None, reason="the program needs the compiled library"),
    pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    if shutil.which("cmake") is not None:
        configure_program(folder, TORCH, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror").check_returncode()
        subprocess.run(["cmake", "--build", folder], check=True)
        return folder / "packed_inference"
    target = folder / "packed_inference"
    compiler = os.environ.get("CXX", "c++").split()
    config = (TORCH / "share/cmake/Torch/TorchConfig.cmake").read_text()
    flags = [f"-std=c++{re.search(r'CXX_STANDARD ([0-9]+)', config)[1]}", "-Wall", "-Wextra", "-Werror"]
    folders = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}"]
    libraries = [*folders, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    includes = ["-isystem", TORCH / "include"]
    subprocess.run([*compiler, *flags, *includes, EXAMPLE / "main.cpp", "-o", target, *libraries], check=True)
    return target


def configure_program(folder, torch_directory, *options):
    command = ["cmake", "-S", EXAMPLE, "-B", folder, f"-DTORCH={torch_directory}", *options]
    return subprocess.run(command, capture_output=True, text=True)


needs_packages = pytest.mark.skipif(torch_is_before(PACKAGES), reason="AOTInductor before torch 2.12 changes types")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A residual network's package, the network and an input."""
    folder = tmp_path_factory.mktemp("package")
    model, x = committed("residual", 3)
    packed = sk.convert(model)
    path = folder / "package.pt2"
    sk.package_packed(packed, path, x[:1])
    return path, packed, x


def run(program, *arguments, data=b"", **environment):
    return subprocess.run(
        [program, *map(str, arguments)],
        input=data,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=3600,
    )


@needs_packages
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


@needs_packages
def test_a_package_runs_in_python_too(package):
    path, packed, x = package
    loaded = torch._inductor.aoti_load_package(str(path))
    for batch in (1, 5, 16):
        with torch.no_grad():
            torch.testing.assert_close(loaded(x[:batch]), packed(x[:batch]), rtol=1e-4, atol=1e-5)


def exact(model, x):
    """The model and its input with floats whose sums a GPU has exactly, in any order and with TF32."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for conv in (model.conv1, model.blocks[1].downsample[0]):
            conv.weight.copy_(torch.randint(-4, 5, conv.weight.shape, generator=g) / 8)
    return model, torch.randint(-4, 5, x.shape, generator=g).to(x.dtype)


@needs_packages
@pytest.mark.gpu
def test_a_package_for_the_gpu_gives_the_same_results_without_python(program, tmp_path):
    model, x = exact(*committed("residual", 3))
    packed, path = sk.convert(model).cuda(), tmp_path / "package.pt2"
    loaded = sk.package_packed(packed, path, x[:1].cuda())
    for batch in (1, 5, 16):
        inputs = x[:batch].contiguous()
        with torch.no_grad():
            expected, found = packed(inputs.cuda()).cpu(), loaded(inputs.cuda()).cpu()
        libraries = "--cuda", cuda_library.PATH, native.CPP_LIBRARY
        result = run(program, *libraries, path, *inputs.shape, data=inputs.numpy().tobytes())
        assert result.returncode == 0, result.stderr.decode()
        output = torch.frombuffer(bytearray(result.stdout), dtype=torch.float32).view(batch, 4)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output, found)


def test_networks_elsewhere_are_refused_before_anything_is_compiled(tmp_path):
    path = tmp_path / "package.pt2"
    model, x = committed("mlp")
    packed = sk.convert(model)
    with pytest.raises(ValueError, match="must be on cpu as the network is, and input 0 is on meta"):
        sk.package_packed(packed, path, x.to("meta"))
    packed.register_buffer("elsewhere", torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match="on the CPU or an NVIDIA GPU for a package, and it is on cpu and meta"):
        sk.package_packed(packed, path, x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(native.cuda is not None, reason="the kernels are there")
def test_a_network_on_a_gpu_without_kernels_for_programs_is_refused(tmp_path):
    model, x = committed("mlp")
    packed, reason = sk.convert(model), re.escape(native.cuda_missing_reason)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=f"needs the implementation 'cuda' .* on cuda:0, .* here: {reason}"),
    ):
        sk.package_packed(packed.to("cuda:0"), tmp_path / "package.pt2", x.to("cuda:0"))
    assert list(tmp_path.iterdir()) == []


@needs_packages
def test_what_is_packaged_is_loaded_and_replaces_the_old_file_when_it_is_whole(tmp_path, monkeypatch):
    model, x = committed("mlp", 3)
    packed, path = sk.convert(model), tmp_path / "package.pt2"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError("no space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "replace", fail)
        context.setattr(torch._inductor, "aoti_compile_and_package", lambda program, package_path, **_: path)
        with pytest.raises(OSError, match="no space left"):
            sk.package_packed(packed, path, x)
    assert path.read_bytes() == b"old"
    loaded = sk.package_packed(packed, path, x[:1], dynamic_batch=False)
    assert [file.name for file in tmp_path.iterdir()] == ["package.pt2"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x[:1]), packed(x[:1]), rtol=1e-4, atol=1e-5)


@needs_packages
def test_a_package_has_loops_for_any_number_of_threads(package):
    with zipfile.ZipFile(package[0]) as files:
        sources = [files.read(name).decode() for name in files.namelist() if name.endswith(".cpp")]
    assert sources
    assert "omp_get_max_threads()" in "".join(sources)
    assert not re.search(r"num_threads\(\d", "".join(sources))


@needs_packages
def test_a_file_that_cannot_be_made_is_an_error_before_anything_is_compiled(tmp_path, monkeypatch):
    model, x = committed("mlp")
    compiled = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: compiled.append(True))
    with pytest.raises(FileNotFoundError, match="absent"):
        sk.package_packed(sk.convert(model), tmp_path / "absent" / "package.pt2", x)
    assert compiled == []


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0+cpu"])
def test_a_torch_that_changes_types_makes_no_package(version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_release, "torch_version", lambda: version)
    model, x = committed("mlp")
    with pytest.raises(RuntimeError, match=r"package_packed needs torch >= 2\.12, and torch"):
        sk.package_packed(sk.convert(model), tmp_path / "package.pt2", x)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_of_packages(tmp_path):
    model, x = committed("mlp")
    with pytest.raises(ValueError, match=r"path must end in \.pt2, got '.*package\.so'"):
        sk.package_packed(sk.convert(model), tmp_path / "package.so", x)
    with pytest.raises(TypeError, match=r"packed must be a network made by sk\.convert, got Linear"):
        sk.package_packed(torch.nn.Linear(3, 3), tmp_path / "package.pt2", torch.ones(2, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")
@pytest.mark.parametrize("standard", ["17", "20"])
def test_the_program_is_compiled_by_the_standard_that_torch_names(standard, tmp_path):
    config = tmp_path / "torch" / "share/cmake/Torch/TorchConfig.cmake"
    config.parent.mkdir(parents=True)
    config.write_text(f"set_target_properties(torch PROPERTIES\n    CXX_STANDARD {standard}\n)\n")
    done = configure_program(tmp_path / "build", tmp_path / "torch", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    assert done.returncode == 0, done.stderr
    assert f"-std=gnu++{standard} " in (tmp_path / "build" / "compile_commands.json").read_text()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")
def test_a_directory_without_torch_is_named(tmp_path):
    done = configure_program(tmp_path / "build", "/nonexistent/torch")
    assert done.returncode != 0
    assert "TORCH='/nonexistent/torch'" in done.stderr


def test_neither_the_program_nor_the_library_needs_python(program):
    for file in (program, native.CPP_LIBRARY):
        listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
        assert "libtorch_cpu" in listed
        assert "libpython" not in listed


@needs_packages
def test_the_programs_errors(program, package):
    path, _, x = package
    for arguments, data, message in [
        ((), b"", "usage: "),
        (("/nonexistent/lib.so", path, 1), b"", "error: /nonexistent/lib.so: cannot open shared object file"),
        ((native.CPP_LIBRARY, path, *x.shape), b"1234", "error: the input has fewer values than its shape"),
        ((native.CPP_LIBRARY, "/nonexistent.pt2", 1), b"1234", "error: "),
        (("--cuda", native.CPP_LIBRARY, path), b"", "usage: "),
        (("--cuda", native.CPP_LIBRARY, native.CPP_LIBRARY, path, 1), b"", "undefined symbol: stompp_cuda_finds_torch"),
    ]:
        result = run(program, *arguments, data=data)
        assert result.returncode in (1, 2)
        assert message in result.stderr.decode()
        assert result.stdout == b""


@needs_packages
def test_an_unknown_implementation_is_an_error_of_the_op(program, package):
    path, _, x = package
    result = run(program, native.CPP_LIBRARY, path, *x.shape, data=x.numpy().tobytes(), STOMPP_CPU="bogus")
    assert result.returncode == 1
    assert "error: " in result.stderr.decode()
