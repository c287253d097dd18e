"""Prepares the virtual environment of `make`: torch, the build tools and this package (editable).

    python3 scripts/setup_env.py [--venv .venv] [--extras demo,test] [--torch 2.10.0]
    python3 scripts/setup_env.py [--venv .venv] --tools

A new environment is made with the Python that runs this script. If that Python has torch >= 2.10,
the environment sees its packages and nothing replaces that torch; otherwise the CPU-sized torch is
installed. With --torch that release is installed, and an environment with another one is refused.
An existing environment that this script did not make is used as it is, its torch too. With --tools it gets what builds
and checks wheels, and neither torch nor this package.

What was done is written to a file in the environment, and only what changed since is done again.
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stompp_kernels"
CPU_LIBRARY = PACKAGE / "libstompp_kernels.so"
CUDA_LIBRARY = PACKAGE / "_cuda.so"  # built where nvcc is found
STATE_FILE = "stompp-setup.json"
MIN_PYTHON = (3, 10)
MIN_TORCH = (2, 10)
DEFAULT_TORCH = "2.13.0"
# Where the wheels without CUDA are; on PyPI, those for Linux x86-64 bring gigabytes of CUDA.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# Most modules of torch, scipy and sympy are never imported; Python compiles those that are when they are.
PIP_INSTALL = ("-m", "pip", "install", "--no-compile", "--quiet")

PROBE_PYTHON = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
# The version that pip knows: PyPI's torch 2.14.1 calls itself 2.14.1+cu130, which pip would not find.
PROBE_VERSION = "from importlib import metadata; print(metadata.version('torch'))"
PROBE_TORCH = """
from importlib import metadata
try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    print("none")
else:
    try:
        print(metadata.version("torch"))
    except metadata.PackageNotFoundError:
        print(torch.__version__)
"""


def fail(message):
    sys.exit(f"error: {message}")


def say(message):
    print(f"setup: {message}", flush=True)


def call(command, **options):
    if subprocess.run([str(part) for part in command], **options).returncode != 0:
        fail(f"this command failed: {' '.join(str(part) for part in command)}")


def probe(python, code):
    """What `code` prints, or None if it fails, and its last line of error output."""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if result.returncode != 0:
        return None, (result.stderr.strip().splitlines() or ["no error message"])[-1]
    return result.stdout.strip(), ""


def numbers(version):
    return tuple(int(part) for part in re.match(r"[\d.]*\d", version).group().split("."))


def read_state(venv):
    try:
        return json.loads((venv / STATE_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_state(venv, state):
    (venv / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")


def digest(paths, variables):
    result = hashlib.sha256()
    for path in paths:
        result.update(f"{path.relative_to(ROOT)}\0".encode())
        result.update(path.read_bytes())
    for name in variables:
        result.update(f"{name}={os.environ.get(name, '')}\0".encode())
    return result.hexdigest()


def requirements(name):
    """A list of pyproject.toml."""
    # tomllib came with Python 3.11; a list of strings reads the same in Python.
    text = (ROOT / "pyproject.toml").read_text()
    return ast.literal_eval(re.search(rf"^{name} = (\[.*\])$", text, re.MULTILINE).group(1))


def is_release(version, wanted):
    """Whether an installed torch, "2.13.0+cpu" for example, is of a release."""
    return version.partition("+")[0] == wanted


def create(venv, release):
    """Makes the environment for a release of torch, or for any if it is None, and returns its state."""
    version, error = probe(sys.executable, PROBE_TORCH)
    keeps_torch = version not in (None, "none") and numbers(version) >= MIN_TORCH
    if keeps_torch and release is not None and not is_release(version, release):
        keeps_torch, error = False, f"{version} is not {release}"
    if version != "none" and not keeps_torch:
        say(f"not using the torch of {sys.executable}: {error or f'{version} is older than 2.10'}")
    in_venv = sys.prefix != sys.base_prefix

    state = {"created": True}
    venv.mkdir(parents=True)
    write_state(venv, state)  # first, so that an interrupted run is recognised and repeated
    command = [sys.executable, "-m", "venv"]
    if keeps_torch and not in_venv:
        command.append("--system-site-packages")
    say(f"making {venv} with {sys.executable}")
    if subprocess.run([*command, str(venv)]).returncode != 0:
        fail(
            f"{sys.executable} could not make a virtual environment; on Debian and Ubuntu, "
            "install the package python3-venv."
        )
    if keeps_torch and in_venv:
        # --system-site-packages would reach past this virtual environment to its base.
        visible = [folder for folder in site.getsitepackages() if folder in sys.path]
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        folder, _ = probe(venv / "bin" / "python", code)
        Path(folder, "stompp-parent.pth").write_text("\n".join(visible) + "\n")
    return state


def prepare_python(venv, release):
    """An environment with a Python that is new enough; returns its state."""
    python = venv / "bin" / "python"
    state = read_state(venv)
    if venv.exists():
        version, error = probe(python, PROBE_PYTHON) if python.exists() else (None, "no Python")
        if state.get("created"):
            if version == "{}.{}".format(*sys.version_info[:2]):
                return state
            say(f"{venv} is unfinished, or of another Python: making it anew")
            shutil.rmtree(venv)
        elif version is None:
            fail(f"{venv} is not a virtual environment with pip ({error}). Remove it or set VENV=.")
        elif numbers(version) < MIN_PYTHON:
            fail(f"{venv} has Python {version}; stompp_kernels needs 3.10 or later.")
        else:
            return state
    return create(venv, release)


def cpu_index_answers():
    request = urllib.request.Request(f"{CPU_INDEX}/torch/", headers={"User-Agent": "pip"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # an answer all the same: let pip try
    except OSError:
        return False
    return True


def check_torch(python, venv, release):
    """The version of the environment's torch, None without one; ends the script where that is not the one to use."""
    version, error = probe(python, PROBE_TORCH)
    if version is None:
        fail(f"{venv} has a torch that cannot be imported ({error}). Repair it or set VENV=.")
    if version == "none":
        return None
    if numbers(version) < MIN_TORCH:
        fail(f"{venv} has torch {version}; stompp_kernels needs 2.10 or later.")
    if release is not None and not is_release(version, release):
        fail(f"{venv} has torch {version}, and TORCH={release} asks for another. Leave out VENV= or remove {venv}.")
    say(f"keeping torch {version}")
    return version


