"""Compiles stompp_kernels/libstompp_kernels.so and, where nvcc is, _cuda.so; the metadata is in pyproject.toml.

The first holds the torch-free core and the operators (libtorch stable ABI), the second the kernels for NVIDIA GPUs with
a CUDA runtime of its own; it builds against a torch for CPUs too. There is no Python in either: one build serves every
Python, and every torch from 2.10 on. Ninja runs the compilers directly: the flags are exactly those written here, and
a second build compiles only what changed, also under `pip install -e`, whose temporary directories would defeat that.

With STOMPP_CORE=1 it compiles the extension module _core as well, which binds the core to NumPy arrays by pybind11 and
needs no torch.

Environment: CXX, CXXFLAGS, LDFLAGS, MAX_JOBS as usual, flags that name a processor or loosen arithmetic (-march=native,
-ffast-math) being left out; CFLAGS, CPPFLAGS and ARCHFLAGS are not read. STOMPP_BUILD_NATIVE=0 leaves both libraries
out, STOMPP_CUDA=0 leaves _cuda out and STOMPP_CUDA=1 insists on it; CUDA_HOME says where nvcc is, TORCH_CUDA_ARCH_LIST
("8.0;9.0a;12.0+PTX") what _cuda is compiled for. STOMPP_TORCH_HEADERS names a directory with torch's "include" to
compile against in the place of an installed torch, for another platform say.

On Linux the libraries need nothing of a glibc beyond 2.28, whatever the building machine has:
csrc/torch/old_systems.cpp and older_symbols() see to it.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info
from setuptools.errors import CompileError, PlatformError

try:
    # Recent releases of setuptools bring both along.
    from packaging.version import InvalidVersion, Version
    from setuptools.command.bdist_wheel import bdist_wheel
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

CPP_LIBRARY, CUDA_LIBRARY = "stompp_kernels.libstompp_kernels", "stompp_kernels._cuda"
NUMPY_MODULE = "stompp_kernels._core"

# What both libraries hold.
SHARED_SOURCES = ("csrc/core/product/check_shapes.cpp", "csrc/torch/old_systems.cpp")

WITHOUT_NATIVE = "STOMPP_BUILD_NATIVE=0 installs stompp_kernels without its compiled kernels."
WITHOUT_CUDA = "STOMPP_CUDA=0 leaves out the kernels for NVIDIA GPUs."

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
CPU_FEATURE_FLAG = re.compile(
    r"--?m(arch|cpu|fpu|no-(avx|sse|fma)|avx|sse|ssse|fma|f16c|bmi|lzcnt|popcnt|amx|abm|adx|aes|apx|evex|gfni|movbe|"
    r"pclmul|sha|tbm|vaes|vpclmul|xop|3dnow)"
)
# Arithmetic that is not IEEE 754's: NaN packs as either sign, results differ between instruction sets, and a library
# that is linked with some of these sets the processor to flush denormals in the whole process.
FLOAT_FLAG = re.compile(
    r"--?(Ofast|ffast-math|funsafe-math|ffinite-math|fassociative-math|freciprocal-math|fno-signed-zeros|fno-honor-|"
    r"fapprox-func|ffp-contract=(?!off)|ffp-(model|eval)|fp-model|fdenormal-fp-math|fsingle-precision-constant|"
    r"mfpmath|mdaz-ftz|mrecip)"
)
# The same of nvcc's own flags.
NVCC_FLOAT_FLAG = re.compile(r"--?(use_fast_math|ftz[= ](true|1)|prec-(div|sqrt)[= ](false|0))")
# gcc and clang hand the next word to a part of theirs.
FORWARDS_NEXT = re.compile(r"-X\w+$|-mllvm$")


# The first nvcc that knows all of DEFAULT_ARCHITECTURES.
MIN_NVCC = (12, 8)
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
OLDEST_ARCHITECTURE = 75
# The newest glibc that a library may need, as the manylinux_2_28 wheels promise.
GLIBC = (2, 28)
# Words of $CXX that start a compiler and are none.
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")


def switch(name: str, default: str) -> str:
    value = os.environ.get(name, default)
    if value not in ("0", "1", default):
        raise PlatformError(f"{name}={value!r}: only 0 and 1 are allowed.")
    return value


def native_enabled() -> bool:
    return switch("STOMPP_BUILD_NATIVE", "1") == "1"


def numpy_enabled() -> bool:
    return switch("STOMPP_CORE", "0") == "1"


def find_torch() -> Path:
    """The directory of the torch to compile against, which must offer the stable ABI."""
    named = os.environ.get("STOMPP_TORCH_HEADERS", "")
    if named:
        if not Path(named, "include/torch/csrc/stable/library.h").is_file():
            raise PlatformError(
                f"STOMPP_TORCH_HEADERS={named!r} has no include/torch/csrc/stable/library.h: name the directory "
                "`torch` of an unpacked wheel of torch >= 2.10."
            )
        return Path(named).resolve()
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
        candidates = [kept_flags("CXX", shlex.split(os.environ["CXX"]))]
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


def find_nvcc() -> str | None:
    """nvcc where _cuda is to be built, else None."""
    wanted = switch("STOMPP_CUDA", "")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME", "")
    nvcc = shutil.which(os.path.join(home, "bin", "nvcc")) if home else None
    nvcc = nvcc or shutil.which("nvcc")
    if nvcc is None:
        problem = f"nvcc was found neither in CUDA_HOME={home!r} nor on PATH"
    else:
        version = nvcc_version(nvcc)
        if version >= MIN_NVCC:
            return nvcc
        needed, found = (".".join(map(str, v)) for v in (MIN_NVCC, version))
        problem = f"CUDA >= {needed} is needed, and {nvcc} is of {found}"
    if wanted == "1":
        raise PlatformError(f"STOMPP_CUDA=1 needs CUDA's compiler, but {problem}. {WITHOUT_CUDA}")
    if nvcc is not None:
        print(f"stompp_kernels/_cuda left out: {problem}")
    return None


def nvcc_version(nvcc: str) -> tuple[int, ...]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0, 0)


@dataclass(frozen=True)
class Architecture:
    """A GPU's architecture: 80, or 90a with what 9.0 alone has; PTX too, for GPUs that are yet to come."""

    number: int
    suffix: str = ""
    ptx: bool = False

    @property
    def name(self) -> str:
        return f"{self.number}{self.suffix}"

    def flags(self) -> list[str]:
        codes = [f"sm_{self.name}", *([f"compute_{self.name}"] if self.ptx else [])]
        return [f"-gencode=arch=compute_{self.name},code={code}" for code in codes]


