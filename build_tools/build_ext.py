"""The command of setuptools that compiles the libraries: it writes a file for ninja and copies what ninja makes."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

from .architectures import architectures_of, kernel_family, requested_architectures
from .commands import (
    compile_command,
    compression_flags,
    cuda_compile_command,
    cuda_link_command,
    link_command,
    numpy_compile_command,
    nvcc_command,
    torch_libraries,
)
from .cuda_runtime import find_cuda_runtime, older_symbols
from .extensions import CPP_LIBRARY, CUDA_LIBRARY, NUMPY_MODULE, SHARED_SOURCES
from .ninja_file import NinjaFile
from .settings import ROOT, WITHOUT_CUDA, WITHOUT_NATIVE, native_enabled
from .tools import find_compiler, find_ninja, find_nvcc, find_torch, nvcc_version


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
        options = [*defines, *compression_flags(nvcc_version(nvcc))]
        file.rule("nvcc", cuda_compile_command(nvcc_command(nvcc, compiler), torch_dir, options))
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