def install_torch(python, venv, release):
    """Installs torch where there is none; the version that is there now."""
    version = check_torch(python, venv, release)
    if version is not None:
        return version
    wanted = f"torch=={release or DEFAULT_TORCH}"
    say(f"installing {wanted} (CPU)")
    pip = [python, *PIP_INSTALL]
    if cpu_index_answers():
        # Only torch itself: what it depends on comes from the configured index below.
        command = [*pip, "--no-deps", "--index-url", CPU_INDEX, wanted]
        if subprocess.run([str(part) for part in command]).returncode != 0:
            say(f"{CPU_INDEX} has no fitting {wanted}; trying the configured index")
    call([*pip, wanted])
    return probe(python, PROBE_VERSION)[0]


def install(venv, extras, release):
    python = venv / "bin" / "python"
    torch_version = install_torch(python, venv, release)  # named below, so that no extra brings another one
    pip = [python, *PIP_INSTALL]
    call([*pip, *requirements("requires")])
    say("installing stompp_kernels; compiling it takes a minute or two, and with CUDA's nvcc two more")
    call([*pip, "--no-build-isolation", "-e", f".[{','.join(extras)}]", f"torch=={torch_version}"], cwd=ROOT)


def install_tools(venv, state):
    wanted = [*requirements("requires"), *requirements("dev")]
    if state.get("tools") != wanted:
        say("installing what builds and checks wheels")
        call([venv / "bin" / "python", *PIP_INSTALL, *wanted])
        write_state(venv, {**state, "tools": wanted})