def parse_architectures(text: str) -> list[Architecture]:
    """torch's syntax: "8.0;9.0a;12.0+PTX", also with spaces; oldest first. What is too old for b1 is left out."""
    found = {}
    for word in text.replace(";", " ").split():
        match = re.fullmatch(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise PlatformError(
                f"TORCH_CUDA_ARCH_LIST={text!r}: {word!r} is no architecture; write them as in "
                f'"{DEFAULT_ARCHITECTURES}". {WITHOUT_CUDA}'
            )
        number, suffix = int(match[1] + match[2]), match[3]
        before = found.get((number, suffix))
        found[number, suffix] = Architecture(number, suffix, bool(match[4]) or (before is not None and before.ptx))
    wanted = [found[key] for key in sorted(found) if key[0] >= OLDEST_ARCHITECTURE]
    if not wanted:
        raise PlatformError(f"TORCH_CUDA_ARCH_LIST={text!r}: name an architecture from 7.5 on. {WITHOUT_CUDA}")
    if len(wanted) < len(found):
        print(f"TORCH_CUDA_ARCH_LIST={text!r}: the kernels need 7.5; what is older is left out")
    return wanted


def requested_architectures(nvcc: str) -> list[Architecture]:
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    wanted = parse_architectures(text or DEFAULT_ARCHITECTURES)
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(map(int, re.findall(r"sm_(\d+)", listed)))
    unknown = [a.name for a in wanted if a.number not in known]
    if not text:  # a later nvcc may have dropped the oldest
        return [a for a in wanted if a.number in known]
    if unknown:
        raise PlatformError(f"TORCH_CUDA_ARCH_LIST={text!r}: {nvcc} does not know {', '.join(unknown)}. {WITHOUT_CUDA}")
    return wanted


def kernel_family(source: str) -> str:
    """ "80" of product_sm80.cu: the architecture that it is written for, "" for any."""
    match = re.search(r"_sm(\d+a?)\.cu$", source)
    return match[1] if match else ""


def architectures_of(source: str, wanted: list[Architecture], families: Iterable[str]) -> list[Architecture]:
    """Those of the wanted ones that a source is compiled for.

    A family is for what came from its architecture on to before the next family's; 90a for 9.0a alone, also where 9.0
    is wanted.
    """
    family = kernel_family(source)
    if not family:
        return wanted
    if family.endswith("a"):
        number = int(family[:-1])
        return [Architecture(number, "a")] if any(a.number == number for a in wanted) else []
    first = int(family)
    later = [int(name) for name in families if name.isdigit() and int(name) > first]
    return [a for a in wanted if first <= a.number < min(later, default=1000)]


def find_cuda_runtime(nvcc: str) -> str:
    """The static library, in one of the directories that nvcc links with."""
    shown = subprocess.run([nvcc, "--dryrun", "-shared", "-o", "none.so", "none.o"], capture_output=True, text=True)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", shown.stderr, re.MULTILINE)
    for folder in re.findall(r'"-L([^"]*)"', line[1] if line else ""):
        if (path := Path(folder, "libcudart_static.a")).is_file():
            return str(path.resolve())
    raise PlatformError(f"{nvcc} comes without libcudart_static.a, which the kernels are linked with. {WITHOUT_CUDA}")


def older_symbols(compiler: list[str]) -> dict[str, str]:
    """Symbols with a version after GLIBC, each with the last one before: {"dlopen": "dlopen@GLIBC_2.2.5"}.

    libcudart_static.a names none, so a linker takes the newest. A loader finds an older one in whichever of glibc's
    libraries it is.
    """
    libc = subprocess.run([*compiler, "-print-file-name=libc.so.6"], capture_output=True, text=True).stdout.strip()
    listed = subprocess.run(["nm", "-D", "--defined-only", libc], capture_output=True, text=True).stdout
    versions: dict[str, list[tuple[int, ...]]] = {}
    for name, number in re.findall(r" (\w+)@@?GLIBC_([\d.]+)$", listed, re.MULTILINE):
        versions.setdefault(name, []).append(tuple(map(int, number.split("."))))
    found = {}
    for name, numbers in versions.items():
        old = [number for number in numbers if number <= GLIBC]
        if old and max(numbers) > GLIBC:
            found[name] = f"{name}@GLIBC_{'.'.join(map(str, max(old)))}"
    return found


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


def find_python_headers() -> list[Path]:
    """The directories of Python's headers and of pybind11's: the installed ones, or those that come with torch."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise PlatformError(
            f"STOMPP_CORE=1 needs the headers of Python {sysconfig.get_python_version()}, and {include / 'Python.h'} "
            "does not exist. Install the package that has them (python3-dev on Debian and Ubuntu, python3-devel on "
            "Fedora)."
        )
    for name, below in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else spec.submodule_search_locations or []
        for found in (Path(folder, below) for folder in folders):
            if (found / "pybind11" / "numpy.h").is_file():
                return [include, found]
    raise PlatformError("STOMPP_CORE=1 needs pybind11, alone or as torch brings it. Run `pip install pybind11`.")


def user_flags(variable: str) -> list[str]:
    """The flags of an environment variable that leave the kernels' results and instruction sets as they are."""
    return kept_flags(variable, shlex.split(os.environ.get(variable, "")))


def kept_flags(variable: str, words: list[str]) -> list[str]:
    """Those of a variable's flags that do not change what the kernels compute, or on which processor.

    People and distributions set flags for all that they build. The scalar kernels would get instructions that the
    machine they run on may lack, and NaN or -0.0 would pack as any bit. csrc/core/base/bits.h refuses what comes in
    another way, by a wrapper or a configuration file of the compiler.
    """
    kept: list[str] = []
    left_out = []
    for word in expand_response_files(variable, words):
        if not (CPU_FEATURE_FLAG.match(word) or FLOAT_FLAG.match(word)):
            kept.append(word)
            continue
        forward = [kept.pop()] if kept and FORWARDS_NEXT.match(kept[-1]) else []
        left_out += [*forward, word]
    if left_out:
        print(
            f"{variable}: {' '.join(left_out)} left out; kernels are dispatched at run time, and their arithmetic is "
            "that of IEEE 754"
        )
    return kept


def expand_response_files(variable: str, words: list[str]) -> Iterator[str]:
    """The words, and in the place of @file those that are in the file."""
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        try:
            text = Path(ROOT, word[1:]).read_text()
        except OSError as error:
            raise PlatformError(f"{variable} names the file {word!r}, which cannot be read ({error}).") from None
        yield from expand_response_files(variable, shlex.split(text))


def check_nvcc_flags() -> None:
    """Refuses what nvcc itself reads from the environment where it changes results."""
    for variable in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        text = os.environ.get(variable, "")
        found = [match[0] for match in NVCC_FLOAT_FLAG.finditer(text)]
        # The host compiler's come as in -Xcompiler=-ffast-math,-mavx2.
        words = re.split(r"[\s,]+|(?<=-Xcompiler)=|(?<=-compiler-options)=", text)
        found += [word for word in words if CPU_FEATURE_FLAG.match(word) or FLOAT_FLAG.match(word)]
        if found:
            raise PlatformError(
                f"{variable} holds {' '.join(found)}, which nvcc reads by itself: kernels would flush denormals, "
                f"lose NaN or need this machine's processor. Unset {variable} for this build. {WITHOUT_CUDA}"
            )


def include_flags(torch_dir: Path) -> list[str]:
    # A system directory, so that warnings are about our own code only.
    return ["-Icsrc", "-isystem", str(torch_dir / "include")]


def prefix_map(torch_dir: Path) -> str:
    """torch's headers put their file names into error messages: not those of the build host."""
    return f"-ffile-prefix-map={torch_dir.parent}=."


def compile_command(compiler: list[str], torch_dir: Path) -> list[str]:
    return [*compiler, *CXX_FLAGS, prefix_map(torch_dir), *include_flags(torch_dir), *user_flags("CXXFLAGS")]


def numpy_compile_command(compiler: list[str]) -> list[str]:
    # The pybind11 that torch before 2.13 brings refuses torch's macro, and torch is not needed here.
    flags = [flag for flag in CXX_FLAGS if "TORCH" not in flag]
    includes = [word for path in find_python_headers() for word in ("-isystem", str(path))]
    return [*compiler, *flags, "-Icsrc", *includes, *user_flags("CXXFLAGS")]


def link_command(compiler: list[str], libraries: list[str]) -> list[str]:
    if sys.platform == "darwin":
        kind = ["-bundle", "-undefined", "dynamic_lookup"]
    else:
        kind = ["-shared", "-Wl,--as-needed"]
    # An -Ofast of a compiler's wrapper would link what makes the processor flush denormals; the last -O replaces it.
    return [*compiler, "-O3", *kind, "$in", *libraries, *user_flags("LDFLAGS")]


def torch_libraries(folder: str, *names: str) -> list[str]:
    # No rpath: `import torch` comes first, and the loader finds its libraries by their names.
    if sys.platform == "darwin":
        return [f"-L{folder}", *(f"-l{name}" for name in names)]
    # A linker takes libtorch, which stands for all others, and what is empty for unused.
    empty = bool(os.environ.get("STOMPP_TORCH_HEADERS"))
    kept = [f"-l{name}" for name in names if empty or name == "torch"]
    rest = [f"-l{name}" for name in names if f"-l{name}" not in kept]
    return [f"-L{folder}", "-Wl,--no-as-needed", *kept, "-Wl,--as-needed", *rest]


def to_host(flags: Iterable[str]) -> list[str]:
    """Flags of the C++ compiler among nvcc's, which takes a comma for the beginning of another one."""
    return ["-Xcompiler=" + flag.replace(",", "\\,") for flag in flags]


def nvcc_command(nvcc: str, compiler: list[str]) -> list[str]:
    check_nvcc_flags()
    if not os.environ.get("CXX", "").strip():
        return [nvcc]  # finds its own
    words = [word for word in compiler if os.path.basename(word) not in LAUNCHERS] or compiler
    return [nvcc, f"-ccbin={words[0]}", *to_host(words[1:])]


def cuda_compile_command(nvcc: list[str], torch_dir: Path, defines: list[str]) -> list[str]:
    shared = [flag for flag in CXX_FLAGS if flag.startswith(("-std", "-O", "-D"))]
    host = [flag for flag in CXX_FLAGS if flag not in shared]
    return [
        *nvcc,
        *shared,
        *to_host([*host, prefix_map(torch_dir), *user_flags("CXXFLAGS")]),
        "--expt-relaxed-constexpr",
        # One file is compiled for as many architectures at once; ninja runs files side by side as well.
        f"--threads={min(4, os.cpu_count() or 1)}",
        *defines,
        *include_flags(torch_dir),
        "$flags",
    ]


def cuda_link_command(compiler: list[str], torch_folder: str) -> list[str]:
    # libtorch stands for libtorch_cuda, which a torch for CPUs does not have.
    torch = torch_libraries(torch_folder, "torch", "torch_cpu", "c10")
    # A glibc before 2.34 has in these what the CUDA runtime calls. The runtime must neither be seen by others nor be
    # replaced by one that is loaded already.
    glibc = ["-Wl,--no-as-needed", "-l:libpthread.so.0", "-l:libdl.so.2", "-l:librt.so.1", "-Wl,--as-needed"]
    return [*compiler, "-O3", "-shared", "-Wl,--exclude-libs,ALL", "$in", *torch, *glibc, *user_flags("LDFLAGS")]


def shell(command: list[str]) -> str:
    """A command for ninja, whose own variables stay as they are."""
    return " ".join(word if word in ("$in", "$flags") else shlex.quote(word).replace("$", "$$") for word in command)


class NinjaFile:
    """Collects what is compiled and linked, with which commands.

    Paths are relative to ROOT: none of the build host's needs escaping.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lines = [f"builddir = {folder}"]
        self.built: set[str] = set()

    def rule(self, name: str, command: list[str], compiles: bool = True) -> None:
        arguments = "-MD -MF $out.d -c $in -o $out" if compiles else "-o $out"
        dependencies = ["  depfile = $out.d", "  deps = gcc"] if compiles else []
        description = f"  description = {name.upper()} {'$in' if compiles else '$out'}"
        self.lines += [f"rule {name}", f"  command = {shell(command)} {arguments}", *dependencies, description]

    def compile(self, rule: str, source: str, flags: Iterable[str] = ()) -> str:
        """The object of a source. The core's have one in common."""
        object_ = f"{self.folder}/{os.path.splitext(source)[0]}.o"
        if object_ not in self.built:
            self.lines += [f"build {object_}: {rule} {source}", *([f"  flags = {shell(list(flags))}"] if flags else [])]
            self.built.add(object_)
        return object_

    def link(self, rule: str, target: str, objects: Iterable[str]) -> None:
        self.lines.append(f"build {target}: {rule} {' '.join(objects)}")

    def make(self, target: str, command: list[str]) -> None:
        """A file that a command writes without a source of ours."""
        rule = Path(target).stem
        self.lines += [f"rule {rule}", f"  command = {shell(command)}", f"build {target}: {rule}"]

    def write(self) -> str:
        path = f"{self.folder}/build.ninja"
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text("\n".join([*self.lines, ""]))
        return path


def sources_in(*patterns: str) -> list[str]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def native_sources() -> list[str]:
    return sources_in("csrc/core/**/*.cpp", "csrc/torch/*.cpp")


def cuda_sources() -> list[str]:
    return sources_in("csrc/cuda/**/*.cu", "csrc/torch/cuda/*.cpp", *SHARED_SOURCES)


def check_requirements() -> tuple[Path | None, list[str], str]:
    if os.name != "posix":
        raise PlatformError(f"The compiled kernels build on Linux and macOS, not on {os.name}. {WITHOUT_NATIVE}")
    return find_torch() if native_enabled() else None, find_compiler(), find_ninja()


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        # Any Python loads these, and their files do not bear its name. setuptools asks with and without package.
        plain = any(library.endswith(f".{name}") for library in (CPP_LIBRARY, CUDA_LIBRARY))
        return os.path.join(*package, f"{name}.so") if plain else super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        torch_dir, compiler, ninja = check_requirements()
        # A folder for each set of headers, so that neither build makes the other begin anew.
        kind = "-headers" if os.environ.get("STOMPP_TORCH_HEADERS") else ""
        file = NinjaFile(f"build/native/{sysconfig.get_platform()}{kind}")
        if torch_dir is not None:
            torch_folder = self.torch_folder(file, compiler, torch_dir)
            file.rule("cxx", compile_command(compiler, torch_dir))
            file.rule("link", link_command(compiler, torch_libraries(torch_folder, "torch_cpu", "c10")), compiles=False)
        targets = {}
        for ext in self.extensions:
            output = Path(self.get_ext_fullpath(ext.name))
            target = targets[output] = f"{file.folder}/{output.name}"
            if ext.name == CUDA_LIBRARY:
                self.add_cuda(file, ext.sources, target, compiler, torch_dir, torch_folder)
            elif ext.name == NUMPY_MODULE:
                self.add_numpy(file, ext.sources, target, compiler)
            else:
                file.link("link", target, [file.compile("cxx", source) for source in ext.sources])
        self.run_ninja([ninja, "-f", file.write(), *targets.values()])
        for output, target in targets.items():
            output.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(ROOT / target), str(output))

    def torch_folder(self, file: NinjaFile, compiler: list[str], torch_dir: Path) -> str:
        """The directory of torch's libraries; where there are headers alone, of empty ones of the same names."""
        if not os.environ.get("STOMPP_TORCH_HEADERS"):
            return str(torch_dir / "lib")
        folder = f"{file.folder}/torch"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        for name in () if sys.platform == "darwin" else ("libtorch.so", "libtorch_cpu.so", "libc10.so"):
            empty = ["-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{name}", "-o", f"{folder}/{name}"]
            self.spawn([*compiler, *empty])
        return folder

    def add_numpy(self, file: NinjaFile, sources: list[str], target: str, compiler: list[str]) -> None:
        file.rule("cxx_numpy", numpy_compile_command(compiler))
        file.rule("link_numpy", link_command(compiler, []), compiles=False)
        # The core's objects are the library's, where that is built too.
        own = "cxx" if native_enabled() else "cxx_numpy"
        objects = [file.compile(own if source.startswith("csrc/core/") else "cxx_numpy", source) for source in sources]
        file.link("link_numpy", target, objects)

    def add_cuda(
        self,
        file: NinjaFile,
        sources: list[str],
        target: str,
        compiler: list[str],
        torch_dir: Path,
        torch_folder: str,
    ) -> None:
        nvcc = find_nvcc()
        assert nvcc is not None, "extensions() asked for it"
        wanted = requested_architectures(nvcc)
        families = sorted({kernel_family(source) for source in sources} - {""})
        compiled_for = {source: architectures_of(source, wanted, families) for source in sources}
        held = [f for f in families if any(compiled_for[s] for s in sources if kernel_family(s) == f)]
        names = "_".join(name for a in wanted for name in (a.name, *([f"{a.name}ptx"] if a.ptx else [])))
        defines = [f"-DSTOMPP_CUDA_ARCHITECTURES={names}", *(f"-DSTOMPP_SM{family.upper()}" for family in held)]
        file.rule("nvcc", cuda_compile_command(nvcc_command(nvcc, compiler), torch_dir, defines))
        file.rule("link_cuda", cuda_link_command(compiler, torch_folder), compiles=False)
        objects = []
        for source in sources:
            if source in SHARED_SOURCES:
                objects.append(file.compile("cxx", source))
            elif source.endswith(".cpp"):
                # Bindings have no code for a GPU, but include CUDA's headers, which nvcc finds.
                objects.append(file.compile("nvcc", source, ["-x=cu", wanted[0].flags()[0]]))
            elif compiled_for[source]:
                flags = [flag for a in compiled_for[source] for flag in a.flags()]
                objects.append(file.compile("nvcc", source, flags))
        file.link("link_cuda", target, [*objects, self.add_cuda_runtime(file, compiler, find_cuda_runtime(nvcc))])

    def add_cuda_runtime(self, file: NinjaFile, compiler: list[str], library: str) -> str:
        """The CUDA runtime, its calls of glibc bound to versions that an old one has."""
        names, copy = f"{file.folder}/older_symbols.txt", f"{file.folder}/libcudart_static.a"
        (ROOT / file.folder).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name} {older}\n" for name, older in sorted(older_symbols(compiler).items()))
        (ROOT / names).write_text(text)
        file.make(copy, ["objcopy", f"--redefine-syms={names}", library, copy])
        return copy

    def run_ninja(self, command: list[str]) -> None:
        jobs = os.environ.get("MAX_JOBS")
        if jobs is not None:
            if not jobs.isdigit() or int(jobs) == 0:
                raise PlatformError(f"MAX_JOBS={jobs!r}: a positive integer is needed.")
            command = [*command, "-j", jobs]
        sys.stdout.flush()
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            hint = f" {WITHOUT_CUDA}" if any(ext.name == CUDA_LIBRARY for ext in self.extensions or []) else ""
            raise CompileError(f"the kernels did not compile; the compiler's output is above.{hint}")


