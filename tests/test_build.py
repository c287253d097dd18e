"""setup.py: clear errors, and compiler commands that any machine of the architecture can run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import types
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands in for a compiler: notes its arguments and leaves the files that ninja expects, among them
# the list of the headers that were included.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> commands.log
while [ $# -gt 0 ]; do
    case "$1" in
        -o) : > "$2" ;;
        -MF) echo "object: csrc/core/base/bits.h" > "$2" ;;
    esac
    shift
done
"""


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("stompp_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project with our setup.py, beside a fake torch, and no build variables set."""
    folder = tmp_path / "a project"
    for name in ("csrc/core/base", "csrc/core/signs", "csrc/torch", "stompp_kernels", "site/torch"):
        (folder / name).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("README.md", "stompp_kernels/__init__.py", "stompp_kernels/py.typed"):
        (folder / name).touch()
    for name in ("csrc/core/base/bits.h", "csrc/core/signs/pack.cpp", "csrc/torch/bindings.cpp"):
        (folder / name).touch()
    (folder / "fake-c++").write_text(FAKE_COMPILER)
    (folder / "fake-c++").chmod(0o755)
    fake_torch(folder, "__version__ = '2.10.0'")
    for name in (
        *("CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "STOMPP_BUILD_NATIVE", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"),
        *("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "STOMPP_CORE", "STOMPP_TORCH_HEADERS"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STOMPP_CUDA", "0")  # a real nvcc takes its time
    return folder


# Stands in for nvcc, of CUDA 13.0.
FAKE_NVCC = """#!/bin/sh
home=$(dirname "$(dirname "$0")")
case "$1" in
    --version) echo "Cuda compilation tools, release ${FAKE_RELEASE-13.0}, V0.0.1"; exit ;;
    --list-gpu-code) echo sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120; exit ;;
    --dryrun) echo '#$ LIBRARIES=  "-L/nonexistent/stubs" "-L'"$home"'/lib"' >&2; exit ;;
esac
"""


@pytest.fixture
def cuda_home(project):
    """Sources for GPUs in the project, and a directory with the fake nvcc and its library."""
    for name in ("any.cu", "tile_sm75.cu", "tile_sm80.cu", "tile_sm90a.cu", "tile_sm100.cu"):
        (project / "csrc" / "cuda").mkdir(exist_ok=True)
        (project / "csrc" / "cuda" / name).touch()
    for name in ("torch/cuda/binding.cpp", "core/product/check_shapes.cpp"):
        (project / "csrc" / name).parent.mkdir()
        (project / "csrc" / name).touch()
    home = project / "cuda"
    for name in ("bin/nvcc", "lib/libcudart_static.a"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    (home / "lib/libcudart_static.a").write_text("!<arch>\n")
    (home / "bin/nvcc").write_text(FAKE_NVCC + FAKE_COMPILER.removeprefix("#!/bin/sh\n"))
    (home / "bin/nvcc").chmod(0o755)
    return home


def fake_torch(project, source):
    (project / "site" / "torch" / "__init__.py").write_text(source + "\n")


def run_setup(project, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(project / "site"), **variables}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_clear_error(result, *fragments):
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    assert "error: " in result.stdout
    for fragment in fragments:
        assert fragment in result.stdout


def test_missing_torch_is_explained_before_anything_is_fetched(project):
    fake_torch(project, "raise ImportError('libnowhere.so: cannot open')")
    result = run_setup(project, "dist_info", "--output-dir", ".")
    assert_clear_error(result, "--no-build-isolation", "libnowhere.so", "STOMPP_BUILD_NATIVE=0")


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0", "2.9.1+cu128", "unknown"])
def test_old_torch_is_refused(build, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(build.PlatformError, match=re.escape(version)) as error:
        build.find_torch()
    assert "torch >= 2.10" in str(error.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1f2e3d", "2.13.0+cpu", "10.0"])
def test_new_torch_is_accepted(build, monkeypatch, tmp_path, version):
    fake = types.SimpleNamespace(__version__=version, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert build.find_torch() == tmp_path.resolve()


def test_missing_compiler_is_explained(project):
    result = run_setup(project, "build_ext", CXX="/nonexistent/c++")
    assert_clear_error(result, "C++17 compiler", "/nonexistent/c++", "set CXX")


def test_no_compiler_on_path(build, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.PlatformError, match=r"c\+\+, g\+\+, clang\+\+"):
        build.find_compiler()


def test_compiler_may_carry_a_launcher(build, monkeypatch, project):
    monkeypatch.setenv("CXX", f"'{project / 'fake-c++'}' g++ -m64")
    assert build.find_compiler() == [str(project / "fake-c++"), "g++", "-m64"]


def test_missing_ninja_is_explained(build, monkeypatch, tmp_path):
    def no_distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.metadata, "distribution", no_distribution)
    with pytest.raises(build.PlatformError, match="pip install ninja"):
        build.find_ninja()


def test_ninja_package_is_found_off_path(build, monkeypatch, tmp_path):
    pytest.importorskip("ninja", reason="only the ninja of the system is installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(build.find_ninja(), os.X_OK)


def test_unknown_native_switch_is_refused(build, monkeypatch):
    monkeypatch.setenv("STOMPP_BUILD_NATIVE", "off")
    with pytest.raises(build.PlatformError, match="'off'"):
        build.native_enabled()


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_bad_max_jobs_is_refused(build, monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    command = build.BuildNative(build.setuptools.Distribution())
    with pytest.raises(build.PlatformError, match="MAX_JOBS"):
        command.run_ninja(["ninja"])


def test_failed_compilation_ends_without_a_traceback(project):
    result = run_setup(project, "build_ext", "--inplace", CXX="false")
    assert_clear_error(result, "did not compile")
    assert not list(project.glob("stompp_kernels/*.so"))


def test_pure_python_package_needs_no_torch(project):
    fake_torch(project, "raise ImportError('no torch')")
    result = run_setup(project, "build", CXX="/nonexistent/c++", STOMPP_BUILD_NATIVE="0")
    assert result.returncode == 0, result.stdout
    built = sorted(path.name for path in project.glob("build/lib/stompp_kernels/*"))
    assert built == ["__init__.py", "py.typed"]


def test_the_numpy_module_needs_no_torch(project):
    fake_torch(project, "raise ImportError('no torch')")
    for name in ("csrc/numpy/core.cpp", "site/torch/include/pybind11/numpy.h"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    variables = {"CXX": "./fake-c++", "STOMPP_BUILD_NATIVE": "0"}
    assert_clear_error(
        run_setup(project, "build_ext", "--inplace", STOMPP_CORE="yes", **variables), "STOMPP_CORE='yes'"
    )
    result = run_setup(project, "build_ext", "--inplace", STOMPP_CORE="1", **variables)
    assert result.returncode == 0, result.stdout
    [built] = project.glob("stompp_kernels/*.so")
    assert re.fullmatch(r"_core\.cpython-.*\.so", built.name)
    commands = (project / "commands.log").read_text()
    assert sorted(re.findall(r"-c (\S+)", commands)) == ["csrc/core/signs/pack.cpp", "csrc/numpy/core.cpp"]
    assert not re.search("TORCH|-ltorch|-lpython", commands)


def test_headers_are_enough_where_no_torch_is_installed(project):
    fake_torch(project, "raise ImportError('no torch')")
    headers = project / "headers" / "torch"
    variables = {"CXX": "./fake-c++", "STOMPP_TORCH_HEADERS": str(headers)}
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert_clear_error(result, "STOMPP_TORCH_HEADERS", str(headers), "include/torch/csrc/stable/library.h")
    (headers / "include/torch/csrc/stable").mkdir(parents=True)
    (headers / "include/torch/csrc/stable/library.h").touch()
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    assert f"-isystem {headers}/include" in commands.replace("'", "")
    if sys.platform == "linux":
        assert re.search(r"-Wl,-soname,libtorch_cpu\.so -o build/native/\S+/torch/libtorch_cpu\.so", commands)
        assert re.search(r"-Lbuild/native/\S+/torch -Wl,--no-as-needed -ltorch_cpu -lc10", commands)


@pytest.mark.parametrize(("module", "tag"), [("0", "py3-none"), ("1", f"cp3{sys.version_info[1]}-cp3")])
def test_a_wheel_is_for_any_python_unless_it_has_the_numpy_module(project, module, tag):
    for name in ("csrc/numpy/core.cpp", "site/torch/include/pybind11/numpy.h"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    command = ["bdist_wheel", "--plat-name", "manylinux_2_28_x86_64"]
    result = run_setup(project, *command, CXX="./fake-c++", STOMPP_CORE=module)
    assert result.returncode == 0, result.stdout
    [wheel] = project.glob("dist/*.whl")
    assert wheel.name.startswith(f"stompp_kernels-0.1.0-{tag}")
    assert wheel.name.endswith("-manylinux_2_28_x86_64.whl")


def test_build_commands(project):
    """The whole way through ninja: what it compiles, with which flags, and what it then repeats."""
    variables = {"CXX": "./fake-c++", "CXXFLAGS": "-march=native -mavx2 -mcpu=native -m64 -g1"}
    log = project / "commands.log"

    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    assert [path.name for path in project.glob("stompp_kernels/*.so")] == ["libstompp_kernels.so"]
    commands = log.read_text().splitlines()
    compiles, [link] = [c for c in commands if " -c " in c], [c for c in commands if " -c " not in c]
    assert len(compiles) == 2
    for command in compiles:
        words = command.split()
        machine_flags = [word for word in words if word.startswith("-m")]
        assert machine_flags == ["-m64"]
        assert "-g1" in words
        assert "-ffp-contract=off" in words
        assert "-fvisibility=hidden" in words
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in words
        assert not re.search(r"include/python|pybind", command), "there is no Python in the library"
    assert "rpath" not in link
    assert "-lpython" not in link
    assert "-ltorch_cpu" in link.split()

    assert not list(project.glob(".ninja*"))

    assert rebuilt(project, "csrc/core/signs/pack.cpp", **variables) == ["csrc/core/signs/pack.cpp"]
    everything = ["csrc/core/signs/pack.cpp", "csrc/torch/bindings.cpp"]
    assert rebuilt(project, "csrc/core/base/bits.h", **variables) == everything
    assert rebuilt(project, "README.md", CXX="./fake-c++", CXXFLAGS="-O1") == everything


def ninja_file(project):
    [path] = project.glob("build/native/*/build.ninja")
    return path.read_text()


def rebuilt(project, changed, **variables):
    """The sources compiled by a build after a file has changed."""
    (project / "commands.log").unlink()
    later = time.time() + 10
    os.utime(project / changed, (later, later))
    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    return sorted(re.findall(r"-c (\S+)", commands))


LOOSE = (
    *("-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-fassociative-math"),
    *("-freciprocal-math", "-fno-signed-zeros", "-ffp-contract=fast", "-mfpmath=387", "-fno-honor-nans"),
)
FOR_ONE_MACHINE = ("-march=native", "-mavx512f", "-mavx2", "-mfma", "-mcpu=native", "-mpopcnt", "-mvaes", "-mno-sse4.1")
HARMLESS = ("-O0", "-flto", "-fopenmp-simd", "-frounding-math", "-ffp-contract=off", "-fno-fast-math", "-mtune=native")


@pytest.mark.parametrize("variable", ["CXX", "CXXFLAGS", "LDFLAGS"])
def test_flags_that_change_results_or_processors_are_left_out_and_named(build, monkeypatch, capsys, variable, tmp_path):
    """Directly, in a response file that another one names, and behind a word that hands them to a part of clang."""
    (tmp_path / "outer").write_text(f"@{tmp_path / 'inner'} -g1")
    (tmp_path / "inner").write_text("'-Ofast' -m64")
    words = [*LOOSE, *FOR_ONE_MACHINE, *HARMLESS, f"@{tmp_path / 'outer'}", "-Xclang", "-ffast-math", "-Xclang", "-v"]
    before = ["c++"] if variable == "CXX" else []
    monkeypatch.setenv(variable, " ".join([*before, *words]))
    kept = build.find_compiler() if variable == "CXX" else build.user_flags(variable)
    assert kept == [*before, *HARMLESS, "-m64", "-g1", "-Xclang", "-v"]
    left_out = " ".join([*LOOSE, *FOR_ONE_MACHINE, "-Ofast", "-Xclang", "-ffast-math"])
    assert f"{variable}: {left_out} left out" in capsys.readouterr().out


def test_a_response_file_that_cannot_be_read_is_named(project):
    result = run_setup(project, "build_ext", CXX="./fake-c++", CXXFLAGS="@absent.txt")
    assert_clear_error(result, "CXXFLAGS", "'@absent.txt'")


def test_variables_that_this_build_does_not_read_do_not_reach_the_compiler(project):
    names = ("CFLAGS", "CPPFLAGS", "ARCHFLAGS", "OPT", "BASECFLAGS", "CCSHARED", "LDSHARED", "CC", "FFLAGS")
    (project / "setup.cfg").write_text("[build_ext]\ndefine = UNWANTED\ninclude_dirs = -ffast-math\n")
    variables = dict.fromkeys(names, "-ffast-math")
    result = run_setup(project, "build_ext", "--inplace", CXX="./fake-c++ -Ofast", LDFLAGS="-ffast-math", **variables)
    assert result.returncode == 0, result.stdout
    commands = (project / "commands.log").read_text()
    assert "-fvisibility=hidden" in commands
    assert not re.search("fast|UNWANTED", commands)


# What each function gives shows one liberty that a compiler may take with floats.
ARITHMETIC = """
#include "core/base/bits.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int is_negative(float x) { return x < 0 ? 1 : 0; }
EXPORT int is_nan(float x) { return x != x; }
EXPORT float add_zero(float x) { return x + 0.0f; }
EXPORT float added(float a, float b) { return (a + b) - a; }
EXPORT float third(float x) { return x / 3.0f; }
EXPORT float product_plus(float a, float b, float c) { return a * b + c; }
"""

CHECK_ARITHMETIC = """
import ctypes, math, struct, sys
library = ctypes.CDLL(sys.argv[1])
def call(name, *values):
    function = getattr(library, name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(values)
    return function(*values)
library.is_negative.argtypes = library.is_nan.argtypes = [ctypes.c_float]
assert [library.is_nan(x) for x in (math.nan, -math.nan, math.inf, 0.0)] == [1, 1, 0, 0]
assert [library.is_negative(x) for x in (math.nan, -math.nan, -0.0, -1e-45, -math.inf)] == [0, 0, 0, 1, 1]
assert math.copysign(1, call("add_zero", -0.0)) == 1
assert call("added", 1e8, 1.0) == 0
single = lambda x: struct.unpack("f", struct.pack("f", x))[0]
for x in range(1, 100):
    assert call("third", x) == single(x / 3)
a = single(1 + 2.0**-12)
assert call("product_plus", a, a, -single(a * a)) == 0
assert 5e-324 * 1.0 > 0, "loading the library made the processor flush denormals"
"""


def real_project(project):
    """The project with a library that a real compiler can make: torch's are empty."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    (project / "csrc/core/signs/pack.cpp").write_text(ARITHMETIC)
    shutil.copy(ROOT / "csrc/core/base/bits.h", project / "csrc/core/base/bits.h")
    (project / "site/torch/lib").mkdir()
    for name in ("torch_cpu", "c10"):
        target = project / f"site/torch/lib/lib{name}.so"
        subprocess.run([compiler, "-shared", "-x", "c++", os.devnull, "-o", target], check=True)
    return compiler


def assert_ieee(project):
    library = project / "stompp_kernels" / "libstompp_kernels.so"
    done = subprocess.run([sys.executable, "-c", CHECK_ARITHMETIC, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
def test_a_library_built_under_such_flags_computes_as_ieee_says(project):
    compiler = real_project(project)
    flags = " ".join(flag for flag in (*LOOSE, "-march=native") if flag != "-fno-honor-nans")
    result = run_setup(
        project, "build_ext", "--inplace", CXX=f"{compiler} {flags}", CXXFLAGS=flags, LDFLAGS=flags, CFLAGS=flags
    )
    assert result.returncode == 0, result.stdout
    assert_ieee(project)


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-fno-signed-zeros", "-freciprocal-math", "-mavx512f"])
def test_flags_that_a_compiler_adds_by_itself_are_refused(project, flag):
    compiler = real_project(project)
    if flag.startswith("-m") and os.uname().machine != "x86_64":
        pytest.skip("a flag of x86-64")
    (project / "wrapped").write_text(f'#!/bin/sh\nexec {compiler} "$@" {flag}\n')
    (project / "wrapped").chmod(0o755)
    result = run_setup(project, "build_ext", "--inplace", CXX="./wrapped")
    expected = "picks instructions at run time" if flag == "-mavx512f" else "needs IEEE 754 arithmetic"
    assert_clear_error(result, expected, "did not compile")


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
def test_a_wrapper_that_begins_with_ofast_is_overruled(project):
    compiler = real_project(project)
    (project / "wrapped").write_text(f'#!/bin/sh\nexec {compiler} -Ofast "$@"\n')
    (project / "wrapped").chmod(0o755)
    result = run_setup(project, "build_ext", "--inplace", CXX="./wrapped")
    assert result.returncode == 0, result.stdout
    assert_ieee(project)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--use_fast_math", "--use_fast_math"),
        ("-O2 -ftz=true", "-ftz=true"),
        ("--prec-div false", "--prec-div false"),
        ("-Xcompiler -ffast-math", "-ffast-math"),
        ("-Xcompiler=-g,-march=native", "-march=native"),
    ],
)
@pytest.mark.parametrize("variable", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
def test_what_nvcc_reads_by_itself_is_refused_where_it_changes_results(project, cuda_home, variable, text, named):
    result = run_setup(
        project, "build_ext", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1", **{variable: text}
    )
    assert_clear_error(result, f"{variable} holds {named}, which nvcc reads by itself", "STOMPP_CUDA=0")


def test_other_flags_of_nvcc_are_let_through(build, monkeypatch):
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-ccbin=/opt/bin/g++ -Xcompiler=-g,-O1 --ftz=false -lineinfo")
    build.check_nvcc_flags()


def test_build_requirements(build):
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = (.*)$", text, re.MULTILINE).group(1)
    assert f"setuptools>={build.MIN_SETUPTOOLS}" in requires
    assert "torch" not in requires


def architectures(build, text):
    return [(a.name, a.ptx) for a in build.parse_architectures(text)]


def test_architectures_in_torchs_syntax(build):
    assert architectures(build, "8.0") == [("80", False)]
    assert architectures(build, "12.0+PTX;9.0a 8.6") == [("86", False), ("90a", False), ("120", True)]
    assert architectures(build, "9.0 9.0a; 9.0+PTX;") == [("90", True), ("90a", False)]
    assert architectures(build, "10.0f;10.3a") == [("100f", False), ("103a", False)]
    assert [name for name, _ in architectures(build, build.DEFAULT_ARCHITECTURES)] == [
        *("75", "80", "86", "89", "90a", "100", "120")
    ]
    two = build.parse_architectures("8.6;12.0+PTX")
    assert [flag for a in two for flag in a.flags()] == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize("text", ["Ampere", "80", "8.0,9.0", "8.0+ptx", "8.", "sm_80", "9.0b", "8.0;all"])
def test_nonsense_among_architectures_is_refused(build, text):
    with pytest.raises(build.PlatformError, match="is no architecture; write them as in") as error:
        build.parse_architectures(text)
    assert repr(text) in str(error.value)


def test_architectures_without_binary_tensor_cores_are_left_out(build, capsys):
    assert architectures(build, "6.1;7.0;8.0") == [("80", False)]
    assert "'6.1;7.0;8.0'" in capsys.readouterr().out
    with pytest.raises(build.PlatformError, match=r"'7\.0': name an architecture from 7\.5 on"):
        build.parse_architectures("7.0")


def test_an_architecture_that_nvcc_does_not_know_is_refused(build, monkeypatch, cuda_home):
    nvcc = str(cuda_home / "bin" / "nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;15.0")
    with pytest.raises(build.PlatformError, match="does not know 150"):
        build.requested_architectures(nvcc)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", " ")
    assert [a.number for a in build.requested_architectures(nvcc)] == [75, 80, 86, 89, 90, 100, 120]


@pytest.mark.skipif(sys.platform != "linux", reason="the versions are glibc's")
def test_the_cuda_runtime_is_bound_to_what_an_old_glibc_has(build):
    found = build.older_symbols(build.find_compiler())
    for name, older in found.items():
        symbol, _, version = older.partition("@GLIBC_")
        assert symbol == name
        assert tuple(map(int, version.split("."))) <= build.GLIBC
    if tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))) >= (2, 34):
        assert {"dlopen", "dlsym", "pthread_create", "pthread_once", "sem_wait"} <= set(found)
    assert not {"printf", "malloc"} & set(found)


def test_each_family_of_kernels_is_compiled_for_its_architectures(build):
    families = ["75", "80", "90a", "100"]

    def names(source, text):
        wanted = build.parse_architectures(text)
        return [a.name for a in build.architectures_of(f"csrc/cuda/{source}.cu", wanted, families)]

    everything = build.DEFAULT_ARCHITECTURES
    assert names("product_sm75", everything) == ["75"]
    assert names("product_sm80", everything) == ["80", "86", "89", "90a"]
    assert names("product_sm90a", everything) == ["90a"]
    assert names("product_sm100", everything) == ["100", "120"]
    assert names("bgemm", everything) == ["75", "80", "86", "89", "90a", "100", "120"]
    assert names("product_sm90a", "9.0+PTX") == ["90a"]
    assert names("product_sm80", "9.0+PTX") == ["90"]
    assert names("product_sm90a", "8.0;10.0") == []
    assert names("product_sm75", "8.0") == []


def test_where_nvcc_is_looked_for(build, monkeypatch, cuda_home, tmp_path, capsys):
    monkeypatch.setenv("CUDA_HOME", str(cuda_home))
    assert build.find_nvcc() is None  # STOMPP_CUDA=0
    monkeypatch.delenv("STOMPP_CUDA")
    assert build.find_nvcc() == str(cuda_home / "bin" / "nvcc")
    monkeypatch.setenv("FAKE_RELEASE", "12.6")
    assert build.find_nvcc() is None
    assert re.search(r"_cuda left out: CUDA >= 12\.8 is needed, and .*nvcc is of 12\.6", capsys.readouterr().out)
    monkeypatch.setenv("STOMPP_CUDA", "1")
    with pytest.raises(build.PlatformError, match=r"STOMPP_CUDA=1 needs .* CUDA >= 12\.8 .* 12\.6\. STOMPP_CUDA=0"):
        build.find_nvcc()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.PlatformError, match=r"neither in CUDA_HOME='.*' nor on PATH"):
        build.find_nvcc()
    monkeypatch.delenv("STOMPP_CUDA")
    assert build.find_nvcc() is None
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("FAKE_RELEASE")
    monkeypatch.setenv("PATH", os.pathsep.join([str(cuda_home / "bin"), os.defpath]))
    assert build.find_nvcc() == str(cuda_home / "bin" / "nvcc")


def test_wrong_switches_of_the_gpu_library(project):
    assert_clear_error(run_setup(project, "build_ext", STOMPP_CUDA="yes"), "STOMPP_CUDA='yes'")
    assert_clear_error(run_setup(project, "build_ext", STOMPP_CUDA="1", STOMPP_BUILD_NATIVE="0"), "contradict")


def test_nvcc_gets_the_host_compiler_and_its_flags(build, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    assert build.nvcc_command("nvcc", ["c++"]) == ["nvcc"]
    monkeypatch.setenv("CXX", "ccache g++-12 -m64")
    command = build.nvcc_command("nvcc", ["ccache", "g++-12", "-m64"])
    assert command == ["nvcc", "-ccbin=g++-12", "-Xcompiler=-m64"]
    assert build.to_host(["-Wp,-DX"]) == ["-Xcompiler=-Wp\\,-DX"]


def test_build_commands_of_the_gpu_library(project, cuda_home):
    variables = {"CXX": "./fake-c++", "CXXFLAGS": "-march=native -g1", "CUDA_HOME": str(cuda_home), "STOMPP_CUDA": "1"}
    variables["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0a+PTX"
    log = project / "commands.log"

    result = run_setup(project, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stdout
    assert (project / "stompp_kernels" / "_cuda.so").exists()
    commands = log.read_text().splitlines()
    by_nvcc = {re.search(r"-c (\S+)", c)[1].removeprefix("csrc/"): c for c in commands if "-ccbin=./fake-c++" in c}
    assert sorted(by_nvcc) == ["cuda/any.cu", "cuda/tile_sm80.cu", "cuda/tile_sm90a.cu", "torch/cuda/binding.cpp"]
    for command in by_nvcc.values():
        assert not re.search(r"-m(arch|avx)", command)
        for flag in ("-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden", "-Xcompiler=-g1", "-DNDEBUG", "-O3"):
            assert flag in command.split()
        assert "-DSTOMPP_CUDA_ARCHITECTURES=80_90a_90aptx -DSTOMPP_SM80 -DSTOMPP_SM90A -I" in command
    codes = {name: re.findall(r",code=(\w+)", command) for name, command in by_nvcc.items()}
    assert codes["cuda/any.cu"] == codes["cuda/tile_sm80.cu"] == ["sm_80", "sm_90a", "compute_90a"]
    assert codes["cuda/tile_sm90a.cu"] == ["sm_90a"]
    assert codes["torch/cuda/binding.cpp"] == ["sm_80"]
    [link] = [c for c in commands if c.split(" -o ")[-1].endswith("_cuda.so")]
    assert "/libcudart_static.a" in link
    assert "rpath" not in link
    assert "-lpython" not in link
    assert re.search(r"objcopy --redefine-syms=build/native/\S+/older_symbols\.txt", ninja_file(project))
    assert sum("check_shapes" in re.findall(r"-c (\S+)", c)[0] for c in commands if " -c " in c) == 1

    assert rebuilt(project, "csrc/cuda/any.cu", **variables) == ["csrc/cuda/any.cu"]


def test_the_gpu_library_goes_into_the_wheel(project, cuda_home):
    result = run_setup(project, "build", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1")
    assert result.returncode == 0, result.stdout
    [built] = project.glob("build/lib.*/stompp_kernels")
    names = sorted(path.name for path in built.iterdir())
    assert names == ["__init__.py", "_cuda.so", "libstompp_kernels.so", "py.typed"]


def test_a_gpu_library_without_the_static_runtime_is_explained(project, cuda_home):
    (cuda_home / "lib" / "libcudart_static.a").unlink()
    result = run_setup(project, "build_ext", CXX="./fake-c++", CUDA_HOME=str(cuda_home), STOMPP_CUDA="1")
    assert_clear_error(result, "libcudart_static.a", "STOMPP_CUDA=0")
