"""What prepare says of layers by the flow of values: projections of shortcuts, gates of channels, depthwise layers."""

import pytest
import torch
from torch import nn

import stompp_kernels as sk

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block with squeeze-and-excitation after a depthwise convolution; no name says what a layer is for."""

    def __init__(self, inputs, outputs, stride=1, expand=False):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.b = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs, bias=False)
        self.norm_b, self.c = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 1, bias=False)
        self.norm_c = nn.BatchNorm2d(outputs)
        self.gate1, self.gate2 = nn.Conv2d(outputs, 4, 1), nn.Conv2d(4, outputs, 1)
        changes = inputs != outputs or stride > 1
        self.proj = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else None
        self.expand = expand

    def forward(self, x):
        y = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))
        factors = torch.sigmoid(self.gate2(nn.functional.silu(self.gate1(y.mean((2, 3), keepdim=True)))))
        y = self.norm_c(self.c(y * (factors.expand_as(y) if self.expand else factors)))
        return torch.relu(y + (x if self.proj is None else self.proj(x)))


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 16, 2, **options), Block(16, 16, **options))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.blocks(self.norm(self.stem(x))).mean((2, 3)))


def rows(model, inputs=X, **options):
    _, report = sk.prepare(model, inputs, on_refusal="keep", **options)
    return {row.name: row for row in report.rows}


def test_a_projection_on_a_shortcut_stays_in_float_whatever_its_name():
    found = rows(Net())
    assert (found["blocks.0.proj.0"].action, found["blocks.0.proj.0"].reason) == ("kept", "projects a shortcut")
    assert found["blocks.0.a"].action == found["blocks.1.c"].action == "binarized"
    assert rows(Net(), keep=["gate"])["blocks.0.proj.0"].action == "binarized", "keep takes the place of the default"


@pytest.mark.parametrize("expand", [False, True])
def test_gates_and_depthwise_layers_are_flagged_with_their_share(expand):
    model = Net(expand=expand)
    found, total = rows(model), sum(p.numel() for p in model.parameters())
    flagged = {name for name, row in found.items() if "of the weights" in row.reason}
    assert flagged == {f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("b", "gate1", "gate2")}
    assert found["blocks.0.b"].reason.endswith(f"; depthwise, {16 * 9 / total:.2%} of the weights")
    assert found["blocks.1.gate1"].reason.endswith(
        f"; squeeze-and-excitation, {(16 * 4 + 4) / total:.2%} of the weights"
    )


class Sums(nn.Module):
    """Sums that are no shortcuts: of two layers alike, of a layer's input, and of what comes from another input."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.same, self.mixed, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        y = self.stem(x)
        y = self.one(y) + self.other(y)
        y = y + self.same(y)
        return self.head((self.mixed(y) + y).mean((2, 3)))


def test_other_sums_are_binarized():
    found = rows(Sums())
    assert [found[name].action for name in ("one", "other", "same", "mixed")] == ["binarized"] * 4


class TokenGate(nn.Module):
    """A factor for each token, which is no gate of channels, and a layer without a weight of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.gate = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.odd, self.head = Odd(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        y = self.mix(self.embed(x))
        return self.head((y * self.gate(y).softmax(1)).sum(1)) + self.odd(y)


class Odd(nn.Linear):
    """A subclass with a result of its own shape."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        del self.weight

    def forward(self, x):
        return x.sum()


def test_a_gate_of_tokens_is_no_gate_of_channels():
    assert not any("squeeze" in row.reason for row in rows(TokenGate(), torch.randn(2, 5, 6)).values())


class Attention(nn.Module):
    """Attention over embedded tokens: one layer for query, key and value or three, with positions for two of them."""

    def __init__(self, fused=False, positions=False, latents=False):
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 16), nn.LayerNorm(16)
        self.positions = nn.Parameter(torch.randn(1, 6, 16)) if positions else 0.0
        self.latents = nn.Parameter(torch.randn(1, 4, 16)) if latents else None
        if fused:
            self.qkv = nn.Linear(16, 48)
        else:
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out, self.up, self.head = nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x + self.positions).chunk(3, -1)
        else:
            q = self.q(x + self.positions if self.latents is None else self.latents.expand(len(x), -1, -1))
            k, v = self.k(x + self.positions), self.v(x)
        y = self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head(self.up(y).mean(1))


IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"positions": True}, {"latents": True}])
def test_the_first_projection_stays_in_float_as_a_whole(options):
    found = rows(Attention(**options), IDS)
    assert found["q"].reason == "first layer"
    assert found["k"].reason == found["v"].reason == "part of the first projection: it reads what q reads"
    assert [name for name, row in found.items() if row.action == "binarized"] == ["out", "up"]
    kept_alone = rows(Attention(**options), IDS, keep_first=False)
    assert all(kept_alone[name].action == "binarized" for name in "qkv")


def test_a_fused_first_projection_stays_in_float():
    found = rows(Attention(fused=True, positions=True), IDS)
    assert found["qkv"].reason == "first layer"
    assert [name for name, row in found.items() if row.action == "binarized"] == ["out", "up"]


class TwoTowers(nn.Module):
    """Two inputs, each with layers of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.a2, self.b2 = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, a, b):
        return self.head(torch.tanh(self.a2(self.a(a))) + torch.tanh(self.b2(self.b(b))))


def test_the_first_layer_of_another_input_is_none_of_the_first_projection():
    found = rows(TwoTowers(), (torch.randn(2, 8), torch.randn(2, 8)))
    assert [name for name, row in found.items() if row.action == "binarized"] == ["a2", "b", "b2"]
