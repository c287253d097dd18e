"""Convolutions that skip pixels of unpacked signs are given only those that they read, and give the same bits."""

import pytest
import torch
from helpers import assert_same_bits, generator, grid, random_floats
from models_for_tests import float_convs_of, randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.packing import graph as pack_graph
from stompp_kernels.nn import Stage, UnpackSigns


@pytest.fixture(autouse=True)
def torchs_convolutions():
    """Torch's convolutions, which read unpacked signs: those of this package read the bits as they are."""
    with float_convs_of(torch_s=True):
        yield


class Downsampling(nn.Module):
    """A committed activation is read by a binary layer and by float convolutions."""

    def __init__(self, *downsample, shortcut=None):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU()
        self.conv, self.head = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.Conv2d(12, 2, 1)
        self.downsample, self.shortcut = nn.ModuleList(downsample), shortcut

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.conv(x)
        for layer in self.downsample:
            y = y + layer(x)
        return self.head(y if self.shortcut is None else y + self.shortcut(x))


def committed(net, x, binarized=("conv",)):
    model, report = sk.prepare(net, x)
    assert report.binarized() == list(binarized)
    return set_stage(randomize_norms(model, generator(0)), Stage.BINARY).eval()


def strides(packed):
    """Returns the strides of the unpacking, and of the float convolutions of the shortcuts."""
    convs = [m.stride for name, m in packed.named_modules() if isinstance(m, nn.Conv2d) and "downsample" in name]
    return [m.stride for m in packed.modules() if isinstance(m, UnpackSigns)], convs


def without_the_change(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pack_graph, "move_strides_to_unpacking", lambda packed: None)
        return sk.convert(model)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "case", grid(size=[(7, 5), (6, 6), (1, 9)], groups=[1, 4], bias=[False, True], padding=[0, "valid"])
)
def test_shortcuts_get_the_pixels_that_they_read(implementation, case, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *case["size"])
    shortcut = nn.Conv2d(8, 12, 1, 2, case["padding"], 3, case["groups"], case["bias"])
    model = committed(Downsampling(shortcut), x)
    packed = sk.convert(model, verify=x)
    assert strides(packed) == ([(2, 2)], [(1, 1)])
    assert model.downsample[0].stride == (2, 2), "the model given stays as it is"
    before = without_the_change(model, monkeypatch)
    assert strides(before) == ([(1, 1)], [(2, 2)])
    with torch.no_grad():
        assert_same_bits(packed(x), before(x))


def test_several_readers_of_one_stride_share_the_unpacking(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 6)
    net = Downsampling(nn.Conv2d(8, 12, 1, 2), nn.Conv2d(8, 1, 1, (2, 2)))
    model = committed(net, x)
    packed = sk.convert(model, verify=x)
    assert strides(packed) == ([(2, 2)], [(1, 1), (1, 1)])
    sk.save_packed(packed, tmp_path / "net.safetensors")
    sk.export_packed(packed, tmp_path / "net.pt2", x[:1])
    with torch.no_grad():
        expected = without_the_change(model, monkeypatch)(x)
        for twin in (packed, sk.load_packed(tmp_path / "net.safetensors")):
            assert_same_bits(twin(x), expected)
        # Exported convolutions may add in another order.
        torch.testing.assert_close(sk.load_exported(tmp_path / "net.pt2")(x), expected)


class Slice(nn.Module):
    def forward(self, x):
        return x[:, :1, ::2, ::2]


class Twice(nn.Module):
    """Calls one convolution on the signs and on other pixels."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.register_buffer("pixels", torch.ones(1, 8, 7, 6))

    def forward(self, x):
        return self.conv(x) + self.conv(self.pixels)


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input)


@pytest.mark.parametrize(
    ("downsample", "shortcut"),
    [
        ([nn.Conv2d(8, 12, 3, 2, 1)], None),
        ([nn.Conv2d(8, 12, (1, 2), 2)], None),
        ([nn.Conv2d(8, 12, 1, 2), nn.Conv2d(8, 12, 3, 2, 1)], None),
        ([nn.Conv2d(8, 12, 1, 2)], Slice()),
        ([], Twice(nn.Conv2d(8, 12, 1, 2))),
        ([OwnForward(8, 12, 1, 2)], None),
    ],
    ids=["3x3", "1x2", "1x1 and 3x3", "not a convolution", "called twice", "a forward of its own"],
)
def test_others_read_every_pixel(downsample, shortcut):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6)
    model = committed(Downsampling(*downsample, shortcut=shortcut), x)
    packed = sk.convert(model, verify=x)
    # torch.fx traces into a forward of one's own, down to a function's call.
    assert strides(packed) == ([(1, 1)], [conv.stride for conv in downsample if type(conv) is nn.Conv2d])


@pytest.mark.parametrize(
    "downsample", [[nn.Conv2d(8, 12, 1, 3, 1)], [nn.Conv2d(8, 12, 1, 2), nn.Conv2d(8, 12, 1, (1, 2))]]
)
def test_padding_and_different_strides_stay(downsample):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 7)
    layers = [nn.Sequential(layer, nn.AdaptiveAvgPool2d(4)) for layer in downsample]
    packed = sk.convert(committed(Downsampling(*layers), x), verify=x)
    assert strides(packed) == ([(1, 1)], [layer.stride for layer in downsample])


def test_unpacking_with_a_stride(implementation, g):
    x = random_floats((2, 40, 7, 5), g, specials=0).sign()
    words = sk.ops.pack_signs(x.permute(0, 2, 3, 1))
    assert_same_bits(UnpackSigns(40, True, (3, 2))(words).contiguous(), x[:, :, ::3, ::2].contiguous())
    with pytest.raises(ValueError, match=r"stride must be 1 where there are no images, got \(2, 1\)"):
        UnpackSigns(40, False, (2, 1))
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        UnpackSigns(40, True, 0)
