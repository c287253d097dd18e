"""What a packed file may say: names, targets, arguments, counts, and the container around them."""

import builtins
import json
import os
import struct
import time
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hostile_structures import CODE, LINE_ENDS, PAYLOADS
from models_for_tests import set_stage
from safetensors.torch import save, save_file
from test_serialize import parts, rewrite
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.files import calls, container, float_modules
from stompp_kernels.nn import Stage


def packed_of(net, x):
    torch.manual_seed(0)
    model, _ = sk.prepare(net, x, keep_last=not isinstance(net, Tail))
    return sk.convert(set_stage(model, Stage.BINARY).eval())


def round_trip(net, x, folder):
    """Packed network and the same, saved and loaded, whose results are equal."""
    packed = packed_of(net, x)
    sk.save_packed(packed, folder / "net.safetensors")
    loaded = sk.load_packed(folder / "net.safetensors")
    with torch.no_grad():
        assert_equal(loaded(x), packed(x))
    assert str(sk.explain(loaded)) == str(sk.explain(packed))
    sk.save_packed(loaded, folder / "again.safetensors")
    assert parts(folder / "again.safetensors")[1]["sha256"] == parts(folder / "net.safetensors")[1]["sha256"]
    return packed, loaded


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b)


class Tail(nn.Module):
    """A binary layer, and a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.stem, self.relu, self.conv = nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.function = nn.BatchNorm2d(8), function
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]))

    def forward(self, x):
        y = self.norm(self.conv(self.relu(self.stem(x))))
        return self.function(y) if isinstance(self.function, nn.Module) else self.function(self, y)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
MODULES = [
    *(nn.ConvTranspose2d(8, 4, 2, 2), nn.Upsample(scale_factor=2), nn.Upsample((5, 7), mode="bilinear")),
    *(nn.Mish(), nn.ELU(0.5), nn.CELU(), nn.SELU(), nn.Softplus(2), nn.Hardshrink(0.1), nn.GLU(1), nn.LogSigmoid()),
    *(nn.SyncBatchNorm(8), nn.InstanceNorm2d(8, affine=True), nn.LocalResponseNorm(2), nn.Softmax2d(), nn.RReLU()),
    *(nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)),
    *(nn.ReflectionPad2d(1), nn.ReplicationPad2d((1, 0, 2, 1)), nn.ConstantPad2d(1, 0.5), nn.Unfold(3)),
    *(nn.Threshold(0.1, -2.0), nn.LogSoftmax(1), nn.Unflatten(1, (2, 4)), nn.Hardtanh(-float("inf"), 0.5)),
    *(nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 4, 3), nn.AvgPool1d(2), nn.MaxPool1d(2)),),
    *(nn.Sequential(nn.Unflatten(2, (2, 4)), nn.Conv3d(8, 2, 1), nn.MaxPool3d(2), nn.ConvTranspose3d(2, 2, 2)),),
    *(nn.Sequential(nn.Flatten(2), nn.RMSNorm(64), nn.LayerNorm(64, bias=False), nn.ConvTranspose1d(8, 2, 3)),),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m).split("(")[0])
def test_modules_come_back(module, tmp_path):
    round_trip(Tail(module), X, tmp_path)


def branches(net, y):
    return {"out": y.mean((2, 3)), "all": [y, (y[:, [0, 2]], y[..., None, 1:])]}


def in_place(net, y):
    z = y * 1.0
    z += 1
    return F.relu(z, inplace=True) + z.clamp_(min=0.5)


FUNCTIONS = {
    "parameter": lambda net, y: y * net.scale + torch.rsqrt(net.scale),
    "buffer": lambda net, y: y[:, net.order],
    "a module's own weight": lambda net, y: F.linear(y.mean((2, 3)), net.norm.weight[None]),
    "interpolate": lambda net, y: F.interpolate(y, scale_factor=2) + F.interpolate(y, y.shape[2] * 2, mode="nearest"),
    "chunks": lambda net, y: torch.cat([y.chunk(2, 1)[1], torch.split(y, [3, 5], 1)[0], y.unbind(1)[0][:, None]], 1),
    "permutations": lambda net, y: torch.stack([torch.permute(y, (0, 2, 3, 1)), y.permute(0, 2, 3, 1)]).movedim(0, -1),
    "floor division": lambda net, y: y.reshape(y.shape[0], y.size(1) // 2, -1),
    "norms": lambda net, y: F.layer_norm(y, (8, 8)) + F.group_norm(y, 2) + F.normalize(y, dim=1),
    "softmaxes": lambda net, y: F.log_softmax(y, 1) + y.softmax(-1) + torch.log_softmax(y, dim=1),
    "activations": lambda net, y: F.leaky_relu(y, 0.1) + F.hardswish(y) + F.mish(y) + y.sqrt().nan_to_num(0.0),
    "attention": lambda net, y: F.scaled_dot_product_attention(y, y, y, is_causal=True) @ y.transpose(-1, -2),
    "powers": lambda net, y: (y**2).add(1).sqrt().pow(0.5) - (-y).exp().clamp(max=2.0).maximum(y),
    "infinity": lambda net, y: y.masked_fill(y > 0, float("-inf")).amax((2, 3)),
    "types": lambda net, y: y.to(torch.float64).to(dtype=torch.float32).to(y.dtype).float().type_as(y),
    "masks": lambda net, y: torch.where(y > 0.5, y, torch.zeros_like(y)) + torch.ones(8, 8, device=y.device).tril(),
    "expansions": lambda net, y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4).repeat(1, 1, 2, 1).roll(1, 2),
    "convolutions": lambda net, y: F.conv2d(y, net.conv_weight, padding="same", groups=8),
    "einsum": lambda net, y: torch.einsum("bchw,bdhw->bcd", y, y).flatten(1).topk(3, dim=1)[0],
    "outputs": branches,
    "in place": in_place,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_methods_and_tensors_come_back(name, tmp_path):
    net = Tail(FUNCTIONS[name])
    net.conv_weight = nn.Parameter(torch.randn(8, 1, 3, 3))
    round_trip(net, X, tmp_path)


def test_what_is_in_place_stays_so(tmp_path):
    class Net(Tail):
        def forward(self, x):
            y = self.norm(self.conv(self.relu(self.stem(x)))) * 1.0
            return y + self.function(y)

    for function in (nn.Hardtanh(0.0, 0.5, inplace=True), nn.Hardtanh(0.0, 0.5)):
        _, loaded = round_trip(Net(function), X, tmp_path)
        assert loaded.function.inplace == function.inplace


@pytest.mark.parametrize("name", ["block1-0", "3x3", "conv 1", "conv/1:0", "größe", "0", "a+b", "x" * 200, "[0]"])
def test_names_of_modules_that_are_no_identifiers_come_back(name, tmp_path):
    x = torch.randn(2, 16)
    inner = nn.Sequential(OrderedDict([(name, nn.Linear(64, 64)), ("act", nn.ReLU())]))
    net = nn.Sequential(
        OrderedDict([("stem", nn.Linear(16, 64)), ("relu", nn.ReLU()), (name, inner), ("head", nn.Linear(64, 5))])
    )
    packed, loaded = round_trip(net, x, tmp_path)
    assert loaded.get_submodule(name) is not None
    assert {key for key, _ in loaded.named_modules()} >= {
        str(n.target) for n in packed.graph.nodes if n.op == "call_module"
    }


def test_constants_do_not_depend_on_the_default_dtype(tmp_path):
    packed = packed_of(Tail(lambda net, y: y * net.scale), X)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    with torch.no_grad():
        expected = packed(X)
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            loaded = sk.load_packed(tmp_path / "net.safetensors")
            sk.save_packed(packed, tmp_path / "again.safetensors")
            assert torch.equal(loaded(X), expected)
            assert parts(tmp_path / "again.safetensors")[1:] == parts(tmp_path / "net.safetensors")[1:]
    finally:
        torch.set_default_dtype(torch.float32)


# Structures that are refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structures")

    def function(net, y):
        y = F.pad(F.interpolate(y * net.scale, scale_factor=2), (1, 1, 1, 1))
        return torch.cat(torch.relu(y).chunk(2, 1), 1)[:, :4].repeat(1, 2, 1, 1).to(torch.float32)

    return round_trip(Tail(function), X, folder)[0], folder / "net.safetensors"


def forged(saved, folder, change):
    path = rewrite(saved[1], folder / "forged.safetensors", change)
    start, before = time.process_time(), hasattr(builtins, "STOMPP_INJECTED")
    with pytest.raises(
        ValueError, match=r"forged\.safetensors' holds a network that this package cannot build: "
    ) as error:
        sk.load_packed(path)
    assert time.process_time() - start < 5
    assert not before
    assert not hasattr(builtins, "STOMPP_INJECTED")
    return str(error.value)


def node(structure, target):
    return next(n for n in structure["graph"] if n["target"] == target)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", ["target", "name", "keyword", "argument", "input", "attribute", "module", "default"])
def test_text_of_a_file_is_never_code(place, payload, saved, tmp_path):
    if payload == "*args" and place in ("attribute", "module"):
        payload += '"'  # without, it is pasted into a string, and is a name as any other
    for end in LINE_ENDS:
        new = payload.format(end=end, code=CODE)

        def change(tensors, structure, new=new):
            call = node(structure, "conv_affine")
            interpolate = node(structure, "F.interpolate")
            if place == "target":
                call["target"] += f".__class__.{new}"
            elif place == "name":
                call["name"] = new
            elif place == "keyword":
                interpolate["kwargs"][new] = 1
            elif place == "argument":
                interpolate["kwargs"]["mode"] = new
            elif place == "input":
                node(structure, "x")["target"] = new
            elif place == "attribute":
                structure["attributes"][new] = structure["attributes"].pop("scale")
                node(structure, "scale")["target"] = new
                tensors[new] = tensors.pop("scale")
            elif place == "module":
                structure["modules"][new] = structure["modules"].pop(call["target"])
                call["target"] = new
            else:
                node(structure, "x")["args"] = [f"{new}\\"]

        forged(saved, tmp_path, change)


def targets(structure, **by_name):
    for name, target in by_name.items():
        node(structure, name.replace("__", "."))["target"] = target


def keyword(target, **values):
    return lambda tensors, structure: node(structure, target)["kwargs"].update(values)


def argument(target, index, value):
    return lambda tensors, structure: node(structure, target)["args"].__setitem__(index, value)


def move_module(tensors, structure, name):
    structure["modules"][name] = structure["modules"].pop("conv_affine")
    node(structure, "conv_affine")["target"] = name
    for key in ("scale", "bias", "weight"):
        tensors[f"{name}.{key}"] = tensors.pop(f"conv_affine.{key}")


REFUSED = {
    "a method as a module": (
        lambda t, s: targets(s, conv_affine="conv_affine.forward"),
        "conv_affine.forward', which is no module",
    ),
    "a class as a module": (
        lambda t, s: targets(s, conv_affine="conv_affine.__class__"),
        "which is no module of the file",
    ),
    "a module's attribute": (lambda t, s: targets(s, scale="conv_affine.forward"), "which is no attribute of the file"),
    "a packed weight": (lambda t, s: targets(s, scale="conv_affine.weight"), "which is no attribute of the file"),
    **{
        f"a module called {name}": (lambda t, s, name=name: move_module(t, s, name), "is no name of a module or tensor")
        for name in ("forward", "training", "_modules", "graph", "code", "__class__", "lambda", "a.class", "a.forward")
    },
    "a full-width name": (lambda t, s: move_module(t, s, "\uff46orward"), "is no name of a module or tensor"),
    "a part without a name": (lambda t, s: move_module(t, s, "a..b"), "is no name of a module or tensor"),
    "a module in a module": (
        lambda t, s: s["modules"].update({"conv_affine.x": s["modules"]["conv_affine"]}),
        "cannot lie in 'conv_affine'",
    ),
    "an input called self": (lambda t, s: targets(s, x="self"), "which is reserved"),
    "an input called torch": (lambda t, s: targets(s, x="torch"), "which is reserved"),
    "an input that is a keyword": (lambda t, s: targets(s, x="lambda"), "an input must be an identifier"),
    "two outputs": (lambda t, s: s["graph"].append(s["graph"][-1]), "the last node, and no other, must be the output"),
    "no output": (lambda t, s: s["graph"].pop(), "the last node, and no other, must be the output"),
    "a later node": (argument("F.interpolate", 0, {"node": "output"}), "which is no node before it"),
    "itself": (argument("F.interpolate", 0, {"node": "interpolate"}), "which is no node before it"),
    "os.system": (lambda t, s: targets(s, F__pad="os.system"), "unknown function 'os.system'"),
    "torch.load": (lambda t, s: targets(s, F__pad="torch.load"), "unknown function 'torch.load'"),
    "a method of Python's": (lambda t, s: targets(s, repeat="__reduce__"), "unknown method '__reduce__'"),
    "apply_": (lambda t, s: targets(s, repeat="apply_"), "unknown method 'apply_'"),
    "a huge padding": (argument("F.pad", 1, [1 << 40, 0]), "argument 'pad' of function 'F.pad' must be"),
    "paddings with a huge product": (argument("F.pad", 1, [900, 900, 900, 900]), "that adds at most 524288 places"),
    "an odd padding": (argument("F.pad", 1, [1, 1, 1]), "argument 'pad'"),
    "a huge scale": (keyword("F.interpolate", scale_factor=1e9), "argument 'scale_factor' of function 'F.interpolate'"),
    "scales with a huge product": (
        keyword("F.interpolate", scale_factor=[64.0, 64.0, 64.0]),
        "product is at most 4096",
    ),
    "a huge size": (keyword("F.interpolate", size=[1 << 20, 1 << 20]), "argument 'size' of function 'F.interpolate'"),
    "huge repeats": (argument("repeat", 2, 1 << 30), "argument 'repeats' of method 'repeat'"),
    "repeats with a huge product": (argument("repeat", 1, 1 << 14), "whose product is at most 16384"),
    "a boolean as a number": (argument("repeat", 1, True), "argument 'repeats' of method 'repeat'"),
    "an unknown mode": (
        keyword("F.interpolate", mode="x"),
        "argument 'mode' of function 'F.interpolate' must be one of",
    ),
    "an unknown keyword": (keyword("F.pad", out=1), "function 'F.pad' has no argument 'out'"),
    "an argument twice": (keyword("F.pad", pad=[1, 1]), "function 'F.pad' is given 'pad' twice"),
    "an unknown dtype": (argument("to", 1, {"dtype": "Storage"}), "argument 'dtype' of method 'to'"),
    "an object of two keys": (argument("to", 1, {"dtype": "float32", "x": 1}), "argument 'dtype' of method 'to'"),
    "an unknown key of a node": (lambda t, s: s["graph"][0].update(type="int"), "a node must have"),
    "an unknown key": (lambda t, s: s.update(class_name="x"), "a structure must have modules, attributes and a graph"),
    "an unknown key of a module": (
        lambda t, s: next(m for m in s["modules"].values() if "arguments" in m).update(x=1),
        "must have a type and arguments",
    ),
    "no method's tensor": (lambda t, s: node(s, "repeat").update(args=[]), "must be called on a node"),
    "a number's method": (argument("repeat", 0, 5), "must be called on a node"),
    "an attribute of another kind": (lambda t, s: s["attributes"].update(scale="module"), "attribute 'scale' must be"),
    "a tensor that is missing": (lambda t, s: t.pop("scale"), "the file lacks the tensor 'scale'"),
    "an empty tensor": (lambda t, s: t.update(x=torch.zeros(1 << 40, 0)), "is empty"),
    "a default of text that is code": (
        lambda t, s: node(s, "x").update(args=["\\"]),
        "the default of input 'x' must be",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_not_in_the_grammar_is_refused(change, saved, tmp_path):
    function, message = REFUSED[change]
    assert message in forged(saved, tmp_path, function)


def test_every_listed_function_and_module_has_a_signature_that_is_closed():
    for name, parameters in {**calls.FUNCTION_SIGNATURES, **calls.METHOD_SIGNATURES}.items():
        for parameter in (p for p in parameters if p.name != "message"):  # the text that an assertion shows
            for value in ("__import__('os')", {"node": 5}, {"x": 1}, object()):
                assert not parameter.kind.holds(value), f"{parameter.name} of {name} takes {value!r}"
    for parameters in float_modules._SIGNATURES.values():
        assert not any(p.kind.holds("x") or p.kind.holds(1 << 62) for p in parameters)


# The container


def metadata_of(text, tensors, version="3"):
    digest = container.digest(text, tensors)
    return {"format": "stompp_kernels.packed", "version": version, "structure": text, "sha256": digest}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"modules": {}, "modules": {}}', "gives the key 'modules' twice"),
        ('{"a": NaN}', "holds NaN, which is no JSON"),
        ('{"a": -Infinity}', "holds -Infinity, which is no JSON"),
        ("[" * 100_000 + "]" * 100_000, "more than 64 lists and objects in each other"),
        ("[" * 65 + "]" * 65, "more than 64 lists and objects in each other"),
        ('{"a": ' + "1" * 5000 + "}", "integer string conversion|Exceeds the limit"),
        ("[1]", "a structure must be an object, got list"),
        ("{", "Expecting"),
    ],
)
def test_json_that_is_not_strict_is_refused(text, message, tmp_path):
    save_file({}, tmp_path / "net.safetensors", metadata_of(text, {}))
    with pytest.raises(ValueError, match=message):
        sk.load_packed(tmp_path / "net.safetensors")


def sparse(path, size):
    """A whole file of one tensor of this size whose bytes are a hole."""
    header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header["__metadata__"] = {"format": "stompp_kernels.packed", "version": "3", "structure": "{}", "sha256": "0"}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the system cannot tell holes")
def test_a_sparse_file_is_refused_before_it_is_read(tmp_path):
    sparse(tmp_path / "net.safetensors", 6 << 30)
    if os.stat(tmp_path / "net.safetensors").st_blocks * 512 > 1 << 20:
        pytest.skip("the file system makes no holes")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"is a sparse file: [\d,]+ of its 6,442,\d+,\d+ bytes are there"):
        sk.load_packed(tmp_path / "net.safetensors")
    assert time.process_time() - start < 1


def test_a_header_that_is_too_long_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", 99_000_000) + b"{}")
    with pytest.raises(ValueError, match=r"its header has 99,000,000 bytes, at most 67,108,864 are read"):
        sk.load_packed(tmp_path / "net.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError, match="no file at"):
        sk.load_packed(tmp_path / "net.safetensors")


# Older versions


def older(structure, version):
    """A structure as that version wrote it."""
    del structure["attributes"]
    for spec in structure["modules"].values():
        if version == 1 and "writes" in spec:
            del spec["writes"], spec["fused"]
    for one in structure["graph"]:
        if one["target"] == "getattr":
            one["target"], one["args"] = "shape", one["args"][:1]
    return structure


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_are_read_and_as_strictly(version, tmp_path):
    x = torch.randn(3, 16)
    net = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)
    )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            y = self.net(x)
            return y.reshape(y.shape[0], 2, -1).clamp(-1.0)

    packed, _ = round_trip(Net(), x, tmp_path)
    tensors, _, structure = parts(tmp_path / "net.safetensors")
    structure = older(structure, version)
    text = json.dumps(structure)
    assert '"target": "shape"' in text
    path = tmp_path / "old.safetensors"
    path.write_bytes(save(tensors, metadata_of(text, tensors, str(version))))
    assert torch.allclose(sk.load_packed(path)(x), packed(x), atol=1e-5)  # version 1 rounds sums twice
    node(structure, "shape")["target"] = "os.system"
    text = json.dumps(structure)
    path.write_bytes(save(tensors, metadata_of(text, tensors, str(version))))
    with pytest.raises(ValueError, match=r"unknown function 'os\.system'"):
        sk.load_packed(path)
