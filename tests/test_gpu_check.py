"""benchmarks/gpu_check.sh without a GPU, with stand-ins for NVIDIA's tools: order, limits and what it leaves."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # waits for what does not end
ROOT = Path(__file__).resolve().parents[1]

# What the programs print on a GPU.
PROGRAMS = {
    "rates": "echo 'mma.and 1e15'; echo 'wgmma.and 2e15'",
    "products": "echo 'cuda small: ok'; echo '1 passed, 0 failed'",
    "tiles": "echo '8192 8192 8192 wide wgmma,0.5,1'; echo '8192 8192 8192 few,5,0'",
}
NVIDIA_SMI = """#!/usr/bin/env bash
[[ $* == *compute_cap,clocks* ]] && echo "NVIDIA H200, 580.0, 143771 MiB, 9.0, 345 MHz, 1980 MHz" || echo 9.0
"""
# Writes what it is asked for; a program is a script that stands for it.
NVCC = f"""#!{sys.executable}
import pathlib, sys
if "--version" in sys.argv:
    print("Cuda compilation tools, release 13.0")
    raise SystemExit
target = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
said = {PROGRAMS!r}.get(target.name, "")
target.write_text(f"#!/usr/bin/env bash\\n[[ $# == 0 ]] || exit 0\\n{{said}}\\n")
target.chmod(0o755)
"""
# Runs what stands behind the options.
TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*"
exec "${@: -1}"
"""


@pytest.fixture
def tools(tmp_path):
    """A folder with the stand-ins."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in {"nvidia-smi": NVIDIA_SMI, "nvcc": NVCC, "compute-sanitizer": TOOL, "ncu": TOOL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def environment(tools, steps, **variables):
    path = f"{tools}:{os.environ['PATH']}"
    patience = {"GPU_CHECK_PATIENCE": "20", "GPU_CHECK_SECONDS": "2000"}
    return {**os.environ, **patience, "PATH": path, "PYTHON": sys.executable, "GPU_CHECK_STEPS": steps, **variables}


def check(tools, out, steps, **variables):
    return subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu_check.sh", out],
        env=environment(tools, steps, **variables),
        capture_output=True,
        text=True,
        timeout=3600,
    )


def packed(out):
    """{name: text} of the files that were packed."""
    with tarfile.open(out / "results.tar.gz") as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {Path(file.name).name: archive.extractfile(file).read().decode() for file in files}


def stand_in_for_python(tmp_path, text):
    """A program that the script runs as its Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/usr/bin/env bash\n{text}\n")
    program.chmod(0o755)
    return str(program)


def test_a_rehearsal_goes_as_far_as_there_is_no_gpu(tools, tmp_path):
    """With the project's own Python: every command line is understood, and what needs torch's GPU says so."""
    on_programs = ("machine", "programs", "rates", "products", "tiles", "memcheck", "synccheck", "profile")
    on_torch = ("bgemm", "progressive", "networks", "blocks")
    out = tmp_path / "out"
    done = check(tools, out, " ".join((*on_programs, *on_torch, "package", "report")))
    summary = (out / "summary.txt").read_text()
    ended = dict(re.findall(r"^(\w+): (ok|FAILED)", summary, re.MULTILINE))
    assert [name for name in ended if name in on_programs[:5]] == list(on_programs[:5])
    files = packed(out)
    for name in on_programs:
        assert ended[name] == "ok", f"{name}: {files[f'{name}.log']}"
    for name in on_torch:
        assert ended[name] == "FAILED"
        assert "needs an NVIDIA GPU" in files[f"{name}.log"], files[f"{name}.log"]
    assert ended["report"] == ended["package"] == "ok", files["report.log"] + files["package.log"]
    assert "needs an NVIDIA GPU" in files["package.log"]
    assert done.returncode == len(on_torch), summary
    assert '"operations_per_s": 2000000000000000.0' in files["gpu_rates.json"]
    assert '"kernel": "wide wgmma"' in files["gpu_tiles.json"]
    assert "compute-sanitizer --tool memcheck" in files["memcheck.log"]
    assert {path.name for path in out.iterdir()} == {"summary.txt", "running.log", "results.tar.gz"}


def test_a_run_that_is_killed_leaves_what_it_found(tools, tmp_path):
    out = tmp_path / "out"
    python = stand_in_for_python(tmp_path, "echo a row; [[ $* == *gpu_bgemm* ]] && sleep 60; exit 0")
    process = subprocess.Popen(
        ["bash", ROOT / "benchmarks" / "gpu_check.sh", out],
        env=environment(tools, "machine rates tiles bgemm", PYTHON=python),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 600
        while not ((out / "summary.txt").exists() and "tiles: ok" in (out / "summary.txt").read_text()):
            assert time.monotonic() < until, "the step before did not end"
            time.sleep(0.05)
        while "a row" not in (out / "running.log").read_text():
            assert time.monotonic() < until, "the step under way printed nothing"
            time.sleep(0.05)
        until = time.monotonic() + 600
        while not (out / "results.tar.gz").exists() or "tiles.log" not in packed(out):
            assert time.monotonic() < until, "the step before was not packed"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert {"machine.log", "rates.log", "tiles.log"} <= set(packed(out))
    assert len(list(out.iterdir())) <= 3


def test_steps_end_in_time_and_the_rest_is_named(tools, tmp_path):
    out = tmp_path / "out"
    python = stand_in_for_python(tmp_path, "[[ $1 == -c ]] || sleep 60")  # -c asks for pytest-xdist alone
    done = check(tools, out, "rates tiles bgemm", PYTHON=python, GPU_CHECK_SECONDS="6")
    summary = (out / "summary.txt").read_text()
    assert re.search(r"^rates: FAILED \(124\)", summary, re.MULTILINE)
    assert "tiles: NOT RUN, no time left" in summary
    assert done.returncode == 3


def test_programs_from_elsewhere_run_where_they_start_and_are_built_where_not(tools, tmp_path):
    carried, out = tmp_path / "carried", tmp_path / "out"
    carried.mkdir()
    good, broken = carried / "products", carried / "rates"
    good.write_text("#!/usr/bin/env bash\n[[ $# == 0 ]] || exit 0\necho carried\n")
    broken.write_text("#!/usr/bin/env bash\nexit 127\n")
    for program in (good, broken):
        program.chmod(0o755)
    done = check(tools, out, "programs products rates", GPU_CHECK_PROGRAMS=str(carried))
    assert done.returncode == 0, done.stdout
    assert "carried" in packed(out)["products.log"]
    assert "mma.and 1e15" in packed(out)["rates.log"]


def test_a_missing_tool_is_said_in_its_step(tools, tmp_path):
    for name in ("nvidia-smi", "nvcc"):
        (tools / name).unlink()
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("a machine with a GPU")
    out = tmp_path / "out"
    done = check(tools, out, "programs")
    assert done.returncode == 1
    assert (
        "nvidia-smi names none" in packed(out)["programs.log"] or "nvcc is not on PATH" in packed(out)["programs.log"]
    )
