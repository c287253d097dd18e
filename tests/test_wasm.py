"""WebAssembly: the core's own test program, with vectors and without, and libstompp as a module."""

import importlib.util
import re

import pytest
from libstompp import REFUSED, StomppError
from networks_for_libstompp import assert_same, model_of, saved_as_bytes

from build_tools import wasm
from build_tools.settings import ROOT
from stompp_kernels.nn.binary_weight import BinaryWeightLayer

pytestmark = [
    pytest.mark.slow,  # compiles the core, three times
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("ziglang", "wasmtime")),
        reason="ziglang or wasmtime is not installed: `make test-wasm` installs them",
    ),
]
MOST_BYTES = 600_000


@pytest.mark.parametrize(
    ("flags", "implementations"), [((wasm.VECTORS,), {"wasm", "scalar"}), ((), {"scalar"})], ids=["vectors", "scalar"]
)
def test_the_core_passes_its_own_tests(tmp_path, flags, implementations):
    folder = ROOT / "tests" / "core"
    sources = [*wasm.core_sources(), *sorted(folder.glob("*.cpp"))]
    program = wasm.compile_module(tmp_path / "core_tests.wasm", sources, (f"-I{folder}", *flags))
    status, printed = wasm.run_program(program)
    assert re.search(r"^[1-9]\d* passed, 0 failed$", printed, re.MULTILINE), printed[-4000:]
    assert status == 0
    found = re.findall(r"^(\w+) \w+: ok$", printed, re.MULTILINE)
    counts = {name: found.count(name) for name in set(found)}
    assert implementations <= set(counts)
    assert len(set(counts.values())) == 1, counts


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return wasm.compile_library(tmp_path_factory.mktemp("wasm") / "stompp.wasm")


@pytest.fixture(scope="module")
def library(module):
    from libstompp_wasm import Library  # which imports wasmtime

    return Library(module)


def test_the_library_is_small(module):
    assert module.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("name", ["mlp", "small_resnet", "reactnet_a"])
@pytest.mark.parametrize("implementation", ["wasm", "scalar"])
def test_networks_give_what_python_gives(implementation, name, binarize, library, tmp_path):
    assert library.implementations() == ["wasm", "scalar"]
    model, x = model_of(name, binarize)
    data = saved_as_bytes(model, x, tmp_path)
    assert library.open(data, implementation).implementation() == implementation
    # Instruction sets add floats with binary weights in orders of their own.
    assert_same(library, data, x, tmp_path / "n", implementation, close=BinaryWeightLayer)


def test_files_that_are_no_networks_are_refused(library):
    for data in (b"no network", bytes(1000)):
        with pytest.raises(StomppError) as caught:
            library.open(data)
        assert caught.value.status in REFUSED
        assert "safetensors" in caught.value.text
