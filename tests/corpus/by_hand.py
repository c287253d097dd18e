"""Networks of the literature, written here: those of the larq zoo, of audio, of images in and out, and of pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus.network import Network, images, tokens


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, **options)


class Stem(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(_conv(3, width, 3, 2), nn.BatchNorm2d(width))


class Head(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class DenseLayer(nn.Module):
    """BatchNorm, then a convolution whose output is put beside its input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), _conv(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x))], 1)


def binary_dense_net() -> nn.Module:
    """BinaryDenseNet-28 (Bethge et al. 2019), with growth 16."""
    layers: list[nn.Module] = [Stem(32)]
    width = 32
    for block, (count, reduction) in enumerate(((6, 2.7), (6, 2.7), (6, 2.2), (5, 0))):
        for _ in range(count):
            layers.append(DenseLayer(width, 16))
            width += 16
        if reduction:
            narrow = int(width / reduction) // 32 * 32
            pool = [nn.MaxPool2d(2, 2)] if block < 2 else []
            layers += [nn.BatchNorm2d(width), *pool, nn.ReLU(), nn.Conv2d(width, narrow, 1, bias=False)]
            width = narrow
    return nn.Sequential(*layers, nn.BatchNorm2d(width), Head(width))


class QuickBlock(nn.Module):
    """A convolution, ReLU and BatchNorm with a shortcut of real values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.act, self.norm = _conv(width, width), nn.ReLU(), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.act(self.conv(x)))


class QuickTransition(nn.Sequential):
    def __init__(self, width: int, wide: int) -> None:
        blur = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        super().__init__(nn.MaxPool2d(3, 1, 1), blur, nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide))


def quick_net() -> nn.Module:
    """QuickNet (Bannink et al. 2021), with fewer channels."""
    layers: list[nn.Module] = [Stem(16)]
    for width, wide in ((16, 32), (32, 48), (48, None)):
        layers += [QuickBlock(width), QuickBlock(width)]
        if wide:
            layers.append(QuickTransition(width, wide))
    return nn.Sequential(*layers, Head(48))


class ImprovementBlock(nn.Module):
    """MeliusNet's second half: a convolution whose result is added to the last channels."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv, self.growth = nn.BatchNorm2d(width), _conv(width, growth), growth

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x))
        return torch.cat([x[:, : -self.growth], x[:, -self.growth :] + y], 1)


def melius_net() -> nn.Module:
    """MeliusNet (Bethge et al. 2020), with growth 16."""
    layers: list[nn.Module] = [_conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), _conv(16, 32), nn.BatchNorm2d(32)]
    width = 32
    for narrow in (32, None):
        for _ in range(2):
            layers += [DenseLayer(width, 16), ImprovementBlock(width + 16, 16)]
            width += 16
        if narrow:
            layers += [nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(width, narrow, 1, groups=4)]
            width = narrow
    return nn.Sequential(*layers, nn.BatchNorm2d(width), Head(width))