def wheels_in(folder, machine=None):
    """The wheels of this version in a folder that a machine can install, this one by default; the newest last."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    platforms = f"{'macosx' if sys.platform == 'darwin' else 'manylinux'}_*_{machine or platform.machine()}"
    return sorted(folder.glob(f"stompp_kernels-{version}-py3-none-{platforms}.whl"), key=os.path.getmtime)


def find_wheel(folder, sources):
    """A wheel in a folder that this machine can install and that no source is newer than; None if there is none."""
    wheels = wheels_in(folder)
    if not wheels:
        return None
    newer = [path for path in sources if path.stat().st_mtime > wheels[-1].stat().st_mtime]
    if newer:
        say(f"not using {wheels[-1]}: {newer[0].relative_to(ROOT)} is newer")
        return None
    return wheels[-1]


def use_wheel(venv, state, wheel, extras, release):
    done = {"wheel": f"{wheel.name} {wheel.stat().st_mtime}", "extras": extras}
    if all(state.get(key) == value for key, value in done.items()):
        return
    python = venv / "bin" / "python"
    torch_version = install_torch(python, venv, release)
    say(f"installing {wheel}; nothing is compiled")
    pip = [python, *PIP_INSTALL]
    call([*pip, "--force-reinstall", "--no-deps", wheel])  # another wheel may have the same version
    call([*pip, f"{wheel}[{','.join(extras)}]", f"torch=={torch_version}"])
    write_state(venv, {**state, **done})


def release_of_torch(text):
    if re.fullmatch(r"\d+\.\d+\.\d+", text) is None or numbers(text) < MIN_TORCH:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: name a release from 2.10.0 on, such as 2.13.0.")
    return text


def main():
    if sys.version_info < MIN_PYTHON:
        version = "{}.{}.{}".format(*sys.version_info[:3])
        fail(
            f"stompp_kernels needs Python 3.10 or later, and {sys.executable} is Python {version}. "
            "Name another one with PYTHON=, as in `make test PYTHON=python3.12`."
        )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv", type=Path)
    parser.add_argument("--extras", default="demo,test")
    parser.add_argument(
        "--wheels", type=Path, help="install a wheel from this folder, if there is one of this checkout"
    )
    parser.add_argument("--tools", action="store_true", help="install what builds wheels, and not the package")
    parser.add_argument("--torch", type=release_of_torch, help="the release of torch to install")
    arguments = parser.parse_args()
    venv = Path(os.path.abspath(arguments.venv))
    python = venv / "bin" / "python"

    state = prepare_python(venv, arguments.torch)
    if arguments.tools:
        return install_tools(venv, state)
    if arguments.torch is not None:  # the environment may be one of another release
        check_torch(python, venv, arguments.torch)
    extras = sorted({*arguments.extras.split(","), *state.get("extras", [])})
    native = os.environ.get("STOMPP_BUILD_NATIVE", "1") != "0"
    metadata = digest([ROOT / "pyproject.toml"], ["STOMPP_BUILD_NATIVE"])
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    sources += [ROOT / "setup.py", *sorted((ROOT / "build_tools").glob("*.py"))]
    variables = ["CXX", "CXXFLAGS", "LDFLAGS", "STOMPP_CORE", "STOMPP_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME"]
    variables += ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"]
    build = digest(sources, variables) + f" {shutil.which('nvcc')}"

    # A wheel spares the compiler where nothing was built yet.
    if native and arguments.wheels is not None and state.get("build") is None:
        files = [ROOT / "pyproject.toml", *sources, *sorted(PACKAGE.rglob("*.py"))]
        wheel = find_wheel(arguments.wheels, files)
        if wheel is not None:
            return use_wheel(venv, state, wheel, extras, arguments.torch)
    if state.get("metadata") != metadata or state.get("extras") != extras:
        install(venv, extras, arguments.torch)
    elif native and (
        state.get("build") != build
        or not CPU_LIBRARY.exists()
        or (state.get("cuda", False) and not CUDA_LIBRARY.exists())
    ):
        call([python, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=ROOT)
    else:
        return
    unwanted = [] if native else [CPU_LIBRARY]
    if not native or os.environ.get("STOMPP_CUDA") == "0":
        unwanted.append(CUDA_LIBRARY)
    for library in unwanted:
        library.unlink(missing_ok=True)
    done = {"metadata": metadata, "extras": extras, "build": build, "cuda": CUDA_LIBRARY.exists(), "wheel": None}
    write_state(venv, {**state, **done})


if __name__ == "__main__":
    main()
