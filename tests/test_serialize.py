"""save_packed and load_packed: the same network comes back, or a clear error."""

import json
import os
import struct

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import NETS, committed, float_convs_of, set_stage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import stompp_kernels as sk
from stompp_kernels.conversion.files import container as serialize_container
from stompp_kernels.nn import BinaryWeightLayer, Stage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A packed residual network, its file and an input."""
    model, x = committed("residual", 3)
    with float_convs_of(torch_s=True):
        packed = sk.convert(model)
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    sk.save_packed(packed, path)
    return packed, path, x


def parts(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return load_file(path), metadata, json.loads(metadata["structure"])


def rewrite(source, target, change):
    """A file with another structure or other tensors and a checksum that fits them."""
    tensors, metadata, structure = parts(source)
    change(tensors, structure)
    text = json.dumps(structure, sort_keys=True)
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    metadata |= {"structure": text, "sha256": serialize_container.digest(text, tensors)}
    save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize("name", NETS)
def test_round_trip_gives_the_same_bits(name, tmp_path):
    model, x = committed(name, 5)
    packed = sk.convert(model)
    size = sk.save_packed(packed, tmp_path / "net.safetensors")
    assert size == os.path.getsize(tmp_path / "net.safetensors")
    loaded = sk.load_packed(str(tmp_path / "net.safetensors"))
    assert not any(m.training for m in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))
    assert str(sk.explain(loaded)) == str(sk.explain(packed))
    sk.save_packed(loaded, tmp_path / "again.safetensors")
    first, second = (parts(tmp_path / f"{n}.safetensors") for n in ("net", "again"))
    assert first[1]["sha256"] == second[1]["sha256"]


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_networks_with_binary_weights_and_float_activations(name, implementation, tmp_path):
    model, x = committed(name, 5, binarize="weights")
    packed = sk.convert(model)
    assert any(isinstance(m, BinaryWeightLayer) for m in packed.modules())
    sk.save_packed(packed, tmp_path / "net.safetensors")
    sk.export_packed(packed, tmp_path / "net.pt2", x[:1])
    with torch.no_grad():
        expected = packed(x)
        assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), expected)
        assert torch.equal(sk.load_exported(tmp_path / "net.pt2")(x), expected)


def test_every_implementation_reads_every_other_file(implementation, saved, tmp_path):
    packed, path, x = saved
    loaded = sk.load_packed(path)
    assert torch.equal(loaded(x), packed(x))
    sk.save_packed(loaded, tmp_path / "net.safetensors")
    assert parts(tmp_path / "net.safetensors")[1]["sha256"] == parts(path)[1]["sha256"]


def assert_round_trip(net, x, tmp_path):
    model, _ = sk.prepare(net, x)
    packed = sk.convert(set_stage(model, Stage.BINARY).eval())
    sk.save_packed(packed, tmp_path / "net.safetensors")
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.LayerNorm(128, bias=False)],
        [nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.Flatten()],
        [nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Hardtanh(-0.5, 0.25), nn.Flatten()],
        [nn.GELU("tanh"), nn.AdaptiveAvgPool2d((2, None)), nn.Flatten(1)],
        [nn.BatchNorm2d(8, eps=0.5, affine=False), nn.ReLU6(), nn.Tanh(), nn.Flatten()],
        [nn.Conv2d(8, 4, (3, 2), 2, "valid", bias=False, groups=2), nn.Flatten()],
        [nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), nn.Flatten()],
        [nn.GroupNorm(2, 8, eps=0.5), nn.PReLU(8, 0.1), nn.LeakyReLU(0.3), nn.ZeroPad2d((1, 0, 2, 0)), nn.Flatten()],
        [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Flatten(), nn.Sigmoid(), nn.Softmax(1)],
    ],
    ids=["avg divisor", "avg", "max", "gelu", "norm", "conv", "circular", "group", "smooth"],
)
def test_float_modules_keep_their_arguments(layers, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), *layers)
    with torch.no_grad():
        net.append(nn.Linear(net.eval()(x).shape[1], 4))
    assert_round_trip(net, x, tmp_path)


def test_functions_and_methods_keep_their_arguments(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu, self.conv = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            y = self.conv(self.relu(self.stem(x)))
            y = F.avg_pool2d(F.pad(y, (1, 0, 2, 1)), 2, stride=(2, 3))
            y = torch.cat([y[:, :4], y[:, 4:] * 0.5], dim=1).permute(0, 1, 3, 2).contiguous()
            y = F.max_pool2d(torch.relu(y), 2)
            y = y * torch.sigmoid(torch.mean(y, (2, 3), keepdim=True)) - F.hardtanh(y, -0.5, 0.25) / 3
            y = torch.mul(F.silu(y), F.gelu(y, approximate="tanh")).transpose(2, 3).tanh().contiguous()
            return self.head(y.view(y.size(0), -1)[:, 0:32])

    torch.manual_seed(0)
    assert_round_trip(Net(), torch.randn(3, 3, 12, 12), tmp_path)


def test_a_network_of_another_precision_keeps_it(tmp_path):
    model, x = committed("mlp", 5)
    packed = sk.convert(model).double()
    with torch.no_grad():
        sk.save_packed(packed, tmp_path / "net.safetensors")
        loaded = sk.load_packed(tmp_path / "net.safetensors")
        assert loaded(x.double()).dtype is torch.float64
        assert torch.equal(loaded(x.double()), packed(x.double()))


def test_a_network_of_two_precisions_is_refused(tmp_path):
    packed = sk.convert(committed("mlp", 5)[0])
    packed.fc1.double(), packed.fc4.double()  # all parameters, and not the packed layers
    with pytest.raises(ValueError, match=r"packed must have the type of its parameters, .*, throughout"):
        sk.save_packed(packed, tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


def test_binarized_layers_of_a_wide_net_are_20_times_smaller(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 128, 1), nn.ReLU())
    for _ in range(3):
        net.extend([nn.Conv2d(128, 128, 3, 1, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()])
    net.extend([nn.Flatten(), nn.Linear(128 * 4, 3)])
    x = torch.randn(2, 3, 2, 2)
    model, report = sk.prepare(net, x)
    binarized = report.binarized()
    size = sk.save_packed(sk.convert(set_stage(model, Stage.BINARY)), tmp_path / "net.safetensors")
    sizes = {name: 4 * module.weight.numel() for name, module in model.named_modules() if hasattr(module, "weight")}
    kept = sum(4 * p.numel() for n in ("0", "10", "12") for p in model.get_submodule(n).parameters() if n != "10")
    assert len(binarized) == 3
    # Everything in the file that is not a kept layer's fp32 parameter counts as the binarized layers'.
    assert sum(sizes[name] for name in binarized) >= 20 * (size - kept)
    rows = [row for row in sk.explain(sk.load_packed(tmp_path / "net.safetensors")).rows if "bconv2d" in row.kernel]
    assert [row.float_nbytes for row in rows] == [sizes[name] for name in binarized]


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent\.safetensors"):
        sk.load_packed(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="no file at"):
        sk.load_packed(tmp_path)


def refused(data, path):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"broken\.safetensors' (is|was|has|holds) "):
        sk.load_packed(path)


def test_files_cut_short_are_refused(saved, tmp_path):
    data = saved[1].read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1}
    lengths |= set(range(0, len(data), max(1, len(data) // 150)))
    for length in sorted(lengths):
        refused(data[:length], tmp_path / "broken.safetensors")
    refused(data + b"\0", tmp_path / "broken.safetensors")
    refused(b"no such thing", tmp_path / "broken.safetensors")  # test_fuzz_packed.py has other damage


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "another", "is no packed network: format must be 'stompp_kernels.packed'"),
        ("format", None, "is no packed network"),
        ("version", "4", "has version '4', this package reads 1, 2, 3"),
        ("version", "03", "has version '03'"),
        ("version", None, "has version None"),
        ("sha256", "0" * 64, "was altered"),
        ("sha256", None, "was altered"),
        ("structure", "{}", "was altered"),
    ],
)
def test_other_metadata_are_refused(key, value, message, saved, tmp_path):
    tensors, metadata, _ = parts(saved[1])
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    save_file(tensors, tmp_path / "net.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        sk.load_packed(tmp_path / "net.safetensors")


def test_other_safetensors_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is no packed network"):
        sk.load_packed(tmp_path / "net.safetensors")


def module(structure, name):
    return structure["modules"][name]


def node(structure, op):
    return next(spec for spec in structure["graph"] if spec["op"] == op)


HUGE = 1 << 29
FUSED_CONV = "blocks.0.conv1_fused"
INJECTED = "x, y=__import__('builtins').__dict__.__setitem__('STOMPP_INJECTED', 1)"


def rename_module(structure, name):
    structure["modules"][name] = structure["modules"].pop("pool")
    next(spec for spec in structure["graph"] if spec["target"] == "pool")["target"] = name


NORM = {"num_features": 4, "eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
STRUCTURES = {
    "huge K": lambda t, s: module(s, FUSED_CONV).update(shape=[5, HUGE, 3, 3]),
    "huge N": lambda t, s: module(s, FUSED_CONV).update(shape=[HUGE, 5, 3, 3]),
    "beyond 64 bits": lambda t, s: module(s, FUSED_CONV).update(shape=[1 << 70, 5, 3, 3]),
    "another kernel": lambda t, s: module(s, FUSED_CONV).update(shape=[5, 5, 9, 1]),
    "negative": lambda t, s: module(s, FUSED_CONV).update(shape=[-5, 5, 3, 3]),
    "empty shape": lambda t, s: module(s, FUSED_CONV).update(shape=[]),
    "shape of text": lambda t, s: module(s, FUSED_CONV).update(shape="none"),
    "no shape": lambda t, s: module(s, FUSED_CONV).pop("shape"),
    "groups": lambda t, s: module(s, FUSED_CONV).update(groups=3),
    "threshold rows": lambda t, s: module(s, FUSED_CONV).update(threshold_rows=HUGE),
    "fewer threshold rows": lambda t, s: module(s, "blocks.0.conv2_fused").update(threshold_rows=1),
    "affine": lambda t, s: module(s, FUSED_CONV).update(threshold_rows=0),
    "writes nothing": lambda t, s: module(s, FUSED_CONV).update(writes="nothing"),
    "fused as a number": lambda t, s: module(s, FUSED_CONV).update(fused=1),
    "linear for conv": lambda t, s: module(s, FUSED_CONV).update(type="PackedLinear"),
    "huge linear": lambda t, s: module(s, "fc")["arguments"].update(in_features=1 << 40, out_features=1 << 10),
    "huge conv": lambda t, s: module(s, "conv1")["arguments"].update(in_channels=1 << 40),
    "huge norm": lambda t, s: module(s, "fc").update(type="BatchNorm1d", arguments={**NORM, "num_features": 1 << 44}),
    "huge limits": lambda t, s: module(s, "relu_pack")["arguments"].update(channels=1 << 44),
    "unknown argument": lambda t, s: module(s, "fc")["arguments"].update(device="meta"),
    "missing argument": lambda t, s: module(s, "fc")["arguments"].pop("bias"),
    "unknown type": lambda t, s: module(s, "fc").update(type="Bilinear"),
    "no modules": lambda t, s: s.pop("modules"),
    "a module less": lambda t, s: s["modules"].pop("fc"),
    "modules as list": lambda t, s: s.update(modules=[]),
    "graph as number": lambda t, s: s.update(graph=5),
    "empty graph node": lambda t, s: s["graph"].append({}),
    "unknown op": lambda t, s: node(s, "output").update(op="get_attr"),
    "unknown function": lambda t, s: node(s, "call_function").update(target="os.system"),
    "unknown method": lambda t, s: node(s, "call_module").update(op="call_method", target="__reduce__"),
    "unknown node": lambda t, s: node(s, "output").update(args=[{"node": "nobody"}]),
    "tensor missing": lambda t, s: t.pop("fc.bias"),
    "tensor too many": lambda t, s: t.update({"fc.other": torch.zeros(3)}),
    "stray tensor": lambda t, s: t.update(stray=torch.zeros(3)),
    "tensor of another shape": lambda t, s: t.update({"fc.bias": torch.zeros(5)}),
    "words of another dtype": lambda t, s: t.update({f"{FUSED_CONV}.weight": t[f"{FUSED_CONV}.weight"].float()}),
    "thresholds of floats": lambda t, s: t.update({f"{FUSED_CONV}.thresholds": t[f"{FUSED_CONV}.thresholds"].float()}),
    "limits of halves": lambda t, s: t.update({"relu_pack.low": t["relu_pack.low"].half()}),
    "a float module of integers": lambda t, s: t.update({"fc.bias": t["fc.bias"].int()}),
    "no stride": lambda t, s: module(s, FUSED_CONV).update(stride=[0, 1]),
    "three paddings": lambda t, s: module(s, FUSED_CONV).update(padding=[1, 1, 1]),
    "padding value": lambda t, s: module(s, FUSED_CONV).update(padding_value=2),
    "code in a placeholder": lambda t, s: node(s, "placeholder").update(target=INJECTED),
    "a node as a default": lambda t, s: next(n for n in s["graph"][::-1] if n["op"] == "output").update(
        op="placeholder", target="late", args=[{"node": "fc"}]
    ),
    "code in a keyword": lambda t, s: node(s, "call_function").update(kwargs={f"dim=1, {INJECTED}, **": 1}),
    "code in a module name": lambda t, s: rename_module(s, 'pool")(x) or print("'),
    "a dunder as a module name": lambda t, s: rename_module(s, "__class__.pool"),
}


@pytest.mark.parametrize("change", STRUCTURES)
def test_structures_that_do_not_fit_are_refused_without_running_or_allocating(change, saved, tmp_path):
    import builtins
    import resource

    path = rewrite(saved[1], tmp_path / "net.safetensors", STRUCTURES[change])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"net\.safetensors' holds a network that this package cannot build"):
        sk.load_packed(path)
    # In KiB: a fraction of what the shape in the file asks for.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert not hasattr(builtins, "STOMPP_INJECTED")


def test_rewritten_files_with_nothing_changed_load(saved, tmp_path):
    path = rewrite(saved[1], tmp_path / "net.safetensors", lambda tensors, structure: None)
    assert torch.equal(sk.load_packed(path)(saved[2]), saved[0](saved[2]))


class Twice(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.first, self.relu, self.fc, self.last = nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 8), last
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.last(self.fc(self.relu(self.first(x)))))


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.i0(x)


class Histogram(nn.Module):
    def forward(self, x):
        return x * x.histc(8)


class WidePadding(nn.Module):
    def forward(self, x):
        return F.pad(x, (0, 1 << 20))[:, :8]


class Hooked(nn.ReLU6):
    """Its hook is no part of a file."""

    def __new__(cls):
        relu = nn.Tanh()
        relu.register_forward_hook(lambda module, args, output: output * 2)
        return relu


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            NonDynamicallyQuantizableLinear(8, 8),
            "'last' of type NonDynamicallyQuantizableLinear cannot be saved",
        ),
        (Bessel(), r"function .*i0.*\(node '\w+'.* cannot be saved .*; write it with functions that the format lists"),
        (Histogram(), "method 'histc' .*cannot be saved"),
        (WidePadding(), r"argument 'pad' of function 'F.pad' must be .*, got \[0, 1048576\]"),
        (Hooked(), "module 'last' of type Tanh has hooks or a max_norm, which no file can hold"),
    ],
)
def test_what_the_format_does_not_know_is_named(last, message, tmp_path):
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    model, _ = sk.prepare(Twice(last), x)
    packed = sk.convert(set_stage(model, Stage.BINARY))
    with pytest.raises(ValueError, match=message):
        sk.save_packed(packed, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(failing, saved, tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")

    def fail(*arguments):
        assert len(list(tmp_path.iterdir())) == 2, "the new file is written beside the old one"
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        sk.save_packed(saved[0], path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_saving_replaces_an_older_file(saved, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")
    sk.save_packed(saved[0], path)
    assert parts(path)[1:] == parts(saved[1])[1:]
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("function", [sk.explain, lambda m: sk.save_packed(m, "net.safetensors")])
def test_only_packed_networks_are_taken(function):
    with pytest.raises(TypeError, match=r"packed must be a network made by sk\.convert, got Linear"):
        function(nn.Linear(3, 3))


class Reshaping(nn.Module):
    """Flattens by the input's shape, as much hand-written code does."""

    def __init__(self):
        super().__init__()
        self.stem, self.act, self.conv = nn.Conv2d(1, 8, 3), nn.Hardtanh(), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x):
        y = self.conv(self.act(self.stem(x)))
        return self.fc(y.reshape(y.shape[0], -1))


def test_reshaping_by_the_shape_attribute_can_be_saved(tmp_path):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, _ = sk.prepare(Reshaping(), x[:1])
    set_stage(model, Stage.BINARY)
    packed = sk.convert(model)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    loaded = sk.load_packed(tmp_path / "net.safetensors")
    sk.save_packed(loaded, tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(sk.load_packed(tmp_path / "again.safetensors")(x[:2]), packed(x[:2]))


def test_a_saved_file_follows_the_umask(saved, tmp_path):
    before = os.umask(0o027)
    try:
        sk.save_packed(saved[0], tmp_path / "net.safetensors")
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "net.safetensors").st_mode & 0o777 == 0o640