class Wheel(bdist_wheel):
    """A wheel for any Python 3 of a platform: its libraries have no symbol of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        interpreter, abi, platform = super().get_tag()
        libraries = {ext.name for ext in self.distribution.ext_modules or []}
        return (
            ("py3", "none", platform) if libraries and NUMPY_MODULE not in libraries else (interpreter, abi, platform)
        )


class DistInfo(dist_info):
    """pip asks for the metadata first: refuse here, before it downloads another torch."""

    def run(self) -> None:
        if self.distribution.ext_modules:
            check_requirements()
        super().run()


def extensions() -> list[Extension]:
    found = []
    if native_enabled():
        found.append(Extension(CPP_LIBRARY, native_sources()))
        if find_nvcc() is not None:
            found.append(Extension(CUDA_LIBRARY, cuda_sources()))
    elif switch("STOMPP_CUDA", "") == "1":
        raise PlatformError("STOMPP_BUILD_NATIVE=0 and STOMPP_CUDA=1 contradict each other.")
    if numpy_enabled():
        found.append(Extension(NUMPY_MODULE, sources_in("csrc/core/**/*.cpp", "csrc/numpy/*.cpp")))
    return found


def main() -> None:
    if Version(setuptools.__version__) < MIN_SETUPTOOLS:
        raise SystemExit(
            f"error: stompp_kernels is built with setuptools >= {MIN_SETUPTOOLS}, and "
            f"{sys.executable} has {setuptools.__version__}. Run `pip install -U setuptools`."
        )
    try:
        libraries = extensions()
    except PlatformError as error:
        raise SystemExit(f"error: {error}") from None
    setup(
        ext_modules=libraries,
        cmdclass={"bdist_wheel": Wheel, "build_ext": BuildNative, "dist_info": DistInfo},
    )


if __name__ == "__main__":
    main()
