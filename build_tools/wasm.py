"""WebAssembly: the compiler that ziglang of PyPI brings, wasmtime, which runs programs, and libstompp as a module.

    python -m build_tools.wasm build/wasm/stompp.wasm

The module needs WASI's few functions and 128-bit vectors. It exports the functions of stompp.h, malloc and free.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .settings import ROOT

COMPILER = (sys.executable, "-m", "ziglang", "c++", "-target", "wasm32-wasi")
VECTORS = "-msimd128"
# WASI has no exceptions: what would be thrown ends the module. `-ffp-contract=off`: as everywhere, see CMakeLists.txt.
FLAGS = ("-std=c++17", "-Os", "-fno-exceptions", "-DNDEBUG", "-ffp-contract=off", f"-I{ROOT / 'csrc'}")
# A library that is called, and has no main.
LIBRARY = ("-mexec-model=reactor", "-fvisibility=hidden", "-Wl,--export-dynamic", "-Wl,--strip-all")
LIBRARY += ("-Wl,--export=malloc", "-Wl,--export=free")


def core_sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "core").rglob("*.cpp"))


def compile_module(module: Path, sources: Iterable[Path], flags: Sequence[str]) -> Path:
    """Compiles sources to a module.

    Raises:
        subprocess.CalledProcessError: they do not compile; the compiler has said why.
    """
    module.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*COMPILER, *FLAGS, *flags, *sources, "-o", module], check=True)
    return module


def compile_library(module: Path, flags: Sequence[str] = (VECTORS,)) -> Path:
    runtime = sorted((ROOT / "csrc" / "runtime").rglob("*.cpp"))
    sources = [path for path in (*core_sources(), *runtime) if path.parent.name not in ("masks", "tool")]
    return compile_module(module, sources, ("-DSTOMPP_ONLY_INFERENCE", *LIBRARY, *flags))


def run_program(
    module: Path, arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a program under wasmtime, and returns its exit status and what it printed."""
    import wasmtime

    engine = wasmtime.Engine()
    linker, store, wasi = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        wasi.argv = [module.name, *arguments]
        wasi.env = list((variables or {}).items())
        wasi.stdout_file = str(printed)
        store.set_wasi(wasi)
        start = linker.instantiate(store, wasmtime.Module.from_file(engine, str(module))).exports(store)["_start"]
        status = 0
        try:
            start(store)
        except wasmtime.ExitTrap as end:
            status = end.code
        del store, start, linker  # they hold the file
        return status, printed.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m build_tools.wasm", description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path, help="where the module goes")
    module = compile_library(parser.parse_args().module)
    print(f"{module} has {module.stat().st_size} bytes")


if __name__ == "__main__":
    main()
