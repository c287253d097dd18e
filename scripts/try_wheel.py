"""Installs a wheel as a user does, where no compiler is on PATH, and runs every kernel of this processor.

    python scripts/try_wheel.py [WHEEL]

The environment is a new one that sees the packages of the Python that runs this, torch among them.
"""

import argparse
import os
import resource
import site
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from setup_env import ROOT, wheels_in

SMOKE = Path(__file__).resolve().with_name("smoke.py")


def newest_wheel(machine=None):
    found = wheels_in(ROOT / "dist", machine)
    if not found:
        sys.exit(f"error: dist has no wheel for {machine or 'this machine'}; `make wheels` builds it")
    return found[-1]


def environment(folder):
    """A new environment that sees this Python's packages; its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    # Plain directories: an editable installation of this package in one of them is not seen.
    visible = [path for path in site.getsitepackages() if path in sys.path]
    (packages / "parent.pth").write_text("".join(f"import sys; sys.path.append({path!r})\n" for path in visible))
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, nargs="?", help="the wheel (default: the newest for this machine in dist)")
    wheel = (parser.parse_args().wheel or newest_wheel()).resolve()
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder, "venv"))
        # No PATH but the environment's: nothing can be compiled.
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CXX", "STOMPP_CPU")}
        options = {"cwd": folder, "env": {**variables, "PATH": str(python.parent)}, "check": True}
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
        subprocess.run(command, **options)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{wheel.name}: installed in {seconds:.1f} s, {busy:.1f} s of them on a processor", flush=True)
        subprocess.run([python, "-m", "stompp_kernels"], **options)
        subprocess.run([python, "-W", "error::RuntimeWarning", SMOKE], **options)


if __name__ == "__main__":
    main()
