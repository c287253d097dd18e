"""load_packed: what it reads once, keeps mapped or copies, and how much memory that takes."""

import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import committed, set_stage
from processes import run_fresh_python
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import Stage
from stompp_kernels.ops import PackedWeight


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A packed residual network, its file and an input."""
    model, x = committed("residual", 3)
    packed = sk.convert(model)
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    sk.save_packed(packed, path)
    return packed, path, x


def mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
@pytest.mark.parametrize("mmap", [False, True])
def test_a_loaded_network_stays_when_its_file_is_replaced(mmap, saved, tmp_path):
    packed, source, x = saved
    path = tmp_path / "net.safetensors"
    path.write_bytes(source.read_bytes())
    loaded = sk.load_packed(path, mmap=mmap)
    assert mapped(path) == mmap
    sk.save_packed(sk.convert(committed("residual", 8)[0]), path)
    assert torch.equal(loaded(x), packed(x))
    if not mmap:
        path.write_bytes(bytes(path.stat().st_size))
        assert torch.equal(loaded(x), packed(x)), "written to"


def test_weights_are_packed_once(saved, monkeypatch):
    calls, original = [], PackedWeight.from_words
    monkeypatch.setattr(PackedWeight, "from_words", lambda *args: calls.append(args[1]) or original(*args))
    sk.load_packed(saved[1])
    assert len(calls) == 4


LOADS = """
import sys
from pathlib import Path
import torch
import stompp_kernels as sk

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

sk.load_packed(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
network = sk.load_packed(sys.argv[1], mmap=sys.argv[3] == "True")
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
@pytest.mark.parametrize(("mmap", "at_most"), [(False, 2.5), (True, 2.0)])
def test_the_peak_memory_of_loading(mmap, at_most, saved, tmp_path):
    """The file's pages, which the checksum reads, and beside them each packed weight and each float once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1024))
    model, _ = sk.prepare(net, torch.randn(1, 1024))
    size = sk.save_packed(sk.convert(set_stage(model, Stage.BINARY).eval()), tmp_path / "net.safetensors")
    assert size > 32 << 20
    result = run_fresh_python(LOADS, tmp_path / "net.safetensors", saved[1], mmap)
    assert size / 2 < int(result.stdout) < at_most * size, result.stdout + result.stderr
