"""libstompp: packed files run without Python and give what Python gives."""

import json
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import fuzz_runtime
import numpy as np
import pytest
import torch
from libstompp import BAD_ARGUMENT, NO_FILE, REFUSED, Library, StomppError
from models_for_tests import set_stage
from networks_for_libstompp import TRACED, assert_same, model_of, saved_as_bytes
from safetensors.torch import load, save
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.files import container

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("cmake") and shutil.which("c++")), reason="cmake and a C++ compiler build libstompp"
    ),
    pytest.mark.slow,  # for the building
]
AVAILABLE = [i.name for i in sk.implementations() if i.available and i.device == "cpu" and i.name != "reference"]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The folder that libstompp is built in, or was: STOMPP_LIBSTOMPP names one, as of `make libstompp`."""
    made = os.environ.get("STOMPP_LIBSTOMPP")
    return Path(made) if made else built(tmp_path_factory.mktemp("libstompp"))


def built(folder, *options):
    # The least optimization at which vectors stay in registers: the compiler takes half as long.
    for command in (
        ["cmake", "-S", ROOT / "csrc/runtime", "-B", folder, "-DCMAKE_BUILD_TYPE=", "-DCMAKE_CXX_FLAGS=-O1", *options],
        ["cmake", "--build", folder, "-j2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def library(build):
    return Library(build / "libstompp.so")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of each traced model of the registry, and its inputs."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def of(name, binarize):
        if (name, binarize) not in made:
            model, x = model_of(name, binarize)
            made[name, binarize] = saved_as_bytes(model, x, folder), x
        return made[name, binarize]

    return of


@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("name", ["mlp", "small_resnet"])
def test_models_give_what_python_gives(name, binarize, library, files, tmp_path):
    data, x = files(name, binarize)
    assert_same(library, data, x, tmp_path / "n")


@pytest.mark.slow
@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("name", TRACED)
def test_every_traced_model_gives_what_python_gives(name, binarize, library, files, tmp_path):
    data, x = files(name, binarize)
    assert_same(library, data, x, tmp_path / "n", threads=3)


@pytest.mark.parametrize("implementation", AVAILABLE)
def test_every_implementation_gives_the_same_bits(implementation, library, files, tmp_path, monkeypatch):
    assert library.implementations() == AVAILABLE
    data, x = files("small_resnet", "both")
    network = library.open(data, implementation)
    assert network.describe().implementation.decode() == implementation
    assert_same(library, data, x, tmp_path / "n", implementation)


class SignsAndOneLayerTwice(nn.Module):
    """An activation that nothing but a float module reads, and a layer at two places."""

    def __init__(self):
        super().__init__()
        self.layer = sk.nn.BinaryLinear(40, 40, binarize_input=True)
        self.activation, self.head = sk.nn.ProgressiveActivation([40]), nn.Linear(40, 3)

    def forward(self, x):
        y = self.layer(x)
        return self.head(self.activation((y + self.layer(y)) * x))


def test_signs_in_float_and_layers_that_run_twice(library, tmp_path):
    torch.manual_seed(0)
    model, x = set_stage(SignsAndOneLayerTwice(), sk.nn.Stage.BINARY).eval(), torch.randn(4, 40)
    data = saved_as_bytes(model, x, tmp_path)
    assert b"SignActivation" in data
    assert_same(library, data, x, tmp_path / "n")


@pytest.fixture
def small(files):
    return files("small_resnet", "both")


def test_a_network_says_what_it_holds(library, small):
    data, x = small
    network = library.open(data)
    description = network.describe()
    assert (description.inputs, description.outputs) == (1, 1)
    assert description.file_bytes == len(data)
    layers = network.layers()
    assert description.weight_bytes >= sum(layer.weight_bytes for layer in layers) > 0
    assert {layer.arithmetic for layer in layers} == {0, 2}
    assert (layers[-1].name, layers[-1].type, layers[-1].weight.list()[0]) == (b"fc", b"Linear", 10)
    outputs, arena = network.plan((3, *x.shape[1:]))
    assert outputs == [[3, 10]]
    assert network.plan((6, *x.shape[1:]))[1] > arena > 0
    assert library.c.stompp_input_name(network.handle, 0) == b"x"
    assert library.c.stompp_output_name(network.handle, 0) == b"0"
    assert library.c.stompp_input_name(network.handle, 1) is None
    assert library.c.stompp_version() == b"1.0"


def test_any_batch_runs_and_results_do_not_depend_on_threads(library, small):
    data, x = small
    network = library.open(data)
    both = network.run(x)[0]
    assert torch.equal(torch.cat([network.run(x[:1])[0], network.run(x[1:])[0]]), both)
    for threads in (2, 5):
        assert torch.equal(network.run(x.repeat(3, 1, 1, 1), threads=threads)[0], both.repeat(3, 1))


def test_eight_threads_run_one_network(library, small):
    data, x = small
    network, wrong = library.open(data), []
    inputs = [torch.randn(1 + index % 3, *x.shape[1:]) for index in range(8)]
    expected = [network.run(x)[0] for x in inputs]

    def work(index):
        for turn in range(20):
            if not torch.equal(network.run(inputs[index], threads=1 + turn % 2)[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def refused(library, source, statuses, *words, **options):
    with pytest.raises(StomppError) as caught:
        library.open(source, **options)
    assert caught.value.status in statuses, caught.value
    for word in words:
        assert word in caught.value.text


def test_calls_that_do_not_fit_are_refused(library, small, tmp_path):
    data, x = small
    refused(library, tmp_path / "none.safetensors", [NO_FILE], f"'{tmp_path / 'none.safetensors'}'")
    refused(library, f"{'x' * 400}/none.safetensors", [NO_FILE], "'...xxx", "xxx/none.safetensors'")
    refused(library, tmp_path, [NO_FILE], "no regular file")
    refused(library, data, [BAD_ARGUMENT], "'sse9'", implementation="sse9")
    network = library.open(data)
    for inputs, words in (
        ((x, x), "input_count must be 1, got 2"),
        ((x[0],), "must be images"),
        ((x[:, :1].repeat(1, 2, 1, 1),), "node 'stem"),
        ((x.repeat(1, 1, 2, 1),), "node 'fc'"),
    ):
        with pytest.raises(StomppError, match=words) as caught:
            network.run(*inputs)
        assert caught.value.status == BAD_ARGUMENT
    with pytest.raises(StomppError, match=r"threads must be between 0 and 1024, got -1"):
        network.run(x, threads=-1)


def rewritten(data, change, version="3"):
    """The file with a changed structure and a checksum that fits."""
    length = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    structure, tensors = json.loads(metadata["structure"]), load(data)
    change(structure, tensors)
    text = json.dumps(structure)
    made = {**metadata, "version": version, "structure": text, "sha256": container.digest(text, tensors)}
    return save(tensors, made)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: s["graph"][1].update(op="call_function", target="os.system"), "'os.system'"),
        (lambda s, t: s["modules"]["fc"].update(type="LSTM"), "'fc'"),
        (lambda s, t: s["modules"]["fc"]["arguments"].update(out_features=11), "'fc'"),
        (lambda s, t: t.update({"fc.bias": t["fc.bias"].half()}), "torch.float16"),
        (lambda s, t: t.update({"fc.more": t["fc.bias"].clone()}), "'more'"),
        (lambda s, t: s["graph"].pop(), "output"),
        (lambda s, t: s["graph"][1]["args"].append({"node": "later"}), "'later'"),
        (lambda s, t: s.update(model={}), "transformers"),
        (
            lambda s, t: s["graph"].insert(1, dict(s["graph"][1], target="relu_", op="call_method", name="r")),
            "in place",
        ),
    ],
)
def test_structures_that_do_not_fit_are_refused_by_name(change, words, library, small):
    refused(library, rewritten(small[0], change), REFUSED, words)


@pytest.mark.parametrize("sizes", [(927430618, 5607601, 3547), (1 << 31, 1 << 31, 4, 30)])
def test_sizes_whose_product_exceeds_64_bits_are_refused(sizes, library, small):
    """Modulo 2^64 the first are the 30 scores that there are: a slice of them would read anywhere."""

    def reshaped(structure, tensors):
        *nodes, output = structure["graph"]
        (scores,) = output["args"]
        args = [scores, *sizes]
        node = {"name": "wide", "op": "call_method", "target": "view", "args": args, "kwargs": {}}
        output["args"] = [{"node": "wide"}]
        structure["graph"] = [*nodes, node, output]

    data, x = small
    with pytest.raises(StomppError, match="another number of values") as caught:
        library.open(rewritten(data, reshaped)).run(x[:1].expand(3, -1, -1, -1).contiguous())
    assert caught.value.status == BAD_ARGUMENT


def test_damaged_files_are_refused(library, small):
    data, _ = small
    for damaged in (b"", data[:7], data[:100], data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:]):
        refused(library, damaged, REFUSED)
    for at in range(0, len(data), max(1, len(data) // 200)):
        refused(library, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], REFUSED)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_older_versions_are_read(version, library, files):
    data, x = files("mlp", "both")

    def older(structure, tensors):
        del structure["attributes"]
        for spec in structure["modules"].values() if version == 1 else ():
            assert spec.pop("writes", "bits") == "bits" or spec["threshold_rows"] == 0
            spec.pop("fused", None)

    expected = library.open(data).run(x)[0]
    torch.testing.assert_close(library.open(rewritten(data, older, str(version))).run(x)[0], expected)
    refused(library, rewritten(data, lambda s, t: None, "4"), REFUSED, "'4'")


def test_mutated_files_are_refused_or_give_what_python_gives(library, tmp_path):
    found = fuzz_runtime.fuzz(library, 150, 0, tmp_path, ("residual", "grouped"))
    assert {"refused", "the same"} <= {outcome for _, outcome in found}


def test_the_tool_runs_a_network(build, small, tmp_path):
    data, x = small
    network, array, image = tmp_path / "n.safetensors", tmp_path / "x.npy", tmp_path / "x.pgm"
    network.write_bytes(data)
    np.save(array, x.numpy())
    pixels = torch.randint(256, (8, 8), dtype=torch.uint8)
    image.write_bytes(b"P5 8 8 255\n" + bytes(pixels.flatten().tolist()))
    program = build / "stompp-run"
    library = Library(build / "libstompp.so")
    for path, inputs in ((array, x), (image, pixels[None, None] / 255)):
        lines = subprocess.run([program, network, path, "--top", "2"], capture_output=True, text=True, check=True)
        scores = library.open(data).run(inputs)[0]
        best = [f"{row}: class {k}" for row in range(len(scores)) for k in scores[row].topk(2).indices.tolist()]
        assert [line.rpartition(" ")[0] for line in lines.stdout.splitlines()] == best
    assert "median" in subprocess.run([program, network, array, "--bench", "3"], capture_output=True, text=True).stdout
    assert "PackedConv2d" in subprocess.run([program, network], capture_output=True, text=True).stdout
    for arguments in ([], [network, array, "--top", "0"], [network, array, "--threads"]):
        assert subprocess.run([program, *arguments], capture_output=True).returncode == 2
    done = subprocess.run([program, array, array], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "x.npy" in done.stderr


def test_a_c_program_finds_the_installed_library(build, small, tmp_path):
    data, x = small
    (tmp_path / "n.safetensors").write_bytes(data)
    prefix = tmp_path / "prefix"
    subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True, capture_output=True)
    (pc,) = prefix.rglob("stompp.pc")
    assert "-lstompp" in pc.read_text()
    program = tmp_path / "classify"
    sources = [ROOT / "examples/c/classify.c", pc.parents[1] / "libstompp.a"]
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{prefix / 'include'}"]
    subprocess.run(["cc", *flags, *sources, "-lstdc++", "-lm", "-pthread", "-o", program], check=True)
    one = x[:1].contiguous()
    sizes = [str(size) for size in one.shape[1:]]
    command = [program, tmp_path / "n.safetensors", *sizes]
    done = subprocess.run(command, input=one.numpy().tobytes(), capture_output=True, check=True)
    best = int(Library(build / "libstompp.so").open(data).run(one)[0].argmax())
    assert done.stdout.decode().startswith(f"class {best} ")


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="no cross-compiler or emulator for 64-bit Arm: `make setup-arm` installs them",
)
def test_64_bit_arm_gives_the_same_scores(library, small, tmp_path):
    data, x = small
    compiler = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    compiler += ["-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    program = built(tmp_path / "arm", *compiler) / "stompp-run"
    network, array = tmp_path / "n.safetensors", tmp_path / "x.npy"
    network.write_bytes(data)
    np.save(array, x.numpy())
    expected = subprocess.run([library.path.parent / "stompp-run", network, array], capture_output=True, check=True)
    for implementation in ("neon", "scalar"):
        command = ["qemu-aarch64", program, network, array, "--implementation", implementation]
        assert subprocess.run(command, capture_output=True, check=True).stdout == expected.stdout


@pytest.mark.parametrize("libraries", ["lib", "lib/some-system"])
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not on PATH")
def test_pkg_config_finds_what_was_installed_under_another_prefix(build, tmp_path, libraries):
    configure = ["cmake", "-S", ROOT / "csrc/runtime", "-B", tmp_path / "build", f"-DCMAKE_INSTALL_LIBDIR={libraries}"]
    subprocess.run(configure, check=True, capture_output=True)
    for path in (*build.glob("libstompp.*"), build / "stompp-run"):  # not built again
        shutil.copy(path, tmp_path / "build", follow_symlinks=False)
    script = tmp_path / "build/cmake_install.cmake"
    prefix = tmp_path / "somewhere else"
    subprocess.run(["cmake", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-P", script], check=True, capture_output=True)
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / libraries / "pkgconfig")}
    for variable, folder in (("includedir", "include"), ("libdir", libraries)):
        command = ["pkg-config", f"--variable={variable}", "stompp"]
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
        assert os.path.samefile(found.replace("\\", ""), prefix / folder)
