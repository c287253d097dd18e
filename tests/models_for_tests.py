"""Small networks and the steps that several test files take with them."""

import contextlib
import copy
from unittest import mock

import torch
from torch import nn

import stompp_kernels as sk


def seeded(seed=0):
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


class BasicBlock(nn.Module):
    """conv - bn - relu - conv - bn - (+ shortcut) - relu."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu2(y)


class ResidualNet(nn.Module):
    """Post-activation; the first block has an identity shortcut, the second a downsample convolution."""

    def __init__(self, width=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(BasicBlock(width, width), BasicBlock(width, 2 * width, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, 4)

    def forward(self, x):
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


RESIDUAL_LAYERS = ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]


class BiRealNet(nn.Module):
    """A shortcut of real values around each convolution, which binarizes its own input."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.bn1(self.conv1(x))
        x = x + self.bn2(self.conv2(x))
        return self.fc(x.mean((2, 3)))


class MLP(nn.Module):
    def __init__(self, width=40):
        super().__init__()
        self.fc1, self.bn1, self.relu1 = nn.Linear(7, width), nn.BatchNorm1d(width), nn.ReLU()
        self.fc2, self.bn2, self.relu2 = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()
        self.fc3, self.bn3, self.relu3 = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        self.fc4 = nn.Linear(width, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.fc1(x)))
        x = self.relu2(self.bn2(self.fc2(x)))
        x = self.relu3(self.bn3(self.fc3(x)))
        return self.fc4(x)


class ReversedRegistration(nn.Module):
    """Layers are registered in the opposite order of their execution."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.relu_c = nn.ReLU()
        self.c = nn.Linear(6, 6)
        self.relu_b = nn.ReLU()
        self.b = nn.Linear(6, 6)
        self.relu_a = nn.ReLU()
        self.a = nn.Linear(6, 6)
        self.relu_first = nn.ReLU()
        self.first = nn.Linear(7, 6)

    def forward(self, x):
        x = self.relu_first(self.first(x))
        x = self.relu_a(self.a(x))
        x = self.relu_b(self.b(x))
        return self.last(self.relu_c(self.c(x)))


class BranchingNet(nn.Module):
    """One activation feeds two binarized layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 1, 1)
        self.relu = nn.ReLU()
        self.right = nn.Conv2d(4, 4, 1)
        self.left = nn.Conv2d(4, 4, 3, 1, 1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.last(self.left(x) + self.right(x))


IMAGES = (2, 3, 8, 8)
NETS = {
    "residual": (ResidualNet, IMAGES),
    "bireal": (BiRealNet, IMAGES),
    "mlp": (MLP, (5, 7)),
    "reversed": (ReversedRegistration, (5, 7)),
    "branching": (BranchingNet, IMAGES),
}


def make(name, seed=0, **options):
    """A prepared net and an input for it."""
    seeded(seed)
    kind, shape = NETS[name]
    x = torch.randn(shape)
    model, _ = sk.prepare(kind(), x, **options)
    return model, x


def masked_modules(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, sk.nn.masked.Masked)}


def binary_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, sk.nn.BinaryLayer)}


def set_stage(model, stage, surrogate="none", p=0.5):
    """Puts every progressive tensor into a stage; a partial mask has about half of its entries frozen."""
    for index, module in enumerate(masked_modules(model).values()):
        module.set_surrogate(surrogate)
        module.soften()
        if stage is sk.nn.Stage.PARTIAL:
            module.refresh(p, 1.0, 7, index, 1)
        elif stage is sk.nn.Stage.BINARY:
            module.commit()
    return model


def randomize_norms(model, g):
    """BatchNorms as after an unlucky training: gamma of both signs and zero, ties of the following sign."""
    with torch.no_grad():
        for norm in model.modules():
            if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            n = norm.num_features
            if norm.track_running_stats:
                norm.running_mean.copy_(torch.randint(-6, 7, (n,), generator=g).float())
                norm.running_var.copy_(torch.rand(n, generator=g) * 9 + 0.1)
            if norm.affine:
                norm.weight.copy_(torch.randn(n, generator=g))
                norm.weight[torch.rand(n, generator=g) < 0.2] = 0.0
                norm.bias.copy_(torch.randn(n, generator=g))
                # gamma * (acc - mean) / std + 0 is a tie at acc = mean; also a constant 0 where gamma is 0.
                norm.bias[torch.rand(n, generator=g) < 0.4] = 0.0
    return model


def committed(name, seed=0, **options):
    """A fully committed net in eval mode with random BatchNorms, and a batch for it."""
    model, x = make(name, seed, **options)
    g = torch.Generator().manual_seed(seed + 100)
    randomize_norms(model, g)
    set_stage(model, sk.nn.Stage.BINARY)
    return model.eval(), torch.randn((16, *x.shape[1:]), generator=g)


@contextlib.contextmanager
def float_convs_of(torch_s):
    """The float convolutions of what is converted inside are torch's, or this package's, whatever bits torch gives."""
    float_convs = sk.conversion.packing.float_convs
    with mock.patch.object(float_convs, "_gives_the_same_bits", return_value=not torch_s):
        yield


def train_steps(model, optimizer, progression, steps, start=0, shape=IMAGES):
    """Steps on batches that depend on their number only; the losses."""
    losses = []
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(shape, generator=g)
        y = torch.randint(0, 4, (shape[0],), generator=g)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        progression.step()
        losses.append(loss.detach().clone())
    return losses


def snapshot(model):
    return copy.deepcopy(model.state_dict())


def assert_same_state(actual, expected, what=""):
    assert actual.keys() == expected.keys(), what
    for key, value in expected.items():
        assert torch.equal(actual[key], value), f"{what}{key} differs"


class NoNormNet(nn.Module):
    """Convolutions and a linear layer without BatchNorm: a batch's gradient is the mean of its samples' gradients."""

    def __init__(self, width=6):
        super().__init__()
        self.stem, self.relu0 = nn.Conv2d(3, width, 3, 1, 1), nn.ReLU()
        self.conv1, self.relu1 = nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        self.fc1, self.relu3 = nn.Linear(16 * width, 20), nn.ReLU()
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(self.relu0(self.stem(x))))))
        return self.head(self.relu3(self.fc1(torch.flatten(x, 1))))


def make_without_norm(seed=0):
    """A prepared NoNormNet, its layers scaled in BatchNorm's place, and an input for it."""
    seeded(seed)
    x = torch.randn(IMAGES)
    model, _ = sk.prepare(NoNormNet(), x, scale="channel")
    return model, x


def masks(model):
    return {name: (m.stage, m.mask_words.clone()) for name, m in masked_modules(model).items()}


def assert_same_masks(actual, expected, what=""):
    assert actual.keys() == expected.keys()
    for name, (stage, words) in expected.items():
        assert actual[name][0] is stage, f"{what}{name}"
        assert torch.equal(actual[name][1], words), f"{what}{name}"


def batch(step, size=IMAGES[0]):
    """Images and labels that depend on the step's number only."""
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn((size, *IMAGES[1:]), generator=g), torch.randint(0, 4, (size,), generator=g)
