"""Files and exports of networks whose forward decides on values of tensors of its own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import Stage

CAUSAL = nn.Transformer.generate_square_subsequent_mask(6)
X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """nn.TransformerEncoder, which asks whether its mask is a causal one."""

    def __init__(self, mask=None):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
        self.register_buffer("mask", mask)

    def forward(self, x, mask=None):
        return self.head(self.encoder(x, self.mask if mask is None else mask)[:, 0])


class Quantized(nn.Module):
    """Looks at buffers: whether it is initialized, and how many values it may have."""

    def __init__(self, on_input=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.register_buffer("initialized", torch.tensor([True]))
        self.register_buffer("levels", torch.tensor(4))
        self.on_input = on_input

    def forward(self, x):
        y = self.b(self.a(x))
        if not self.initialized or (self.on_input and (y > 1e6).any()):
            return self.c(y) * 0
        return self.c(y).mul(int(self.levels)).round() / self.levels.item()


class Translator(nn.Module):
    """nn.Transformer, whose decoder layers hold their activation as a plain attribute; a mask is made at each call."""

    def __init__(self, activation=F.relu):
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "activation": activation}
        self.inner, self.head = nn.Transformer(16, 2, 1, 2, 24, **options), nn.Linear(16, 3)

    def forward(self, x, y):
        return self.head(self.inner(x, y, tgt_mask=nn.Transformer.generate_square_subsequent_mask(y.shape[1])))


def packed_of(model, inputs):
    torch.manual_seed(0)
    prepared, report = sk.prepare(model.eval(), inputs, on_refusal="keep")
    assert report.binarized()
    return sk.convert(set_stage(prepared, Stage.BINARY).eval(), verify=inputs, by_layer=True)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: Masked(torch.zeros(6, 6)), (X,)),
        (lambda: Masked(CAUSAL), (X,)),
        (Masked, (X, CAUSAL)),
        (Masked, (X, torch.where(torch.eye(6) > 0, 0.0, -1.0))),
        (Quantized, (X,)),
        (Translator, (X, X[:, :4])),
    ],
    ids=["a buffer", "a causal buffer", "a causal input", "an input", "numbers in buffers", "made in the forward"],
)
def test_such_a_network_is_saved_and_exported(make, inputs, tmp_path):
    torch.manual_seed(0)
    packed = packed_of(make(), inputs)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    loaded, expected = sk.load_packed(tmp_path / "net.safetensors")(*inputs), packed(*inputs)
    # torch.export lays out a decoder's keys and values in another way, in which torch adds in another order.
    assert torch.allclose(loaded, expected, rtol=0, atol=1e-6) if len(inputs) > 1 else torch.equal(loaded, expected)
    sk.export_packed(packed, tmp_path / "net.pt2", inputs, dynamic_batch=False)
    assert torch.allclose(sk.load_exported(tmp_path / "net.pt2")(*inputs), packed(*inputs), atol=1e-5)


def test_what_is_decided_on_an_input_is_refused(tmp_path):
    packed = packed_of(Quantized(on_input=True), (X,))
    place = r"\(File .*decisions\.py\", line \d+, in forward\)"
    with pytest.raises(ValueError, match=rf"cannot read its forward {place}: GuardOn.*with torch\.where for example"):
        sk.save_packed(packed, tmp_path / "net.safetensors")


def test_what_a_forward_changes_is_no_constant(tmp_path):
    class Counting(Quantized):
        def forward(self, x):
            self.levels += 1
            return super().forward(x)

    with pytest.raises(ValueError, match=r"cannot read its forward|gives another result"):
        sk.save_packed(packed_of(Counting(), (X,)), tmp_path / "net.safetensors")


class Pair(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 24, dropout=0.0, batch_first=True, activation=activation)
        self.head = nn.Linear(16, 3)

    def forward(self, x, y):
        return self.head(self.layer(x, y))


@pytest.mark.parametrize("activation", [F.relu, nn.ReLU(), nn.GELU()])
def test_copies_of_a_decoder_run_its_activation(activation):
    """torch's own copies of nn.TransformerDecoderLayer run F.relu in the place of a module."""
    torch.manual_seed(0)
    model, seen = Pair(activation).eval(), []
    prepared, report = sk.prepare(model, (X, X[:, :4]), keep_first=False, keep=["linear1"])
    assert "layer.linear2" in report.binarized()
    for one in (model, prepared, copy.deepcopy(prepared)):
        one.layer.linear2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            one(X, X[:, :4])
    # At this stage an activation of the package's own clips, and one of torch's does what it did.
    expected = seen[0] if isinstance(activation, nn.GELU) else seen[1]
    assert torch.equal(seen[1], seen[2])
    assert (seen[1] < 0).any(), "no ReLU runs"
    assert torch.allclose(seen[1], expected, atol=1e-6)
