"""Packed networks run at sizes other than the example's: nothing is packed along a dimension that the example sizes."""

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import randomize_norms, seeded, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import MaxPoolSigns, PackedConv2d, ProgressiveActivation, SignActivation, Stage, UnpackSigns


class Sequences(nn.Module):
    """Convolutions of sequences with a pooling module that is called several times."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.pool1d = nn.Conv1d(1, 33, 9, 2), nn.BatchNorm1d(33), nn.MaxPool1d(3)
        self.conv2, self.norm2 = nn.Conv1d(33, 40, 3), nn.BatchNorm1d(40)
        self.conv3, self.norm3 = nn.Conv1d(40, 64, 3), nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 5)

    def pool(self, x):
        return self.pool1d(x)

    def forward(self, x):
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        return self.head(self.pool(F.relu(self.norm3(self.conv3(x)))).mean(-1))


class ByFunction(Sequences):
    def pool(self, x):
        return F.max_pool1d(x, 3, stride=2, padding=1)


class AverageFirst(Sequences):
    """Average pooling in float before each activation."""

    def forward(self, x):
        x = F.relu(self.norm1(F.avg_pool1d(self.conv1(x), 3)))
        x = F.relu(self.norm2(F.avg_pool1d(self.conv2(x), 3)))
        return self.head(F.relu(self.norm3(self.conv3(x))).mean(-1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv1d(1, 32, 5, 2, 2), nn.BatchNorm1d(32)
        self.convs = nn.ModuleList([nn.Conv1d(32, 32, 3, 1, 1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(32) for _ in range(4)])
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        for first in (0, 2):
            y = F.relu(self.norms[first](self.convs[first](x)))
            x = F.relu(x + self.norms[first + 1](self.convs[first + 1](y)))
        return self.head(x.mean(-1))


class TwoEnds(nn.Module):
    """One encoder of sequences called twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv1d(1, 32, 5), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(32, 32, 3), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 3), nn.BatchNorm1d(32)),
        )
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(torch.cat([self.encoder(x).mean(-1), self.encoder(x.flip(-1)).mean(-1)], 1))


class Tokens(nn.Module):
    """A convolution of sequences whose channels are the features of an encoder's tokens."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.layer_norm = nn.Conv1d(1, 32, 3), nn.BatchNorm1d(32), nn.LayerNorm(32)
        self.linear1, self.linear2, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        tokens = F.relu(self.norm(self.conv(x))).transpose(1, 2)
        return self.head((tokens + self.linear2(F.relu(self.linear1(self.layer_norm(tokens))))).mean(1))


def packed_and_model(network, x):
    torch.manual_seed(0)
    model, _ = sk.prepare(network, x)
    set_stage(randomize_norms(model, seeded(0)), Stage.BINARY).eval()
    return sk.convert(model, verify=x), model


def assert_same_at(packed, model, shapes):
    for shape in shapes:
        x = torch.randn(shape, generator=seeded(1))
        with torch.no_grad(), sk.float_simulation():
            expected = model(x)
        torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", [Sequences, ByFunction, AverageFirst, Residual, TwoEnds, Tokens])
def test_sequences_of_any_length_and_batch(kind, tmp_path):
    packed, model = packed_and_model(kind(), torch.randn((2, 1, 200), generator=seeded(0)))
    shapes = [(2, 1, 200), (1, 1, 200), (3, 1, 400), (1, 1, 155)]
    assert_same_at(packed, model, shapes)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert_same_at(sk.load_packed(tmp_path / "net.safetensors"), model, shapes)


@pytest.mark.parametrize("kind", [Sequences, ByFunction])
def test_sequences_stay_words_from_the_first_signs_to_the_last_layer(kind):
    packed, _ = packed_and_model(kind(), torch.randn((2, 1, 200), generator=seeded(0)))
    modules = list(packed.modules())
    assert sum(isinstance(module, MaxPoolSigns) for module in modules) == 2
    assert not any(isinstance(module, (UnpackSigns, nn.MaxPool1d, nn.BatchNorm1d)) for module in modules)
    assert [m.writes for m in modules if isinstance(m, PackedConv2d)] == ["bits", "floats"]


class SignsForFloats(nn.Module):
    """An activation of the model's own behind which everything is float, with samples of any layout."""

    def __init__(self, shape, order):
        super().__init__()
        self.layer = sk.nn.BinaryLinear(8, 40, binarize_input=True)
        self.activation, self.order = ProgressiveActivation(shape), order
        self.dims = tuple(range(1, len(order)))

    def forward(self, x):
        y = self.layer(x) * x.abs().mean(-1, keepdim=True)  # a factor for each token is no part of a chain
        return self.activation(y.permute(self.order)).mean(self.dims)


@pytest.mark.parametrize(
    ("shape", "order", "example", "other"),
    [
        ((20, 40), (0, 1, 2), (2, 20, 8), (3, 33, 8)),
        ((40, 20), (0, 2, 1), (2, 20, 8), (3, 33, 8)),
        ((5, 6, 40), (0, 1, 2, 3), (2, 5, 6, 8), (1, 7, 4, 8)),
        ((6, 40, 5), (0, 2, 3, 1), (2, 5, 6, 8), (1, 7, 4, 8)),
    ],
)
def test_signs_that_nothing_but_float_modules_read_are_not_packed(shape, order, example, other, tmp_path):
    torch.manual_seed(0)
    model = set_stage(SignsForFloats(shape, order), Stage.BINARY).eval()
    packed = sk.convert(model, verify=torch.randn(example, generator=seeded(0)))
    assert isinstance(packed.activation, SignActivation)
    (row,) = [row for row in sk.explain(packed).rows if row.name == "activation"]
    assert row.reason == "float modules alone read these signs"
    assert_same_at(packed, model, [example, other])
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert_same_at(sk.load_packed(tmp_path / "net.safetensors"), model, [example, other])
