"""Convolutions of sequences and transposed ones: as torch's, and on bits."""

import pytest
import torch
from models_for_tests import binary_layers, randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer


def seeded(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "groups"),
    [(4, 2, 1, 0, 1), (2, 2, 0, 0, 2), (6, 3, 2, 1, 4), (3, 1, 1, 0, 1), (4, 4, 3, 3, 1)],
)
def test_transposed_convolutions_are_torch_s(kernel, stride, padding, output_padding, groups):
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(4, 8, kernel, stride, padding, output_padding, groups)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), plain, nn.Conv2d(8, 3, 1))
    x = seeded((2, 4, 5, 7)).clamp(-1, 1)
    model, report = sk.prepare(net, seeded((1, 3, 5, 7)), latent_std=None)
    assert report.binarized() == ["1"]
    model[1].input_activation = None
    torch.testing.assert_close(model[1](x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 3, 2, 2), (1, "same", 1, 4)])
def test_convolutions_of_sequences_are_torch_s(stride, padding, dilation, groups):
    torch.manual_seed(0)
    plain = nn.Conv1d(4, 8, 3, stride, padding, dilation, groups)
    model, _ = sk.prepare(
        nn.Sequential(nn.Conv1d(3, 4, 1), plain, nn.Conv1d(8, 3, 1)), seeded((2, 3, 20)), latent_std=None
    )
    model[1].input_activation = None
    x = seeded((2, 4, 20)).clamp(-1, 1)
    torch.testing.assert_close(model[1](x), plain(x), rtol=1e-5, atol=1e-6)


class Sequences(nn.Module):
    """Chains of all kinds: BatchNorm and ReLU, a shortcut, pooling, and a reader of floats."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(3, 24, 5, padding=2)
        self.conv1, self.norm1, self.relu1 = nn.Conv1d(24, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU()
        self.conv2, self.norm2, self.relu2 = nn.Conv1d(24, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU()
        self.conv3, self.norm3, self.pool = nn.Conv1d(24, 40, 1), nn.BatchNorm1d(40), nn.MaxPool1d(2)
        self.relu3, self.conv4, self.head = nn.ReLU(), nn.Conv1d(40, 40, 2, 2), nn.Linear(40, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu1(self.norm1(self.conv1(x)))
        x = x + self.norm2(self.conv2(y))
        y = self.pool(self.relu3(self.norm3(self.conv3(self.relu2(x)))))
        return self.head(self.conv4(y).mean(-1))


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up1, self.norm = nn.Conv2d(3, 8, 3, 1, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8)
        self.relu, self.up2, self.head = nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.up2(self.relu(self.norm(self.up1(self.stem(x))))))


@pytest.mark.parametrize("binarize", ["both", "weights"])
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape", "count"), [(Sequences, (2, 3, 21), 4), (Upsampling, (2, 3, 5, 6), 2)], ids=["1d", "transposed"]
)
def test_they_run_on_bits_and_are_saved(kind, shape, count, by_layer, binarize, tmp_path):
    torch.manual_seed(0)
    x = seeded(shape)
    model, report = sk.prepare(kind(), x, binarize=binarize)
    assert len(report.binarized()) == count
    g = torch.Generator().manual_seed(0)
    set_stage(randomize_norms(model, g), Stage.BINARY).eval()
    with torch.no_grad(), sk.float_simulation():
        expected = model(x)
    packed = sk.convert(model, verify=x, by_layer=by_layer)
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == count
    torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)  # on bits too
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(x), packed(x))


class ReadsAttributes(nn.Module):
    """As Whisper does, it computes sizes from the numbers of a layer."""

    def __init__(self, plain):
        super().__init__()
        conv = nn.Conv1d if isinstance(plain, nn.Conv1d) else nn.Conv2d
        self.first, self.plain, self.head = conv(3, plain.in_channels, 1), plain, conv(plain.out_channels, 2, 1)

    def forward(self, x):
        y, layer = self.plain(self.first(x)), self.plain
        reach = layer.dilation[0] * (layer.kernel_size[0] - 1) + 1 - 2 * layer.padding[0]
        stride, length = layer.stride[0], x.shape[-1]
        size = (length - reach) // stride + 1 if len(layer.stride) == 1 else (length - 1) * stride + reach
        if y.shape[-1] != size or y.shape[1] != layer.out_channels:
            raise ValueError(f"expected {layer.out_channels} channels of {size}, got {list(y.shape)}")
        return self.head(y)


@pytest.mark.parametrize(
    ("plain", "shape"),
    [(nn.Conv1d(8, 6, 5, 2, 1, 2), (2, 3, 21)), (nn.ConvTranspose2d(8, 6, 4, 2, 1), (2, 3, 6, 6))],
    ids=["1d", "transposed"],
)
def test_models_read_the_numbers_of_the_layer_that_was_there(plain, shape):
    x = seeded(shape)
    model, report = sk.prepare(ReadsAttributes(plain), x)
    assert report.binarized() == ["plain"]
    set_stage(model, Stage.BINARY).eval()
    packed = sk.convert(model, verify=x, by_layer=True)
    for net in (model, packed):
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            assert getattr(net.plain, name) == getattr(plain, name), name


def test_chains_of_sequences_fold_as_those_of_images_do():
    torch.manual_seed(0)
    x = seeded((2, 3, 20))
    model, _ = sk.prepare(Sequences(), x)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    packed = sk.convert(model, verify=x)
    writes = {m.replaces[0]: m.writes for m in packed.modules() if isinstance(m, PackedLayer)}
    assert writes["conv1"] == "bits"
    assert writes["conv3"] == "bits"
    assert writes["conv2"] == "bits", "its sum with the shortcut is read as signs alone"


def test_gradients_reach_latent_weights():
    for kind, shape in ((Sequences, (2, 3, 20)), (Upsampling, (2, 3, 4, 4))):
        model, _ = sk.prepare(kind(), seeded(shape))
        model(seeded(shape)).square().mean().backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in binary_layers(model).values())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(4, 4, 3, 2), "kernel 3 at stride 2 has no binary kernel"),
        (nn.ConvTranspose2d(4, 4, 2, 2, dilation=2), "kernel 2 at stride 2 has no binary kernel"),
        (nn.ConvTranspose2d(4, 4, (2, 4), 2), "differs in height and width"),
        (nn.ConvTranspose2d(4, 4, 2, 2, output_padding=1), "output padded at most by its padding"),
    ],
)
def test_those_without_a_kernel_stay(layer, reason):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    _, report = sk.prepare(net, seeded((1, 3, 4, 4)))
    assert reason in next(row.reason for row in report.rows if row.name == "1")


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="kernel_size must be a multiple of stride 2, got 3"):
        sk.nn.BinaryConvTranspose2d(4, 4, 3, 2)
    with pytest.raises(ValueError, match="output_padding must be at most padding 0, got 1"):
        sk.nn.BinaryConvTranspose2d(4, 4, 2, 2, output_padding=1)
    with pytest.raises(ValueError, match=r"x must be \[B, C, L\], got shape \[4, 8\]"):
        sk.nn.BinaryConv1d(4, 4, 3)(torch.randn(4, 8))
