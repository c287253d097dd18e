"""Compiles stompp_kernels/_C; the metadata is in pyproject.toml.

_C is one extension module that holds the torch-free core, the operators (libtorch stable ABI) and
a pybind11 module. Ninja runs the compiler directly: the flags are exactly those written here, and a
second build compiles only what changed, also under `pip install -e`, whose temporary directories
would defeat that.

Environment: CXX, CXXFLAGS, LDFLAGS, MAX_JOBS as usual; STOMPP_BUILD_NATIVE=0 leaves _C out.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info
from setuptools.errors import CompileError, PlatformError

try:
    # Recent releases of setuptools bring it along.
    from packaging.version import InvalidVersion, Version
except ModuleNotFoundError:
    raise SystemExit(
        "error: stompp_kernels is built with setuptools >= 77.0.3, packaging and ninja. Run "
        "`pip install -U setuptools packaging ninja`."
    ) from None

ROOT = Path(__file__).resolve().parent
MIN_TORCH = (2, 10)
MIN_SETUPTOOLS = Version("77.0.3")  # the first release that reads pyproject's `license = "..."`
# The oldest stable ABI to run under: major in the top byte, minor in the next.
TORCH_TARGET_VERSION = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"

WITHOUT_NATIVE = "STOMPP_BUILD_NATIVE=0 installs stompp_kernels without its compiled kernels."

CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # A fused multiply-add rounds once: float epilogues would differ between instruction sets.
    "-ffp-contract=off",
    "-DNDEBUG",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]
# Kernels pick their instruction set at run time, through target attributes on their functions.
CPU_FEATURE_FLAG = re.compile(r"-m(arch|cpu|no-(avx|sse|fma)|avx|sse|ssse|fma|f16c|bmi|lzcnt|popcnt|amx)")


def native_enabled() -> bool:
    value = os.environ.get("STOMPP_BUILD_NATIVE", "1")
    if value not in ("0", "1"):
        raise PlatformError(f"STOMPP_BUILD_NATIVE={value!r}: only 0 and 1 are allowed.")
    return value == "1"


def find_torch() -> Path:
    """The directory of the installed torch, which must offer the stable ABI."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others
        raise PlatformError(
            f"stompp_kernels compiles against the torch that is installed, but `import torch` "
            f"failed in {sys.executable} ({type(error).__name__}: {error}). Install torch >= "
            f"{MIN_TORCH[0]}.{MIN_TORCH[1]} first, then build with `pip install "
            "--no-build-isolation .`: without that option pip builds in an isolated environment, "
            f"which cannot see your torch. {WITHOUT_NATIVE}"
        ) from None
    try:
        # `release` lets through vendor and nightly builds such as 2.10.0a0+git.
        new_enough = Version(str(torch.__version__)).release >= MIN_TORCH
    except InvalidVersion:
        new_enough = False
    if not new_enough:
        raise PlatformError(
            f"stompp_kernels needs torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]} (libtorch stable ABI), "
            f"but {sys.executable} has torch {torch.__version__}. Upgrade torch, then build with "
            f"`pip install --no-build-isolation .`. {WITHOUT_NATIVE}"
        )
    return Path(torch.__file__).resolve().parent


