"""Files of networks whose forward only runs: they hold what torch.export reads of it."""

import json

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import randomize_norms, set_stage
from torch import nn
from torch.utils._pytree import tree_leaves

import stompp_kernels as sk
from stompp_kernels.conversion.files import container
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer


class Branching(nn.Module):
    """Branches on sizes, so that torch.fx cannot trace it, and computes with all kinds of things."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.up, self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)
        self.layer_norm, self.deconv = nn.LayerNorm(16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.table, self.gru = nn.Embedding(5, 16), nn.GRU(16, 16, batch_first=True)
        self.places = nn.Parameter(torch.randn(1, 64, 16))
        self.head = nn.Linear(16, 4)
        self.register_buffer("order", torch.arange(63, -1, -1))

    def forward(self, x, ids=None, scale=1.0):
        y = self.norm(self.conv(self.stem(x)))
        if y.shape[-1] > 4:
            y = F.interpolate(y, size=(8, 8), mode="bilinear")
        z = y.flatten(2).transpose(1, 2) + self.places
        if ids is not None:
            z = z + self.table(ids)[:, None]
        z = z[:, self.order]
        z = z + self.fc1(F.gelu(self.up(self.layer_norm(z)))) * scale
        q = self.fc2(z).reshape(z.shape[0], -1, 2, 8).transpose(1, 2)
        z = ((q @ q.transpose(-1, -2) / 8**0.5).softmax(-1) @ q).transpose(1, 2).flatten(2)
        z = torch.roll(self.gru(z)[0], 1, 1) * torch.ones_like(z).cumsum(1) / torch.arange(1, 65)[None, :, None]
        shuffled = F.pixel_shuffle(self.deconv(y), 2)
        return {"y": self.head(z.mean(1)), "u": (shuffled, torch.where(y > 0, y, torch.zeros(1)).std((1, 2, 3)))}


def inputs(batch=2):
    g = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 16, 16, generator=g), torch.arange(batch)


@pytest.fixture(scope="module")
def packed():
    torch.manual_seed(0)
    model, _ = sk.prepare(Branching(), inputs(), on_refusal="keep")
    randomize_norms(model, torch.Generator().manual_seed(0))
    return sk.convert(set_stage(model, Stage.BINARY).eval(), verify=inputs(), by_layer=True)


@pytest.fixture(scope="module")
def saved(packed, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    sk.save_packed(packed, path)
    return path.read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(saved)
    return tmp_path / "net.safetensors"


def assert_same(found, expected):
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_a_forward_that_torch_fx_cannot_trace_is_saved(packed, path, tmp_path):
    loaded = sk.load_packed(path)
    layers = {m.replaces for m in loaded.modules() if isinstance(m, PackedLayer)}
    assert layers == {m.replaces for m in packed.modules() if isinstance(m, PackedLayer)}
    assert len(layers) == 5
    for batch in (1, 2, 5):
        assert_same(loaded(*inputs(batch)), packed(*inputs(batch)))
    assert_same(loaded(inputs()[0], ids=inputs()[1]), packed(*inputs()))
    sk.save_packed(loaded, tmp_path / "again.safetensors")
    assert_same(sk.load_packed(tmp_path / "again.safetensors")(*inputs()), packed(*inputs()))
    assert "x has shape [any, 3, 16, 16]" in sk.explain(loaded).arguments


def test_what_was_fixed_is_checked(path):
    loaded = sk.load_packed(path)
    with pytest.raises(
        ValueError, match=r"x must be a tensor of shape \[any, 3, 16, 16\], got a tensor of shape \[2, 3"
    ):
        loaded(torch.randn(2, 3, 8, 8), inputs()[1])
    with pytest.raises(ValueError, match="ids must be"):
        loaded(inputs()[0])
    with pytest.raises(ValueError, match=r"scale must be 1\.0"):
        loaded(*inputs(), 2.0)


@pytest.mark.slow
def test_saving_again_needs_no_inputs_and_others_can_be_given(packed, tmp_path):
    given = (torch.randn(2, 3, 24, 24), torch.arange(2))
    sk.save_packed(packed, tmp_path / "net.safetensors", example_inputs=given)
    assert_same(sk.load_packed(tmp_path / "net.safetensors")(*given), packed(*given))


def test_without_inputs_the_error_says_what_to_do(tmp_path):
    model, _ = sk.prepare(Branching(), inputs(), on_refusal="keep")
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), by_layer=True)
    with pytest.raises(ValueError, match="give save_packed example_inputs"):
        sk.save_packed(packed, tmp_path / "net.safetensors")


class Transformed(nn.Module):
    """Calls a function that no file may hold."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.c(torch.linalg.solve(torch.eye(8), self.b(self.a(x)).T).T)


