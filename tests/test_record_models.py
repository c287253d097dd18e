"""The networks that hold records of accuracy, small: binarized where they should be, trained, packed and saved."""

import pytest
import torch
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer

# name -> options, binarized layers, reasons of the float layers between the first and the last
STAGES = ((2, 1), (2, 1), (4, 2))  # one block of each kind
MODELS = {
    "reactnet_a": ({"width": 16, "image_size": 16, "stages": STAGES}, 8, 0),
    "bnext_t": ({"width": 16, "image_size": 16, "stages": STAGES}, 8, 16),
    "binary_vit": (
        {"width": 16, "depths": (1, 1), "expansions": (2, 2), "reductions": (2, 1), "image_size": 16},
        13,
        1,
    ),
}


def small(name, **options):
    torch.manual_seed(0)
    return sk.models.create(name, 7, **MODELS[name][0], **options)


def images(name, batch):
    shape = sk.models.example_inputs(name, **MODELS[name][0]).shape[1:]
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_binarized_behind_their_shifts(name):
    _, binarized, others = MODELS[name]
    entry = sk.models.entry(name)
    _, report = sk.prepare(small(name).eval(), images(name, 2), **entry.prepare_options)
    rows = [row for row in report.rows if row.kind in ("Conv2d", "Linear")]
    assert len(report.binarized()) == binarized
    assert all("binarizes its own input, shifted by" in row.reason for row in rows if row.action == "binarized")
    kept = [row.reason for row in rows if row.action == "kept"]
    assert (kept[0], kept[-1], len(kept)) == ("first layer", "last layer", others + 2)
    assert all(reason.startswith("matches keep=") for reason in kept[1:-1])


def test_reactnet_a_has_the_layers_of_mobilenet_with_full_convolutions():
    with torch.device("meta"):
        model = sk.models.create("reactnet_a", 1000)
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert shapes[:4] == [(32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 1, 1), (32, 32, 1, 1)]
    assert shapes[-2:] == [(1024, 1024, 3, 3), (1024, 1024, 1, 1)]
    assert len(shapes) == 1 + 13 + 13 + 5, "five blocks double the channels"


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "bnext_t" else n for n in MODELS])
def test_trained_packed_saved_and_exported(name, tmp_path):
    model, x = small(name, binarize="both"), images(name, 4)
    progression = sk.StoMPP(model, total_steps=3, order="global", refresh=1, cooldown=1 / 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
        progression.step()
    assert progression.progress().frontier == MODELS[name][1]
    packed = sk.convert(model.eval(), verify=x)
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, PackedLayer) for m in packed.modules()) == MODELS[name][1]
    assert not any(isinstance(m, sk.nn.PackSigns) for m in packed.modules()), "each shift is a limit"
    sk.save_packed(packed, tmp_path / "packed.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "packed.safetensors")(x), packed(x))
    sk.export_packed(packed, tmp_path / "packed.pt2", x)
    torch.testing.assert_close(sk.load_exported(tmp_path / "packed.pt2")(x), packed(x), rtol=1e-4, atol=1e-4)


def test_reactnets_blocks_are_one_kernel_for_each_layer():
    model = set_stage(small("reactnet_a", binarize="both"), Stage.BINARY).eval()
    packed = sk.convert(model)
    kinds = [type(packed.get_submodule(n.target)).__name__ for n in packed.graph.nodes if n.op == "call_module"]
    assert not {"PReLU", "BatchNorm2d", "Shift", "PackSigns"} & set(kinds)
    assert [str(node.target) for node in packed.graph.nodes if node.op == "get_attr"] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reactnet_a", {"width": 0}, "width must be an integer of at least 1, got 0"),
        ("bnext_t", {"stem_stride": 0}, "stem_stride must be an integer of at least 1, got 0"),
        ("binary_vit", {"image_size": 48}, "image_size must be a multiple of 32, got 48"),
        ("reactnet_a", {"stages": ((3, 1),)}, "out_channels must be 32 or 64, got 96"),
    ],
)
def test_errors_name_what_is_allowed(name, options, message):
    with pytest.raises(ValueError, match=message):
        sk.models.create(name, **options)


def test_channels_are_kept_or_doubled():
    with pytest.raises(ValueError, match="out_channels must be 8 or 16, got 4"):
        sk.models.BNextBlock(8, 4, 1, attention=True)
