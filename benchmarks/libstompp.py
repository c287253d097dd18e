"""A packed ResNet-18 in libstompp and in Python with torch: peak memory of a process, and the time of an image.

    make libstompp
    python -m benchmarks.libstompp build/libstompp/stompp-run

Each side opens the same file in processes of its own, and runs one image of 224 x 224 on one thread. Python's memory is
also given as it is once torch and this package are imported, before there is a network.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stompp_kernels as sk
from benchmarks.timing import RESULTS, save
from stompp_kernels.table import table

PYTHON = """
import json, statistics, sys, time
import numpy, torch
import stompp_kernels as sk
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
torch.set_num_threads(1)
imported = peak()
network, x, times = sk.load_packed(sys.argv[1]), torch.from_numpy(numpy.load(sys.argv[2])), []
with torch.inference_mode():
    for _ in range(1 + int(sys.argv[3])):
        begin = time.perf_counter()
        network(x)
        times.append(time.perf_counter() - begin)
print(json.dumps({"imported_kb": imported, "peak_kb": peak(), "ms": 1e3 * statistics.median(times[1:])}))
"""


def write_network(network: Path, image: Path) -> None:
    """Writes a committed ResNet-18 with random weights, and an image for it."""
    torch.manual_seed(0)
    model = sk.models.create("resnet18", 1000, binarize="both")
    sk.StoMPP(model, total_steps=1, regime="vanilla_ste")  # commits all layers at once
    sk.save_packed(sk.convert(model.eval()), network)
    np.save(image, torch.randn(1, 3, 224, 224).numpy())


def peak_of(process: int) -> int:
    """Kilobytes of memory that a process had at most since its program began, as Linux counts them; 0 once it ended."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) if found else 0


def run_tool(tool: Path, network: Path, image: Path, runs: int) -> dict[str, Any]:
    """Peak memory and milliseconds of stompp-run."""
    command = [str(tool), str(network), str(image), "--bench", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:  # the first run takes all that the later ones use
            peak = max(peak, peak_of(process.pid))
            time.sleep(0.002)
        assert process.stdout is not None
        found = re.match(r"median ([\d.]+) ms", process.stdout.read())
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"{tool} ended with status {process.returncode}")
    return {"peak_kb": peak, "ms": float(found[1])}


def run_python(network: Path, image: Path, runs: int) -> dict[str, Any]:
    command = [sys.executable, "-c", PYTHON, str(network), str(image), str(runs)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(tool: Path, turns: int, runs: int) -> dict[str, dict[str, float]]:
    """Medians over turns of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        network, image = Path(folder) / "network.safetensors", Path(folder) / "image.npy"
        write_network(network, image)
        sides: dict[str, list[dict[str, Any]]] = {"libstompp": [], "Python": []}
        for _ in range(turns):
            sides["libstompp"].append(run_tool(tool, network, image, runs))
            sides["Python"].append(run_python(network, image, runs))
    return {
        side: {key: statistics.median(turn[key] for turn in found) for key in found[0]} for side, found in sides.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libstompp", description=__doc__)
    parser.add_argument("tool", type=Path, help="stompp-run, as `make libstompp` builds it")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side (default: 3)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of a process (default: 50)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    found = measure(arguments.tool, arguments.turns, arguments.runs)
    rows = [
        (side, f"{row['peak_kb'] / 1e3:.0f}", f"{row.get('imported_kb', 0) / 1e3:.0f}", f"{row['ms']:.2f}")
        for side, row in found.items()
    ]
    print(table(("side", "peak, MB", "of it imports, MB", "an image, ms"), rows))
    kept = [{"side": side, **row} for side, row in found.items()]
    print(save("libstompp", "python -m benchmarks.libstompp", kept, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