def test_the_error_names_node_file_and_line(tmp_path):
    x = torch.randn(2, 8)
    model, _ = sk.prepare(Transformed(), x)
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), verify=x)
    with pytest.raises(ValueError, match=r"linalg_solve.*test_serialize_exported.py\", line \d+, in forward"):
        sk.save_packed(packed, tmp_path / "net.safetensors")


class Normalized(nn.Module):
    """Float layers whose weights are computed at each call."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 8, 3, padding=1))
        self.second, self.third = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.head(self.third(self.second(self.first(x))).mean(2)))


def test_weights_that_are_computed_at_each_call_are_constants(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 12)
    model, report = sk.prepare(Normalized(), x, on_refusal="keep")
    assert report.binarized() == ["third"]
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), verify=x)
    assert nn.utils.parametrize.is_parametrized(model.first), "the model stays as it is"
    assert not nn.utils.parametrize.is_parametrized(packed)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))


def test_operators_of_signals_and_bits_are_held(tmp_path):
    class Spectrum(Transformed):
        def forward(self, x):
            y = self.b(self.a(x))
            inside = (y > -2) & ~(y > 2) | (y == 0)
            y = torch.where(inside, y, torch.zeros_like(y)) - torch.fft.rfft(y, norm="ortho").abs().mean()
            return self.c(y) + torch.stft(y.flatten(), 8, window=torch.hann_window(8), return_complex=True).real.mean()

    x = torch.randn(2, 8)
    model, _ = sk.prepare(Spectrum(), x)
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), verify=x, by_layer=True)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("aten.set_.source_Tensor", [0, 0], "unknown function"),
        ("aten._weight_norm_interface.default", [0, 0, 0], "unknown function"),
        ("aten.fft_rfft.default", [0, 1 << 30], "'n'"),
        ("aten.hann_window.default", [1 << 30], "window_length"),
        ("aten.repeat.default", [0, [1 << 20, 1 << 20]], "repeats"),
        ("aten.expand.default", [0, [1 << 30]], "size"),
        ("aten.zeros.default", [[1 << 40]], "size"),
        ("aten.constant_pad_nd.default", [0, [1 << 30, 0]], "pad"),
        ("aten.gelu.default", [0, "x"], "approximate"),
        ("aten.upsample_nearest2d.vec", [0, [1 << 20, 1 << 20], None], "output_size"),
        ("aten.add.Tensor", ["x", 0], "self"),
        ("aten.to.dtype", [0, {"dtype": "eval"}], "dtype"),
    ],
)
def test_operators_are_checked_before_they_are_called(path, target, args, message):
    structure, tensors, _ = container.read(path)
    structure = json.loads(json.dumps(structure))
    node = next(node for node in structure["graph"] if node["target"].startswith("aten."))
    first = node["args"][0]
    node["target"], node["args"], node["kwargs"] = target, [first if a == 0 else a for a in args], {}
    path.write_bytes(container.to_bytes(structure, tensors))
    with pytest.raises(ValueError, match=message):
        sk.load_packed(path)
