"""Float convolutions of a converted network: swapped for this package's where that gives torch's bits."""

import copy

import pytest
import torch
from helpers import assert_same_bits, generator
from models_for_tests import committed, float_convs_of, make, randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels import native
from stompp_kernels.conversion.packing import float_convs
from stompp_kernels.nn import FloatConv2d, PackBatchNorm, PackSigns, PrepackedConv2d, Stage, UnpackSigns

pytestmark = pytest.mark.skipif(
    native.active_implementation() in ("reference", "scalar"), reason="nothing there is as fast as oneDNN"
)


def float_modules(packed):
    kinds = (FloatConv2d, PrepackedConv2d, PackBatchNorm, PackSigns, UnpackSigns, nn.BatchNorm2d)
    return {name: m for name, m in packed.named_modules() if isinstance(m, kinds)}


def test_norms_and_signs_fold_and_bits_are_read():
    model, x = committed("residual")
    with float_convs_of(torch_s=False):
        packed = sk.convert(model, verify=x)
    modules = float_modules(packed)
    stem, projection = modules["conv1_signs"], modules["blocks.1.downsample.0"]
    assert (stem.reads, stem.writes, projection.reads, projection.writes) == ("floats", "bits", "bits", "floats")
    assert [type(m) for m in modules.values()] == [FloatConv2d, FloatConv2d]
    with float_convs_of(torch_s=True):
        before = sk.convert(model, verify=x)
    assert not any(isinstance(m, FloatConv2d) for m in before.modules())
    with torch.no_grad():
        torch.testing.assert_close(packed(x), before(x))


class Stem(nn.Module):
    """A float convolution with what is given behind it, an activation, and a binary layer."""

    def __init__(self, conv, *behind):
        super().__init__()
        self.conv, self.behind, self.act = conv, nn.Sequential(*behind), nn.ReLU()
        self.layer, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.layer(self.act(self.behind(self.conv(x)))))


def converted(net, x, **options):
    model, report = sk.prepare(net, x)
    assert report.binarized() == ["layer"]
    model = set_stage(randomize_norms(model, generator(0)), Stage.BINARY).eval()
    return sk.convert(model, verify=x, **options)


class Asking(Stem):
    """Asks its last convolution where and what it computes, as position encodings do."""

    def forward(self, x):
        weight = self.head.weight
        ones = torch.ones(weight.size(0), dtype=weight.dtype, device=weight.device)
        return super().forward(x.to(weight.device)) * ones[: weight.shape[0], None, None] * weight.ndim


def test_convolutions_answer_what_models_ask_of_their_weights(g, tmp_path):
    x = torch.randn(2, 3, 12, 12, generator=g)
    torch.manual_seed(0)
    with float_convs_of(torch_s=False):
        packed = converted(Asking(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), x)
    conv = packed.head
    assert isinstance(conv, FloatConv2d)
    assert (conv.weight.dim(), conv.weight.numel(), conv.weight.requires_grad) == (4, 2 * 8, False)
    with pytest.raises(TypeError, match=r"must be given floats, got a float convolution's weight.* its unpacked\(\)"):
        torch.relu(conv.weight)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert_same_bits(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))
    conv.to(torch.bfloat16)
    assert conv.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_signs_of_norms_and_biases(bias, norm, g):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 10)
    behind = [nn.BatchNorm2d(8)] if norm else []
    with float_convs_of(torch_s=False):
        packed = converted(Stem(nn.Conv2d(3, 8, 3, 2, 1, bias=bias), *behind), x)
    assert float_modules(packed)["conv_signs"].writes == "bits"
    assert not any(isinstance(m, (PackBatchNorm, PackSigns)) for m in packed.modules())


