"""Networks as users write them, each of which failed once: sizes in forwards, statements in place, old hooks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus.network import Network, images, tokens


class ModulatedConv(nn.Module):
    """StyleGAN2's convolution (Karras et al. 2019): weights of each sample's own, and noise that is a buffer."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.weight, self.scales = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.Linear(style, inputs)
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(16, 16))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        B, _, H, W = x.shape
        weights = self.weight[None] * (self.scales(style) + 1)[:, None, :, None, None]
        weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        y = F.conv2d(x.reshape(1, -1, H, W), weights.flatten(0, 1), padding=1, groups=B).reshape(B, -1, H, W)
        return F.leaky_relu(y + self.noise[:H, :W] * self.strength, 0.2) * math.sqrt(2)


class StyleGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(24, 24), nn.LeakyReLU(0.2))))
        self.start, self.to_rgb = nn.Parameter(torch.randn(1, 16, 4, 4)), nn.Conv2d(8, 3, 1)
        self.conv1, self.conv2 = ModulatedConv(16, 16, 24), ModulatedConv(16, 8, 24)

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())
        x = self.conv1(self.start.expand(z.shape[0], -1, -1, -1), style)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.tanh(self.to_rgb(self.conv2(x, style)))


class Capsules(nn.Module):
    """Capsules with routing by agreement (Sabour et al. 2017), and a decoder of the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.primary = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(32, 32, 5, 2)
        self.votes = nn.Parameter(0.1 * torch.randn(1, 64, 10, 8, 8))
        self.decoder = nn.Sequential(nn.Linear(80, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 256))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = (x**2).sum(-1, keepdim=True)
        return square / (1 + square) * x / torch.sqrt(square + 1e-8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.primary(F.relu(self.conv2(F.relu(self.conv1(x)))))
        u = self.squash(y.view(x.size(0), 4, 8, 4, 4).permute(0, 1, 3, 4, 2).contiguous().view(x.size(0), -1, 8))
        votes = torch.matmul(self.votes, u[:, :, None, :, None]).squeeze(-1)
        agreement = torch.zeros(x.size(0), votes.size(1), 10, 1, device=x.device)
        for _ in range(3):
            v = self.squash((agreement.softmax(2) * votes).sum(1, keepdim=True))
            agreement = agreement + (votes * v).sum(-1, keepdim=True)
        length = v.squeeze(1).norm(dim=-1)
        chosen = F.one_hot(length.argmax(1), 10).to(v.dtype).unsqueeze(-1)
        return length, torch.sigmoid(self.decoder((v.squeeze(1) * chosen).flatten(1)))


class Messages(nn.Module):
    """Message passing (Gilmer et al. 2017): gathered by the edges, added at their targets, a mean of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(8, 32), nn.Linear(32, 3)
        self.message = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
        self.update = nn.GRUCell(32, 32)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h = self.encode(x)
        sources, targets = edges
        for _ in range(2):
            received = self.message(torch.cat([h[sources], h[targets]], -1))
            h = self.update(torch.zeros_like(h).index_add(0, targets, received), h)
        sums = torch.zeros(2, h.size(1)).scatter_add(0, graph.unsqueeze(-1).expand_as(h), h)
        return self.out(sums / torch.zeros(2, 1).scatter_add_(0, graph.unsqueeze(-1), torch.ones(len(graph), 1)))


@dataclass
class Prediction:
    logits: Tensor
    loss: Tensor | None = None