def find_compiler() -> list[str]:
    """The C++ compiler as a command: $CXX (it may carry a launcher, as in "ccache g++"), or c++."""
    if os.environ.get("CXX", "").strip():
        candidates = [shlex.split(os.environ["CXX"])]
    else:
        candidates = [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    looked_for = ", ".join(command[0] for command in candidates)
    raise PlatformError(
        f"stompp_kernels needs a C++17 compiler, and none was found (looked for: {looked_for}). "
        f"Install gcc or clang, or set CXX to the compiler to use. {WITHOUT_NATIVE}"
    )


def find_ninja() -> str:
    on_path = shutil.which("ninja")
    if on_path:
        return on_path
    # The interpreter of a virtual environment may run without the environment's bin on PATH.
    try:
        distribution = metadata.distribution("ninja")
    except metadata.PackageNotFoundError:
        files = []
    else:
        files = distribution.files or []
    for file in files:
        if file.name == "ninja" and os.access(file.locate(), os.X_OK):
            return str(file.locate().resolve())
    raise PlatformError(
        "stompp_kernels is built with ninja, which was not found on PATH nor among the Python "
        f"packages. Run `pip install ninja`. {WITHOUT_NATIVE}"
    )


def find_python_headers() -> Path:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise PlatformError(
            f"stompp_kernels needs the headers of Python {sysconfig.get_python_version()}, and "
            f"{include / 'Python.h'} does not exist. Install the package that has them "
            f"(python3-dev on Debian and Ubuntu, python3-devel on Fedora). {WITHOUT_NATIVE}"
        )
    return include


def user_flags(variable: str) -> list[str]:
    """The flags of an environment variable, without those that name CPU features.

    A distribution's default flags would otherwise put instructions into the scalar kernels that the
    machine they run on may lack.
    """
    flags = shlex.split(os.environ.get(variable, ""))
    refused = [flag for flag in flags if CPU_FEATURE_FLAG.match(flag)]
    if refused:
        print(f"{variable}: {' '.join(refused)} left out; kernels are dispatched at run time")
    return [flag for flag in flags if flag not in refused]


def compile_command(compiler: list[str], torch_dir: Path, python_include: Path) -> list[str]:
    return [
        *compiler,
        *CXX_FLAGS,
        "-Icsrc",
        # torch's headers put their file names into error messages: not those of the build host.
        f"-ffile-prefix-map={torch_dir.parent}=.",
        # torch ships the pybind11 that supports every Python it supports. System directories, so
        # that warnings are about our own code only.
        *("-isystem", str(torch_dir / "include")),
        *("-isystem", str(python_include)),
        *user_flags("CXXFLAGS"),
    ]


def link_command(compiler: list[str], torch_dir: Path) -> list[str]:
    # No rpath: `import torch` comes first, and the loader finds its libraries by their names.
    if sys.platform == "darwin":
        kind = ["-bundle", "-undefined", "dynamic_lookup"]
    else:
        kind = ["-shared", "-Wl,--as-needed"]
    libraries = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [*compiler, *kind, "$in", *libraries, *user_flags("LDFLAGS")]


def shell(command: list[str]) -> str:
    """A command for ninja, whose own variables stay as they are."""
    return " ".join(word if word == "$in" else shlex.quote(word).replace("$", "$$") for word in command)


def ninja_file(compile_cmd: list[str], link_cmd: list[str], sources: list[str], target: str) -> str:
    """Sources and target are relative to ROOT, so no path of the build host needs escaping."""
    folder = os.path.dirname(target)
    objects = {source: f"{folder}/{os.path.splitext(source)[0]}.o" for source in sources}
    lines = [
        f"builddir = {folder}",
        "rule cxx",
        f"  command = {shell(compile_cmd)} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = CXX $in",
        "rule link",
        f"  command = {shell(link_cmd)} -o $out",
        "  description = LINK $out",
        *(f"build {object_}: cxx {source}" for source, object_ in objects.items()),
        f"build {target}: link {' '.join(objects.values())}",
        "",
    ]
    return "\n".join(lines)


def native_sources() -> list[str]:
    found = [*ROOT.glob("csrc/core/**/*.cpp"), *ROOT.glob("csrc/torch/*.cpp")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def check_requirements() -> tuple[Path, list[str], str, Path]:
    if os.name != "posix":
        raise PlatformError(f"The compiled kernels build on Linux and macOS, not on {os.name}. {WITHOUT_NATIVE}")
    return find_torch(), find_compiler(), find_ninja(), find_python_headers()


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        torch_dir, compiler, ninja, python_include = check_requirements()
        output = Path(self.get_ext_fullpath(ext.name))
        folder = f"build/native/{sysconfig.get_config_var('SOABI')}"
        target = f"{folder}/{output.name}"

        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        (ROOT / folder / "build.ninja").write_text(
            ninja_file(
                compile_command(compiler, torch_dir, python_include),
                link_command(compiler, torch_dir),
                ext.sources,
                target,
            )
        )
        self.run_ninja([ninja, "-f", f"{folder}/build.ninja", target])
        output.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / target), str(output))

    def run_ninja(self, command: list[str]) -> None:
        jobs = os.environ.get("MAX_JOBS")
        if jobs is not None:
            if not jobs.isdigit() or int(jobs) == 0:
                raise PlatformError(f"MAX_JOBS={jobs!r}: a positive integer is needed.")
            command = [*command, "-j", jobs]
        sys.stdout.flush()
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise CompileError("the kernels did not compile; the compiler's output is above.")


class DistInfo(dist_info):
    """pip asks for the metadata first: refuse here, before it downloads another torch."""

    def run(self) -> None:
        if self.distribution.ext_modules:
            check_requirements()
        super().run()


def main() -> None:
    if Version(setuptools.__version__) < MIN_SETUPTOOLS:
        raise SystemExit(
            f"error: stompp_kernels is built with setuptools >= {MIN_SETUPTOOLS}, and "
            f"{sys.executable} has {setuptools.__version__}. Run `pip install -U setuptools`."
        )
    try:
        native = native_enabled()
    except PlatformError as error:
        raise SystemExit(f"error: {error}") from None
    setup(
        ext_modules=[Extension("stompp_kernels._C", native_sources())] if native else [],
        cmdclass={"build_ext": BuildNative, "dist_info": DistInfo},
    )


if __name__ == "__main__":
    main()
