"""examples/: each program runs as its reader would run it, on fewer steps, and leaves a packed network that loads."""

import re
from pathlib import Path

import pytest
from processes import run_python

import stompp_kernels as sk
from stompp_kernels.nn.packed import PackedLayer

EXAMPLES = Path(__file__).parents[1] / "examples"
# The program, its options here, the network that it leaves, and how right that is at least on what it never saw.
RUNS = {
    "quickstart.py": (["--epochs", "4"], "digits.safetensors", 50),
    "own_model.py": (["--steps", "60"], "own_model.safetensors", 80),
    "transformers_finetuning.py": (["--steps", "60"], "finetuned/packed.safetensors", 40),
    "lightning_module.py": (["--epochs", "3"], "lightning_digits.safetensors", 40),
}


# As `python PROGRAM ...`.
RUN = """
import os, runpy, sys

del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize(
    "name", [name if name == "quickstart.py" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_an_example_trains_converts_and_saves(name, tmp_path):
    arguments, network, percent = RUNS[name]
    done = run_python(RUN, EXAMPLES / name, *arguments, folder=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"([\d.]+)% of [a-z ]+ right", done.stdout)[1]) >= percent
    packed = sk.load_packed(tmp_path / network)
    assert any(isinstance(module, PackedLayer) for module in packed.modules())
