"""Layers that run at several places: one latent weight, one mask, and packed twins of all their runs."""

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import binary_layers, randomize_norms, set_stage
from safetensors.torch import load_file
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import ProgressiveActivation, Stage
from stompp_kernels.nn.packed import PackedLayer


def images(seed, size=8):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A functional ReLU, which becomes a module of the block wherever that runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()
        self.last = nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(self.relu(x)))))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), Block())
        self.head = nn.Linear(16, 4)

    def forward(self, a, b):
        return self.head((self.encoder(a).mean((2, 3)) - self.encoder(b).mean((2, 3))).abs())


class Looped(nn.Module):
    """One layer four times, as in ALBERT; it binarizes its own input."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = self.first(x)
        for _ in range(4):
            x = x + torch.tanh(self.block(x))
        return self.head(x)


CASES = {
    "siamese": (Siamese, lambda: (images(0), images(1)), ["encoder.2.conv", "encoder.2.last"]),
    "looped": (Looped, lambda: (torch.randn(3, 8, generator=torch.Generator().manual_seed(0)),), ["block"]),
}


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_shared_layers_are_binarized_and_packed(case, by_layer, tmp_path):
    kind, make, names = CASES[case]
    torch.manual_seed(0)
    x = make()
    model, report = sk.prepare(kind(), x)
    assert report.binarized() == names
    progression = sk.StoMPP(model, total_steps=20, refresh=1)
    for _ in range(20):
        model(*x).square().mean().backward()
        progression.step()
    assert all(layer.stage is Stage.BINARY for layer in binary_layers(model).values())
    randomize_norms(model, torch.Generator().manual_seed(0)).eval()
    packed = sk.convert(model, verify=x, by_layer=by_layer)
    layers = [module for module in packed.modules() if isinstance(module, PackedLayer)]
    assert len(layers) == len(names), "one for all places"
    assert {layer.replaces[0] for layer in layers} == set(names)
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(*x), model(*x), rtol=1e-4, atol=1e-4)
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(*x), packed(*x))


def written(packed, folder):
    """The bytes of the tensors in the file of a network."""
    sk.save_packed(packed, folder / "net.safetensors")
    return {name: tensor.nbytes for name, tensor in load_file(folder / "net.safetensors").items()}


def test_places_of_one_layer_take_the_memory_and_the_file_of_one(tmp_path):
    torch.manual_seed(0)
    x = images(0), images(1)
    model, _ = sk.prepare(Siamese(), x)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    packed = sk.convert(model, verify=x)
    calls = [str(node.target) for node in packed.graph.nodes if node.op == "call_module"]
    with_tensors = [name for name in calls if packed.get_submodule(name).state_dict()]
    assert [name for name in with_tensors if with_tensors.count(name) != 2] == ["head"]
    sizes = {name: size for name, size in written(packed, tmp_path).items() if name.endswith(".weight")}
    assert sizes == {**sizes, "encoder.2.conv_fused.weight": 16 * 9 * 4, "encoder.2.last_packed.weight": 16 * 9 * 4}
    assert len(sizes) == 4, "those, and the first and last layer's"
    explanation = sk.explain(packed, x, seconds=0.05)
    assert sum({row.name: row.share for row in explanation.rows}.values()) < 1
    assert f"{sum({row.name: row.share for row in explanation.rows}.values()):.1%} of the time" in str(explanation)


class NormOfItsOwn(nn.Module):
    """One convolution at two places with a BatchNorm for each."""

    def __init__(self):
        super().__init__()
        self.conv = sk.nn.BinaryConv2d(16, 16, 3, 1, 1, binarize_input=True)
        self.norms, self.head = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(16)]), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.norms[1](self.conv(self.norms[0](self.conv(x)))).mean((2, 3)))


def test_places_with_constants_of_their_own_share_the_weight_in_memory(tmp_path):
    torch.manual_seed(0)
    model = set_stage(randomize_norms(NormOfItsOwn(), torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    packed = sk.convert(model, verify=torch.randn(2, 16, 8, 8))
    first, second = [module for module in packed.modules() if isinstance(module, PackedLayer)]
    assert first.weight.data is second.weight.data
    explanation = sk.explain(packed)
    assert explanation.nbytes == sum(row.nbytes for row in explanation.rows) - first.weight.nbytes
    assert explanation.file_nbytes == sum(written(packed, tmp_path).values())
    assert first.replaces[0] == second.replaces[0] == "conv"


def test_equal_layers_of_the_model_stay_apart():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), *(layer for _ in range(3) for layer in (nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)))
    )
    model[6].load_state_dict(model[3].state_dict())
    model, _ = sk.prepare(model, torch.randn(2, 8), keep=["9"])
    packed = sk.convert(set_stage(model, Stage.BINARY).eval(), verify=torch.randn(2, 8))
    layers = [module for module in packed.modules() if isinstance(module, PackedLayer)]
    assert [layer.replaces[0] for layer in layers] == ["3", "6"]


def test_verification_finds_a_wrong_run():
    torch.manual_seed(0)
    x = images(0), images(1)
    model, _ = sk.prepare(Siamese(), x)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    packed = sk.convert(model, verify=x)
    layer = next(module for module in packed.modules() if isinstance(module, PackedLayer) and module.has_thresholds)
    layer.thresholds += 3
    with pytest.raises(ValueError, match="the packed network differs at"):
        verify_packed(model, packed, x)


def test_inputs_of_several_shapes_are_refused():
    x = images(0), images(1, 6)
    with pytest.raises(ValueError, match=r"shapes \[16, 8, 8\] and \[16, 6, 6\], and would"):
        sk.prepare(Siamese(), x)


def test_one_activation_at_two_places_of_a_block_still_needs_a_module_for_each():
    act = ProgressiveActivation()
    net = nn.Sequential(nn.Linear(4, 4), act, sk.nn.BinaryLinear(4, 4), act, sk.nn.BinaryLinear(4, 4))
    with pytest.raises(ValueError, match="runs at 2 places and would need a mask for each"):
        sk.link(net, torch.randn(2, 4))
