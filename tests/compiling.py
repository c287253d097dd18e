"""C++ programs that tests compile, and the core that several of them link."""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE_FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]


def compiler():
    """The command of the C++ compiler."""
    return os.environ.get("CXX", "c++").split()


def compile_program(command, flags, sources, target, link=()):
    """Compiles C++ sources, kernels among them, as many at once as there are cores, and links them to ``target``.

    Args:
        command: of the compiler.
        link: further arguments of the link alone.
    """

    def compile_one(numbered):
        index, source = numbered
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        output = target.with_name(f"{target.name}_{index}.o")
        subprocess.run([*command, *flags, *language, "-c", source, "-o", output], check=True)
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, enumerate(sources)))
    subprocess.run([*command, *flags, *objects, *link, "-o", target], check=True)


def core_object():
    """The torch-free core as one object file: made by one of the tests' processes, and again where sources changed."""
    files = sorted(path for path in ROOT.glob("csrc/core/**/*") if path.is_file())
    digest = hashlib.sha256(subprocess.run([*compiler(), "--version"], capture_output=True, check=True).stdout)
    digest.update(repr(CORE_FLAGS).encode())
    for path in files:
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    target = ROOT / "build" / "tests" / f"core_{digest.hexdigest()[:16]}.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for older in target.parent.glob("core_*.o"):
                older.unlink()
            whole, sources = Path(scratch, "core.o"), [path for path in files if path.suffix == ".cpp"]
            compile_program(compiler(), CORE_FLAGS, sources, whole, ["-r", "-nostdlib"])
            whole.rename(target)
    return target
