"""Runs the wheel for 64-bit Arm under emulation: installs it beside torch, and runs its kernels and `stompp info`.

    python scripts/try_arm.py [--torch 2.10.0] [WHEEL]

A Debian for arm64 with Python is unpacked into build/arm, and torch's wheel and its dependencies for that Python beside
it: nothing is installed on this system. It needs Debian or Ubuntu with apt-get and dpkg-deb, whose package lists offer
arm64 (Ubuntu's own mirrors do not), qemu-aarch64, and the package index of pip. It takes 0.8 GB.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from check_headers import OLDEST
from try_wheel import ROOT, SMOKE, newest_wheel

FOLDER = ROOT / "build" / "arm"
TOOLS = {"qemu-aarch64": "qemu-user", "apt-get": "apt", "dpkg-deb": "dpkg"}
DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# What torch and this package import; torch's own list names CUDA's packages too, by the processor of this machine.
DEPENDENCIES = ("numpy", "safetensors", "filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

APT_CONFIG = """
Dir::State "{apt}";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""


def check_tools():
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            sys.exit(f"error: {tool} is not on PATH; on Debian and Ubuntu the package {package} has it")


def fetch(what, command, **variables):
    """Runs a command that downloads; ends the script with what it was for and what the command says."""
    print(f"fetching {what}", flush=True)
    command = [str(word) for word in command]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        sys.exit(f"error: {what} could not be fetched: {' '.join(command[:3])} says {said[-1]!r}")


def unpack_debian(folder):
    """A Debian with Python in a folder, from this system's mirrors and with none of its own state."""
    if folder.is_dir():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        apt, root = Path(scratch, "apt"), Path(scratch, "root")
        for name in ("lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "config").write_text(APT_CONFIG.format(apt=apt))
        variables = {"APT_CONFIG": str(apt / "config")}
        fetch("Debian's list of packages for arm64", ["apt-get", "--quiet", "update"], **variables)
        options = ["--quiet", "--yes", "--download-only"]
        fetch("Debian's Python for arm64", ["apt-get", *options, "install", *DEBIAN_PACKAGES], **variables)
        root.mkdir()
        for package in sorted((apt / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        if not (root / "lib").exists():  # later releases have everything in /usr
            (root / "lib").symlink_to("usr/lib")
        root.rename(folder)


def pip_command(target, version):
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *platforms]
    # What this Python compiles another release does not read; under emulation it takes minutes.
    compiles = "--compile" if version == "{}.{}".format(*sys.version_info[:2]) else "--no-compile"
    return [*command, compiles, "--implementation", "cp", "--python-version", version, "--target", target]


def install_torch(folder, version, torch):
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        pip = pip_command(Path(scratch, "site"), version)
        fetch(f"torch {torch} for Python {version} on arm64", [*pip, "--no-deps", f"torch=={torch}"])
        fetch(f"{', '.join(DEPENDENCIES)} for arm64", [*pip, "--upgrade", *DEPENDENCIES])
        Path(scratch, "site").rename(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, nargs="?", help="the wheel (default: the newest for aarch64 in dist)")
    parser.add_argument("--torch", default=OLDEST, help=f"the release of torch to run it with (default: {OLDEST})")
    arguments = parser.parse_args()
    check_tools()
    wheel = (arguments.wheel or newest_wheel("aarch64")).resolve()
    root = FOLDER / "debian"
    unpack_debian(root)
    emulated = ["qemu-aarch64", "-L", root, root / "usr" / "bin" / "python3"]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([*emulated, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    site = FOLDER / f"torch-{arguments.torch}-python{version}"
    install_torch(site, version, arguments.torch)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*map(str, pip_command(folder, version)), "--no-deps", "--no-index", str(wheel)], check=True)
        paths = os.pathsep.join([folder, str(site)])
        options = {"cwd": folder, "env": {"PYTHONPATH": paths, "PATH": os.environ["PATH"]}, "check": True}
        for arguments in (["-m", "stompp_kernels"], ["-W", "error::RuntimeWarning", SMOKE]):
            start = time.perf_counter()
            subprocess.run([*emulated, *arguments], **options)
            print(f"{wheel.name}: {time.perf_counter() - start:.0f} s under emulation", flush=True)


if __name__ == "__main__":
    main()