def xnor_net() -> nn.Module:
    """XNOR-Net's AlexNet (Rastegari et al. 2016), with fewer channels: BatchNorm before each convolution."""
    layers = [nn.Conv2d(3, 24, 5, 2, 2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs, pool in ((24, 48, True), (48, 64, False), (64, 48, True)):
        layers += [nn.BatchNorm2d(inputs, eps=1e-4, momentum=0.1), _conv(inputs, outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    layers += [
        nn.BatchNorm2d(48),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(48, 64),
        nn.BatchNorm1d(64),
        nn.Linear(64, 10),
    ]
    return nn.Sequential(*layers)


class BiRealBlock(nn.Module):
    """One convolution with a shortcut around it; average pooling and a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.side = nn.Sequential()
        if stride > 1:
            self.side = nn.Sequential(nn.AvgPool2d(2), _conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.side(x)


def bi_real_net() -> nn.Module:
    """Bi-Real Net (Liu et al. 2018)."""
    blocks = [BiRealBlock(*sizes) for sizes in ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 48, 2))]
    return nn.Sequential(Stem(16), *blocks, Head(48))


class MobileBlock(nn.Module):
    """A depthwise and a pointwise convolution, each with BatchNorm and PReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise, self.norm1 = _conv(inputs, inputs, 3, stride, groups=inputs), nn.BatchNorm2d(inputs)
        self.act1, self.pointwise = nn.PReLU(inputs), _conv(inputs, outputs, 1)
        self.norm2, self.act2 = nn.BatchNorm2d(outputs), nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.norm2(self.pointwise(self.act1(self.norm1(self.depthwise(x))))))


def mobilenet_v1() -> nn.Module:
    blocks = [MobileBlock(*sizes) for sizes in ((16, 32, 1), (32, 48, 2), (48, 64, 1))]
    return nn.Sequential(Stem(16), *blocks, Head(64))


class Keywords(nn.Module):
    """M5 (Dai et al. 2017): keywords from the wave itself, by convolutions of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(1, 32, 80, stride=4), nn.BatchNorm1d(32)
        self.conv2, self.norm2 = nn.Conv1d(32, 32, 3), nn.BatchNorm1d(32)
        self.conv3, self.norm3 = nn.Conv1d(32, 64, 3, padding=1), nn.BatchNorm1d(64)
        self.pool, self.head = nn.MaxPool1d(4), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        x = self.pool(F.relu(self.norm3(self.conv3(x))))
        return F.log_softmax(self.head(F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)), dim=2)


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions: padded on both sides, and cut at the end."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.norm1, self.relu1 = nn.BatchNorm1d(outputs), nn.ReLU()
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.norm2, self.relu2 = nn.BatchNorm1d(outputs), nn.ReLU()
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.conv1(x)[:, :, : -self.cut].contiguous()))
        y = self.norm2(self.conv2(y)[:, :, : -self.cut].contiguous())
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class TemporalNet(nn.Module):
    """TCN (Bai et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(TemporalBlock(2, 24, 1), TemporalBlock(24, 24, 2), TemporalBlock(24, 32, 4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[:, :, -1])


class SeparableKeywords(nn.Module):
    """DS-CNN (Zhang et al. 2017): depthwise-separable convolutions of a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, (10, 4), 2, (5, 1)), nn.BatchNorm2d(24), nn.ReLU())
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.BatchNorm2d(24), nn.ReLU()]
            layers += [nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class TwoConvs(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            *(_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
            *(_conv(outputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
        )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): upsampled by transposed convolutions, with concatenated shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = TwoConvs(3, 16), TwoConvs(16, 32), TwoConvs(32, 48)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.join2 = nn.ConvTranspose2d(48, 32, 2, 2), TwoConvs(64, 32)
        self.up1, self.join1 = nn.ConvTranspose2d(32, 16, 2, 2), TwoConvs(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.up2(self.middle(self.pool(two)))
        y = self.up1(self.join2(torch.cat([two, y], dim=1)))
        y = self.join1(torch.cat([one, F.interpolate(y, one.shape[2:], mode="bilinear", align_corners=False)], dim=1))
        return self.head(y)


def generator() -> nn.Module:
    """DCGAN's generator (Radford et al. 2015)."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(16, 48, 4, 1, 0, bias=False), nn.BatchNorm2d(48), nn.ReLU(True)]
    for inputs, outputs in ((48, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())


def discriminator() -> nn.Module:
    """DCGAN's discriminator, with spectral normalization of the first layer left out."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs in ((16, 32), (32, 48)):
        layers += [
            nn.Conv2d(inputs, outputs, 4, 2, 1),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(48, 1, 4), nn.Flatten(0))


class Siamese(nn.Module):
    """One encoder for two images, whose codes are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(_conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), _conv(16, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU()),
            *(_conv(32, 32), nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16)),
        )
        self.head = nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(self.head(torch.abs(self.encoder(a) - self.encoder(b))))


class MixerBlock(nn.Module):
    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(places, 24), nn.GELU(), nn.Linear(24, places))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 8, 8)
        self.blocks, self.norm = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32)), nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class TokenClassifier(nn.Module):
    """A class token, positions and nn.TransformerEncoder: parameters and buffers that the forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.first = nn.Embedding(60, 32), nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 13, 32))
        self.register_buffer("mask", torch.zeros(13, 13))
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(ids.shape[0], -1, -1), self.tokens(ids)], 1) + self.places
        return self.head(self.norm(self.encoder(x, self.mask))[:, 0])


class SuperResolution(nn.Module):
    """ESPCN with residual blocks (Shi et al. 2016): the pixels are shuffled at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 24, 5, padding=2), nn.ModuleList(QuickBlock(24) for _ in range(2))
        self.up, self.shuffle = nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
        return self.shuffle(self.up(y)).clamp(0, 1) + F.interpolate(x, scale_factor=2.0, mode="bicubic")


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) with group normalization, whose levels are outputs under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([TwoConvs(3, 16), TwoConvs(16, 24), TwoConvs(24, 32)])
        self.sides = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in (16, 24, 32))
        self.outs = nn.ModuleList(nn.Sequential(_conv(16, 16), nn.GroupNorm(4, 16)) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found, result = [], {}
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2)
            found.append(x)
        top = None
        for level in (2, 1, 0):
            side = self.sides[level](found[level])
            top = side if top is None else side + F.interpolate(top, size=side.shape[-2:], mode="nearest")
            result[f"level{level}"] = self.outs[level](top)
        return result