def test_norms_of_floats_fold():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 10)
    net = Stem(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1))
    with float_convs_of(torch_s=False):
        packed = converted(net, x)
    assert float_modules(packed)["conv_affine"].writes == "affine"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in packed.modules())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding="same"),
    ],
    ids=["groups", "same"],
)
def test_what_has_no_kernel_stays(conv):
    x = torch.randn(2, 4, 9, 10)
    with float_convs_of(torch_s=False):
        packed = converted(Stem(conv), x)
    assert isinstance(packed.conv, PrepackedConv2d)


def test_a_convolution_that_adds_in_another_order_stays(monkeypatch):
    """torch's bits are compared for an image of the size that the layer will read."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 12)
    tried = []

    class Wrong(FloatConv2d):
        def forward(self, x):
            tried.append(tuple(x.shape))
            return torch.nextafter(super().forward(x), torch.tensor(torch.inf))

    monkeypatch.setattr(float_convs, "FloatConv2d", Wrong)
    packed = converted(Stem(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)), x)
    assert isinstance(packed.conv, PrepackedConv2d)
    assert tried == [(1, 3, 20, 12), (1, 8, 56, 56)], "of the head's input nothing is known"


def test_portable_code_leaves_them_to_torch():
    model, _ = committed("residual")
    with native.use_implementation("scalar"), float_convs_of(torch_s=False):
        packed = sk.convert(model)
    assert not any(isinstance(m, FloatConv2d) for m in packed.modules())


def test_the_convolution_is_saved_exported_compiled_copied(tmp_path):
    model, x = committed("residual")
    with float_convs_of(torch_s=False):
        packed = sk.convert(model)
    expected = packed(x)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    sk.export_packed(packed, tmp_path / "net.pt2", x[:1])
    twins = {
        "loaded": sk.load_packed(tmp_path / "net.safetensors"),
        "mapped": sk.load_packed(tmp_path / "net.safetensors", mmap=True),
        "exported": sk.load_exported(tmp_path / "net.pt2"),
        "copied": copy.deepcopy(packed),
        "compiled": torch.compile(packed, backend="aot_eager"),
    }
    for name, twin in twins.items():
        assert_same_bits(twin(x), expected, name)


def test_settings_that_no_file_may_hold_are_refused_when_they_are_saved(tmp_path):
    model, _ = committed("residual")
    with float_convs_of(torch_s=False):
        packed = sk.convert(model)
    arguments = {"in_channels": 1 << 40, "out_channels": 0, "writes": "code", "stride": (0, 1), "reads": None}
    for name, value in arguments.items():
        forged = copy.deepcopy(packed)
        setattr(forged.conv1_signs, name, value)
        with pytest.raises(ValueError, match=f"argument '{name}' of module 'conv1_signs' of type FloatConv2d must be"):
            sk.save_packed(forged, tmp_path / "forged.safetensors")


def test_explained():
    model, x = committed("residual")
    with float_convs_of(torch_s=False):
        packed = sk.convert(model)
    rows = {row.name: row for row in sk.explain(packed, x, seconds=0.05).rows}
    stem, projection = rows["conv1_signs"], rows["blocks.1.downsample.0"]
    assert (stem.kernel, projection.kernel) == ("conv2d_float_signs", "conv2d_float")
    assert stem.implementation == native.active_implementation()
    outputs = packed.conv1_signs.out_channels
    assert stem.nbytes == 4 * (3 * 9 * 32 + 2 * outputs)
    assert stem.float_nbytes == 4 * (3 * 9 * outputs + 4 * outputs)
    assert stem.operations == 2 * len(x) * 8 * 8 * 3 * 9 * outputs
    assert "BatchNorm and sign" in stem.reason


def test_partly_committed_networks_keep_their_soft_layers():
    model, x = make("residual")
    for index, layer in enumerate(m for m in model.modules() if isinstance(m, sk.nn.BinaryLayer)):
        if index < 2:
            for module in (layer, layer.activation):
                if module is not None:
                    module.commit()
    with float_convs_of(torch_s=False):
        sk.convert(model.eval(), verify=x)