class SmallGPT(nn.Module):
    """GPT-2 (Radford et al. 2019) in the form of nanoGPT: the last layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.norm = nn.Embedding(60, 32), nn.Embedding(16, 32), nn.LayerNorm(32)
        self.qkv, self.out, self.inner = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 60, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Prediction:
        B, T = ids.size()
        assert T <= 16, f"at most 16 tokens, got {T}"
        x = self.tokens(ids) + self.places(torch.arange(T, device=ids.device))
        q, k, v = (part.view(B, T, 4, 8).transpose(1, 2) for part in self.qkv(self.norm(x)).split(32, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(8)
        weights = scores.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf")).softmax(-1)
        x = x + self.inner(self.out((weights @ v).transpose(1, 2).contiguous().view(B, T, 32)))
        logits = self.head(x + self.down(F.gelu(self.up(x), approximate="tanh")))
        if targets is None:
            return Prediction(logits)
        return Prediction(logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1)))


class ShiftedFrames(nn.Module):
    """TSM (Lin et al. 2018): channels are moved to other frames of a video by assignments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 16, 3, padding=1) for c in (3, 16, 16))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 4)

    @staticmethod
    def shift(x: Tensor, frames: int) -> Tensor:
        y = x.view(-1, frames, *x.shape[1:])
        out = torch.zeros_like(y)
        out[:, :-1, :2], out[:, 1:, 2:4], out[:, :, 4:] = y[:, 1:, :2], y[:, :-1, 2:4], y[:, :, 4:]
        return out.view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        B, frames = x.shape[:2]
        y = self.conv2(self.shift(self.conv1(x.flatten(0, 1)), frames))
        y = self.conv3(self.shift(F.relu(self.norm(y)), frames))
        return self.head(y.mean((2, 3))).view(B, frames, -1).mean(1)


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al. 2015): unpooled to where the largest were."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.up2 = (nn.Conv2d(*sizes, 3, 1, 1) for sizes in ((3, 16), (16, 24), (24, 16)))
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(16), nn.BatchNorm2d(24), nn.BatchNorm2d(16)
        self.up1, self.pool, self.unpool = (
            nn.Conv2d(16, 2, 3, 1, 1),
            nn.MaxPool2d(2, 2, return_indices=True),
            nn.MaxUnpool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, first = self.pool(F.relu(self.norm1(self.down1(x))))
        size = y.size()
        y, second = self.pool(F.relu(self.norm2(self.down2(y))))
        y = F.relu(self.norm3(self.up2(self.unpool(y, second, output_size=size))))
        return self.up1(self.unpool(y, first, output_size=x.size()))


class NormedWaves(nn.Module):
    """WaveNet's residual blocks with torch's old weight_norm, in statements in place."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and everywhere
            self.front = nn.utils.weight_norm(nn.Conv1d(1, 16, 1))
            self.gates = nn.ModuleList(nn.utils.weight_norm(nn.Conv1d(16, 32, 2, dilation=d)) for d in (1, 2, 4))
        self.mix = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=1) for _ in range(3))
        self.post = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.Conv1d(16, 10, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.front(x), 0
        for gate, mix in zip(self.gates, self.mix, strict=True):
            signal, opening = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            y = mix(torch.tanh(signal) * torch.sigmoid(opening))
            y.mul_(math.sqrt(0.5))
            x, skips = x + y, skips + y
        return self.post(skips)


class Priors(nn.Module):
    """SSD's boxes (Liu et al. 2015): priors of each place, decoded, and the best of them gathered."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f = self.body(x)
        B, _, H, W = f.shape
        rows, columns = torch.meshgrid(
            torch.arange(H, device=x.device), torch.arange(W, device=x.device), indexing="ij"
        )
        centers = torch.stack([columns, rows], -1).reshape(-1, 2).float().add(0.5).div(torch.tensor([W, H]))
        offsets = self.boxes(f).permute(0, 2, 3, 1).reshape(B, -1, 4)
        middle, half = centers + 0.1 * offsets[..., :2], 0.1 * torch.exp(0.2 * offsets[..., 2:])
        best, places = self.scores(f).permute(0, 2, 3, 1).reshape(B, -1, 3).softmax(-1)[..., 1:].amax(-1).topk(5, 1)
        boxes = torch.cat([middle - half, middle + half], -1)
        return {"scores": best, "boxes": boxes.gather(1, places[..., None].expand(-1, -1, 4))}


class ConditionalBlock(nn.Module):
    """A block of BigGAN (Brock et al. 2018): the scales of BatchNorms are those of a class; pixels are repeated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs, affine=False), nn.BatchNorm2d(outputs, affine=False)
        self.scales1, self.scales2 = nn.Embedding(5, 2 * inputs), nn.Embedding(5, 2 * outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.side = nn.Conv2d(inputs, outputs, 1)

    @staticmethod
    def scaled(x: Tensor, scales: Tensor) -> Tensor:
        scale, shift = scales[..., None, None].chunk(2, 1)
        return (1 + scale) * x + shift

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.scaled(self.norm1(x), self.scales1(classes))), scale_factor=2)
        y = F.relu(self.scaled(self.norm2(self.conv1(y)), self.scales2(classes)))
        return self.conv2(y) + self.side(F.interpolate(x, scale_factor=2))


class ConditionalGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.norm, self.to_rgb = nn.Linear(12, 512), nn.BatchNorm2d(16), nn.Conv2d(16, 3, 3, 1, 1)
        self.blocks = nn.ModuleList([ConditionalBlock(32, 24), ConditionalBlock(24, 16)])

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        x = self.start(z).view(len(z), -1, 4, 4)
        for block in self.blocks:
            x = block(x, classes)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _graphs() -> tuple[Tensor, ...]:
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 1, 2], [1, 2, 0, 4, 5, 3, 0, 1]])
    return _normal(6, 8), edges, torch.tensor([0, 0, 0, 1, 1, 1])


MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "StyleGAN2 generator": (StyleGenerator, lambda: _normal(2, 24)),
    "capsules": (Capsules, lambda: images(16, 1)),
    "message passing": (Messages, _graphs),
    "nanoGPT": (SmallGPT, lambda: (tokens(), tokens())),
    "temporal shift": (ShiftedFrames, lambda: _normal(2, 4, 3, 8, 8)),
    "SegNet": (SegNet, lambda: images(16)),
    "WaveNet with weight_norm": (NormedWaves, lambda: _normal(2, 1, 24)),
    "SSD": (Priors, images),
    "BigGAN generator": (ConditionalGenerator, lambda: (_normal(2, 12), torch.tensor([0, 3]))),
}
NETWORKS = [
    Network(name, "by strangers", lambda entry=entry: (entry[0](), entry[1]())) for name, entry in MAKERS.items()
]