class Points(nn.Module):
    """PointNet (Qi et al. 2016): pointwise convolutions of one dimension, then the largest over all points."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 64)
        self.body = nn.Sequential(
            *(
                module
                for inputs, outputs in itertools.pairwise(widths)
                for module in (nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())
            )
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.max(self.body(x), 2, keepdim=True)[0].view(-1, 64))


class Volume(nn.Module):
    """A network of volumes, whose layers of two dimensions alone can be binary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2))
        self.body.append(nn.Conv3d(8, 16, 3, padding=1)).append(nn.BatchNorm3d(16)).append(nn.AdaptiveAvgPool3d(2))
        self.head = nn.Sequential(nn.Linear(128, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48))
        self.head.append(nn.BatchNorm1d(48)).append(nn.Hardtanh()).append(nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Recommender(nn.Module):
    """Neural collaborative filtering (He et al. 2017): embeddings of users and items."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(48, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.users(user), self.items(item)
        return torch.sigmoid(self.head(torch.cat([u * i, self.body(torch.cat([u, i], dim=-1))], dim=-1))).squeeze(-1)


class Autoencoder(nn.Module):
    """A variational autoencoder in eval mode, without its noise."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ELU(), nn.Linear(64, 32), nn.ELU())
        self.mean, self.variance = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ELU(), nn.Linear(32, 64), nn.ELU(), nn.Linear(64, 192))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.encoder(x)
        mean, log_variance = self.mean(code), self.variance(code)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance) if self.training else mean
        return torch.sigmoid(self.decoder(z)).view(x.shape), mean, log_variance


class Recurrent(nn.Module):
    """Convolutions of a spectrogram, then a GRU (CRNN, Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_conv(1, 16), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(_conv(16, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d((2, 1))),
            *(_conv(32, 32), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.rnn, self.head = nn.GRU(32 * 4, 16, bidirectional=True, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.rnn(x)[0]).log_softmax(-1)


class GatedBlock(nn.Module):
    """WaveNet's gate (van den Oord et al. 2016): two convolutions of one dimension, multiplied."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.signal = nn.Conv1d(width, width, 2, dilation=dilation)
        self.gate = nn.Conv1d(width, width, 2, dilation=dilation)
        self.out, self.scale, self.dilation = nn.Conv1d(width, width, 1), nn.Parameter(torch.ones(width, 1)), dilation

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.dilation, 0))
        return x + self.scale * self.out(torch.tanh(self.signal(padded)) * torch.sigmoid(self.gate(padded)))


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 24, 1)
        self.blocks = nn.ModuleList(GatedBlock(24, 2**i) for i in range(3))
        self.head = nn.Conv1d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(x))


class Excited(nn.Module):
    """A residual block with squeeze-and-excitation (Hu et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(width, width), nn.BatchNorm2d(width)
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return x + y * scale


def excited_net() -> nn.Module:
    return nn.Sequential(Stem(32), Excited(32), Excited(32), Head(32))


def _sound(channels: int, length: int) -> Tensor:
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(0))


def _pair() -> tuple[Tensor, Tensor]:
    return images(16), images(16).flip(0)


def _recommender() -> tuple[nn.Module, Any]:
    return Recommender(), (torch.tensor([1, 7, 4]), torch.tensor([3, 2, 0]))


MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "BinaryDenseNet-28": (binary_dense_net, images),
    "QuickNet": (quick_net, images),
    "MeliusNet": (melius_net, images),
    "XNOR-Net": (xnor_net, images),
    "Bi-Real Net": (bi_real_net, images),
    "MobileNet v1 with PReLU": (mobilenet_v1, images),
    "M5 for keywords": (Keywords, lambda: _sound(1, 1200)),
    "TCN": (TemporalNet, lambda: _sound(2, 40)),
    "DS-CNN for keywords": (SeparableKeywords, lambda: images(24, 1)),
    "WaveNet": (WaveNet, lambda: _sound(1, 40)),
    "CRNN": (Recurrent, lambda: images(16, 1)),
    "U-Net": (UNet, images),
    "DCGAN generator": (generator, lambda: torch.randn(2, 16, 1, 1)),
    "DCGAN discriminator": (discriminator, images),
    "super-resolution": (SuperResolution, lambda: images(16)),
    "feature pyramid": (Pyramid, images),
    "siamese": (Siamese, _pair),
    "MLP-Mixer": (Mixer, images),
    "token classifier": (TokenClassifier, tokens),
    "PointNet": (Points, lambda: _sound(3, 20)),
    "volumes": (Volume, lambda: torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))),
    "autoencoder": (Autoencoder, lambda: images(8)),
    "squeeze-and-excitation": (excited_net, images),
}
NETWORKS = [
    *(Network(name, "by hand", lambda entry=entry: (entry[0](), entry[1]())) for name, entry in MAKERS.items()),
    Network("recommender", "by hand", _recommender),
]
