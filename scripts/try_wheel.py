"""Installs a wheel as a user does, where no compiler is on PATH, and runs every kernel of this processor.

    python scripts/try_wheel.py [WHEEL]

The environment is a new one that sees the packages of the Python that runs this, torch among them.
"""

import argparse
import os
import platform
import site
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Prints what the first import costs beyond torch's, and compares each implementation with plain PyTorch.
TRY = """
import time, torch
start = time.perf_counter()
import stompp_kernels as sk
seconds = time.perf_counter() - start
from stompp_kernels import ops
found = [item.name for item in sk.implementations() if item.available and item.device == "cpu"]
assert "reference" not in found, found
for name in found:
    with sk.use_implementation(name):
        for M, N, K in [(1, 10, 70), (67, 33, 300), (130, 64, 1024)]:
            a, w = torch.randn(M, K), torch.randn(N, K)
            sums = ops.bgemm(ops.pack_signs(a), ops.pack_weight(w))
            assert torch.equal(sums, (torch.where(a < 0, -1.0, 1.0) @ torch.where(w < 0, -1.0, 1.0).T).int()), name
        x, kernel = torch.randn(2, 40, 9, 9), torch.randn(12, 40, 3, 3)
        sums = ops.bconv2d(ops.pack_signs(x.permute(0, 2, 3, 1)), ops.pack_conv_weight(kernel), padding=1)
        signs = torch.nn.functional.conv2d(torch.where(x < 0, -1.0, 1.0), torch.where(kernel < 0, -1.0, 1.0), padding=1)
        assert torch.equal(sums, signs.permute(0, 2, 3, 1).int()), name
print(f"imported {seconds:.2f} s after torch; right: {', '.join(found)}")
"""


def find_wheel():
    kind = "macosx" if sys.platform == "darwin" else "manylinux"
    found = sorted(ROOT.glob(f"dist/stompp_kernels-*-{kind}_*_{platform.machine()}.whl"), key=os.path.getmtime)
    if not found:
        sys.exit(f"error: dist has no wheel for {kind} on {platform.machine()}; `make wheels` builds it")
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
    wheel = (parser.parse_args().wheel or find_wheel()).resolve()
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder, "venv"))
        # No PATH but the environment's: nothing can be compiled.
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CXX", "STOMPP_CPU")}
        options = {"cwd": folder, "env": {**variables, "PATH": str(python.parent)}, "check": True}
        start = time.perf_counter()
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
        subprocess.run(command, **options)
        print(f"{wheel.name}: installed in {time.perf_counter() - start:.1f} s", flush=True)
        subprocess.run([python, "-m", "stompp_kernels"], **options)
        subprocess.run([python, "-W", "error::RuntimeWarning", "-c", TRY], **options)


if __name__ == "__main__":
    main()
