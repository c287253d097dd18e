"""The packed twin gives the float simulation's signs and predictions."""

import copy
import weakref

import pytest
import torch
from helpers import assert_same_bits
from models_for_tests import (
    BasicBlock,
    binary_layers,
    committed,
    float_convs_of,
    make,
    randomize_norms,
    set_stage,
    snapshot,
)
from torch import fx, nn

import stompp_kernels as sk
from stompp_kernels.conversion.packing import signs as packed_signs
from stompp_kernels.conversion.sign_notes import noted_signs
from stompp_kernels.conversion.verify import verify_packed
from stompp_kernels.nn import (
    BinaryWeightConv2d,
    PackedConv2d,
    PackedLinear,
    PackedOnFloats,
    PackSigns,
    ProgressiveActivation,
    SharedSigns,
    Stage,
    UnpackSigns,
)
from stompp_kernels.nn import packed as packed_layers
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Threshold, pack_signs
from stompp_kernels.ops.reference import bits_from_words

SEEDS = range(6)


def simulate(model, x):
    """The float network's output, and the signs that each committed activation gives out."""
    signs, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, ProgressiveActivation):
            hooks.append(module.register_forward_hook(lambda m, i, y, name=name: signs.update({name: y.detach()})))
    with torch.no_grad(), sk.float_simulation():
        y = model(x)
    for hook in hooks:
        hook.remove()
    return y, signs


class Recorder(fx.Interpreter):
    """Runs a packed network and keeps the words that stand for the signs of an activation."""

    def __init__(self, packed):
        super().__init__(packed)
        self.words = {}

    def run_node(self, node):
        result = super().run_node(node)
        signs = noted_signs(node)
        if signs is not None:
            self.words[signs.activation] = signs.images, result
        return result


def folded(packed):
    """Names of the activations whose signs are decided on integers."""
    layers = [module for module in packed.modules() if isinstance(module, PackedLayer)]
    return {layer.replaces[-1] for layer in layers if layer.has_thresholds}


def check(model, x, fused=()):
    """packed == float simulation: the signs of every committed activation, and the predictions."""
    expected, signs = simulate(model, x)
    packed = sk.convert(model, verify=x)
    recorder = Recorder(packed)
    with torch.no_grad():
        y = recorder.run(x)
    assert not any(isinstance(m, (sk.nn.BinaryLayer, ProgressiveActivation)) for m in packed.modules())
    assert folded(packed) == set(fused)
    assert set(fused) <= set(recorder.words)
    for name, (images, words) in recorder.words.items():
        wanted = signs[name].permute(0, 2, 3, 1) if images else signs[name]
        found = torch.where(bits_from_words(words, wanted.shape[-1]), -1.0, 1.0)
        assert_same_bits(found, wanted.contiguous(), name)
    # Equal signs go into the same float modules; a different memory format may group their sums differently.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(y.argmax(1), expected.argmax(1))
    return packed


FUSED = {
    "residual": ["blocks.0.relu1", "blocks.0.relu2", "blocks.1.relu1"],
    "mlp": ["relu2"],
    "bireal": [],
    "reversed": ["relu_a", "relu_b"],
    "branching": [],
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FUSED)
def test_packed_networks_equal_the_float_simulation(name, seed):
    options = {"padding_value": (0, 1, -1)[seed % 3], "scale": (None, "channel", "tensor")[seed // 2]}
    model, x = committed(name, seed, **options)
    check(model, x, FUSED[name])


def test_the_networks_reach_ties_zero_gammas_and_both_signs():
    ties, gammas = 0, []
    for seed in SEEDS:
        model, x = committed("residual", seed)
        norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and n.startswith("blocks")}
        outputs = []
        for norm in norms.values():
            norm.register_forward_hook(lambda m, i, y, outputs=outputs: outputs.append(y))
            gammas.append(norm.weight.detach())
        with torch.no_grad():
            model(x)
        ties += sum(int((y[:, m.weight != 0] == 0).sum()) for y, m in zip(outputs, norms.values(), strict=True))
    gammas = torch.cat(gammas)
    assert ties > 100
    assert (gammas < 0).any()
    assert (gammas == 0).any()
    assert (gammas > 0).any()


def sequential(*middle, stem=None, head=None):
    """Prepared and committed, random BatchNorms; layers 0 and -1 stay in float."""
    torch.manual_seed(0)
    model = nn.Sequential(stem or nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), *middle)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        features = model(x).flatten(1).shape[1]
    model.extend([nn.Flatten(), head or nn.Linear(features, 4)])
    model, report = sk.prepare(model, x)
    g = torch.Generator().manual_seed(1)
    randomize_norms(model, g)
    set_stage(model, Stage.BINARY)
    for layer in binary_layers(model).values():
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return model.eval(), torch.randn(4, 3, 8, 8, generator=g), report.binarized()


@pytest.mark.parametrize(
    ("middle", "fused"),
    [
        ([nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)], ["4"]),
        ([nn.Conv2d(8, 8, 3, bias=True), nn.ReLU(), nn.Conv2d(8, 8, 1)], ["3"]),
        ([nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)], ["3"]),
        ([nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)], []),
        ([nn.Conv2d(8, 40, 3, groups=2, stride=2), nn.ReLU(), nn.Conv2d(40, 8, 3, groups=4, padding=2)], ["3"]),
        ([nn.Conv2d(8, 8, 3, groups=8, dilation=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)], ["3"]),
        ([nn.Conv2d(8, 8, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.Identity(), nn.Conv2d(8, 8, 1)], ["4"]),
        ([nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 8, 1)], ["4"]),
        ([nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 8, 1)], []),
        ([nn.Conv2d(8, 8, 3), nn.GELU(), nn.ReLU(), nn.Conv2d(8, 8, 1)], []),
        ([nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 65)], ["6"]),
    ],
    ids=[
        "bn",
        "bias",
        "maxpool after",
        "maxpool before",
        "groups",
        "depthwise",
        "dropout",
        "no affine",
        "no statistics",
        "gelu",
        "linear",
    ],
)
def test_chains(middle, fused):
    model, x, binarized = sequential(*middle)
    assert len(binarized) == 2
    check(model, x, fused)


class Residuals(nn.Module):
    """conv - bn - (+ shortcut) - relu - conv, in several spellings."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.stem, self.act0 = nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.bn_after, self.squeeze = nn.BatchNorm2d(8), ProgressiveActivation()
        self.conv2, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.act0(self.stem(x))
        y = self.bn1(self.conv1(x))
        if self.form == "y + x":
            y = y + x
        elif self.form == "x + y":
            y = x + y
        elif self.form == "y += x":
            y += x
        elif self.form == "torch.add":
            y = torch.add(x, y)
        elif self.form == "y.add_":
            y = y.add_(x)
        elif self.form == "bn after":
            y = self.bn_after(y + x)
        elif self.form == "alpha":
            y = torch.add(y, x, alpha=3)
        elif self.form == "broadcast":
            y = y + x[:, :, :1, :1]
        elif self.form == "signs of another shape":
            y = y + self.squeeze(x.mean((2, 3), keepdim=True) - 0.1)
        elif self.form == "twice":
            y = y + x + x
        elif self.form == "number":
            y = y + 0.75
        elif self.form == "used elsewhere":
            return self.head(self.conv2(self.act1(y + x)) + y)
        return self.head(self.conv2(self.act1(y)) + x)


FOLDED = ["y + x", "x + y", "y += x", "torch.add", "y.add_", "bn after", "number"]
NOT_FOLDED = ["alpha", "broadcast", "signs of another shape", "twice", "used elsewhere"]


@pytest.mark.parametrize("form", FOLDED + NOT_FOLDED)
@pytest.mark.parametrize("seed", [0, 1])
def test_shortcuts(form, seed):
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 6, 6)
    model, _ = sk.prepare(Residuals(form), x)
    g = torch.Generator().manual_seed(seed)
    set_stage(randomize_norms(model, g), Stage.BINARY).eval()
    # y.argmax over channels of a map; every sign of a fused activation was compared by then.
    packed = check(model, x, ["act1"] if form in FOLDED else [])
    rows = {m.thresholds.shape[0] for m in packed.modules() if isinstance(m, PackedLayer) and m.has_thresholds}
    assert rows == ({1 if form == "number" else 2} if form in FOLDED else set())


def test_a_committed_block_runs_on_bits_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), BasicBlock(8, 8), BasicBlock(8, 8), nn.Flatten(), nn.Linear(288, 4)
    )
    x = torch.randn(4, 3, 8, 8)
    model, _ = sk.prepare(net, x)
    randomize_norms(model, torch.Generator().manual_seed(0))
    set_stage(model, Stage.BINARY).eval()
    # The last ReLU and the addition before it are part of the last layer, whose floats the head reads.
    with float_convs_of(torch_s=True):
        packed = check(model, x, ["2.relu1", "2.relu2", "3.relu1"])
    kinds = [type(packed.get_submodule(n.target)).__name__ for n in packed.graph.nodes if n.op == "call_module"]
    assert kinds[:4] == ["PrepackedConv2d", "PackSigns", "PackedConv2d", "PackedConv2d"]
    assert sorted(kinds[4:7]) == ["PackedConv2d", "PackedConv2d", "UnpackSigns"]
    assert kinds[7:] == ["Flatten", "Linear"]
    assert "folded" in str(sk.explain(packed))
    assert "+-1 shortcut" in str(sk.explain(packed))


class FloatShortcuts(nn.Module):
    """act - conv - bn - + float, as in a Bi-Real block, and the next act, in several spellings."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.stem, self.bn0, self.act1 = nn.Conv2d(3, 40, 3, 1, 1), nn.BatchNorm2d(40), nn.Hardtanh()
        self.conv1, self.bn1, self.act2 = (
            nn.Conv2d(40, 40, 3, 1, 1, bias=form == "bias"),
            nn.BatchNorm2d(40),
            nn.Hardtanh(),
        )
        self.conv2, self.bn2, self.head = (
            nn.Conv2d(40, 40, 3, 1, 1, bias=False),
            nn.BatchNorm2d(40),
            nn.Conv2d(40, 2, 1),
        )
        self.shift, self.bn3 = nn.Parameter(torch.randn(40, 1, 1)), nn.BatchNorm2d(40)

    def forward(self, x):
        x = self.bn0(self.stem(x))
        y = self.bn1(self.conv1(self.act1(x)))
        if self.form == "x + y":
            y = x + y
        elif self.form == "y += x":
            y += x
        elif self.form == "x.add_(y)":
            y = x.add_(y)
        elif self.form == "broadcast":
            y = y + x.mean((2, 3), keepdim=True)
        elif self.form == "parameter":
            y = y + self.shift
        elif self.form == "normalized":
            y = y + self.bn3(x)
        else:
            y = y + x
        z = self.bn2(self.conv2(self.act2(y)))
        return self.head(z if self.form == "only signs" else z + y)


@pytest.mark.parametrize(
    ("form", "writes"),
    [
        ("y + x", ["both", "floats"]),
        ("x + y", ["both", "floats"]),
        ("y += x", ["both", "floats"]),
        ("x.add_(y)", ["floats", "floats"]),
        ("bias", ["both", "floats"]),
        ("broadcast", ["both", "floats"]),
        ("parameter", ["both", "floats"]),
        ("normalized", ["both", "floats"]),
        ("only signs", ["bits", "floats"]),
    ],
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_float_shortcuts(form, writes, format):
    torch.manual_seed(0)
    x = torch.randn(3, 3, 7, 6)
    model, _ = sk.prepare(FloatShortcuts(form), x)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    packed = check(model.to(memory_format=format), x.contiguous(memory_format=format))
    layers = [module for module in packed.modules() if isinstance(module, PackedConv2d)]
    assert [layer.writes for layer in layers] == writes
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in packed.modules())
    assert norms == (form != "parameter"), "the stem's, where its floats are the shortcut"


def test_max_pooling_of_signs_runs_on_bits():
    pools = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)]
    layers = [nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), pools[0], nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), pools[1]]
    model, x, _ = sequential(*layers, nn.Conv2d(8, 8, 1))
    packed = check(model, x, ["3", "7"])
    kinds = [type(packed.get_submodule(n.target)).__name__ for n in packed.graph.nodes if n.op == "call_module"]
    assert kinds.count("MaxPoolSigns") == 2
    assert "UnpackSigns" not in kinds
    assert "MaxPool2d" not in kinds


def test_verify_names_the_first_layer_that_differs(monkeypatch):
    model, x = committed("residual")
    wrong = sk.convert(model)
    original = packed_signs.fold_threshold

    def shifted(*args):
        folded = original(*args)
        return Threshold(folded.thresholds + 2, folded.flip_words)

    monkeypatch.setattr(packed_signs, "fold_threshold", shifted)
    with pytest.raises(ValueError, match=r"the packed network differs at blocks\.0\.relu1 in \d+ of \d+ signs"):
        sk.convert(model, verify=x)
    monkeypatch.undo()
    with torch.no_grad():
        wrong.fc.weight += 1
    with pytest.raises(ValueError, match=r"the packed network's output differs from the model's by up to \d"):
        verify_packed(model, wrong, x)


class ManyDimensions(nn.Module):
    """Linear layers on [B, T, K] and [B, H, W, K]."""

    def __init__(self, norm=None, residual=False, width=8):
        super().__init__()
        self.first, self.act0 = nn.Linear(7, width), nn.ReLU()
        self.a, self.norm, self.act1 = nn.Linear(width, width), norm or nn.Identity(), nn.ReLU()
        self.b, self.last = nn.Linear(width, width), nn.Linear(width, 3)
        self.residual = residual

    def forward(self, x):
        x = self.act0(self.first(x))
        y = self.norm(self.a(x))
        return self.last(self.b(self.act1(y + x if self.residual else y)))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 6, 5), (3, 8, 5), (8, 8, 8)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linear_layers_on_more_dimensions(shape, norm, residual):
    torch.manual_seed(0)
    shape = (*shape[:-1], 7)
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shape)]
    channels = 8 if len(shape) == 1 else shape[0]
    x = torch.randn(2, *shape)
    model, report = sk.prepare(ManyDimensions(kind(channels) if norm else None, residual), x)
    assert report.binarized() == ["a", "b"]
    set_stage(randomize_norms(model, torch.Generator().manual_seed(0)), Stage.BINARY).eval()
    # With more dimensions BatchNorm's channels are not the layer's outputs.
    packed = check(model, x, ["act1"] if len(shape) == 1 or not norm else [])
    if not norm and not residual:
        assert not any(isinstance(m, UnpackSigns) for m in packed.modules()), "bits need no detour"


def test_a_convolution_and_a_linear_layer_may_share_an_activation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 8, 1), nn.ReLU()
            self.conv, self.linear, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.act(self.first(x))
            return self.head(self.conv(x) + self.linear(x))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model, report = sk.prepare(Net(), x)
    assert report.binarized() == ["conv", "linear"]
    check(set_stage(model, Stage.BINARY).eval(), x)


def test_a_trained_network():
    torch.manual_seed(0)
    model, x = make("residual")
    progression = sk.StoMPP(model, 30, regime="ste", surrogate="clip", refresh=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        progression.step()
    check(model.eval(), torch.randn(16, 3, 8, 8), FUSED["residual"])


@pytest.mark.parametrize("batch", [1, 0, 5])
def test_batches_of_another_size(batch):
    model, x = committed("residual")
    packed = sk.convert(model)
    y = packed(x[:batch])
    assert y.shape == (batch, 4)
    with sk.float_simulation():
        torch.testing.assert_close(y, model(x[:batch]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_inputs_of_either_memory_format(format):
    model, x = committed("residual", 3)
    check(model, x.contiguous(memory_format=format), FUSED["residual"])


@pytest.mark.parametrize("training", [False, True])
def test_convert_leaves_the_model_as_it_was(training):
    model, x = committed("residual")
    model.train(training)
    before, text, y = snapshot(model), str(model), simulate(copy.deepcopy(model).eval(), x)[0]
    packed = sk.convert(model)
    assert not any(m.training for m in packed.modules())
    assert all(m.training == training for m in model.modules())
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert not own & {t.data_ptr() for t in (*packed.parameters(), *packed.buffers()) if t.numel()}
    assert torch.equal(simulate(model.eval(), x)[0], y)


def test_compiled_packed_networks():
    for name in ("residual", "mlp", "bireal"):
        torch._dynamo.reset()
        model, x = committed(name)
        packed = sk.convert(model)
        with torch.no_grad():
            compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
            # BatchNorms that stay in float are decomposed: float rounding.
            torch.testing.assert_close(compiled(x), packed(x), rtol=1e-4, atol=1e-4)


def test_exported_packed_networks():
    model, x = committed("residual")
    packed = sk.convert(model)
    with torch.no_grad():
        exported = torch.export.export(packed, (x,)).module()
        assert torch.equal(exported(x), packed(x))


def test_every_implementation_converts_alike(implementation):
    model, x = committed("residual", 4)
    check(model, x, FUSED["residual"])


def test_packed_state_dict_round_trip():
    packed, (other, x) = sk.convert(committed("residual", 1)[0]), committed("residual", 2)
    other = sk.convert(other)
    assert not torch.equal(other(x), packed(x))
    state = packed.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other(x), packed(x))
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    del state["blocks.0.conv1_fused.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks.0.conv1_fused.weight"):
        other.load_state_dict(state)


@pytest.mark.parametrize("stage", [Stage.SOFT, Stage.PARTIAL])
def test_what_is_not_committed_stays_as_it_is(stage):
    model, x = committed("residual")
    set_stage(model.blocks[1].conv2, stage)
    packed = sk.convert(model, verify=x)
    assert list(binary_layers(packed)) == ["blocks.1.conv2"]
    set_stage(model.relu, stage)
    packed = sk.convert(model, verify=x)
    assert list(binary_layers(packed)) == ["blocks.1.conv2"]
    assert isinstance(packed.get_submodule("blocks.0.conv1_binary_weight"), BinaryWeightConv2d), "its input is clipped"
    assert [n for n, m in packed.named_modules() if isinstance(m, ProgressiveActivation)] == ["relu"]


def test_models_with_nothing_committed_are_refused_by_layer():
    model, _ = make("residual")
    set_stage(model, Stage.BINARY)
    for layer in binary_layers(model).values():
        set_stage(layer, Stage.PARTIAL)
    with pytest.raises(ValueError, match=r"a layer whose weights are committed, got blocks\.0\.conv1 \(partial\), "):
        sk.convert(model)


def weights_only(seed=0, **options):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 40, 3, 2, 1), nn.BatchNorm2d(40), nn.ReLU()]
    layers += [nn.Conv2d(40, 40, 3, groups=40), nn.Conv2d(40, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 9, 70), nn.ReLU(), nn.Linear(70, 70), nn.Linear(70, 4))
    x = torch.randn(3, 3, 12, 12)
    model, _ = sk.prepare(net, x, binarize="weights", **options)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(seed)), Stage.BINARY)
    return model.eval(), x


@pytest.mark.parametrize("scale", [None, "channel"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_binary_weights_on_floats(scale, by_layer):
    model, x = weights_only(scale=scale)
    packed = sk.convert(model, verify=x, by_layer=by_layer)
    kinds = [type(module).__name__ for module in packed.modules()]
    assert kinds.count("BinaryWeightConv2d") == 3
    assert kinds.count("BinaryWeightLinear") == 2
    assert kinds.count("BatchNorm2d") == (2 if by_layer else 0), "folded into scale and bias"
    for size in (1, 5):
        y = torch.randn(size, 3, 12, 12)
        with torch.no_grad(), sk.float_simulation():
            torch.testing.assert_close(packed(y), model(y), rtol=1e-4, atol=1e-4)
    rows = [row for row in sk.explain(packed).rows if row.reason == "binary weights, float inputs"]
    assert len(rows) == 5
    wide = next(row for row in rows if row.kernel == "linear_binary_weight")
    assert wide.float_nbytes == 4 * 70 * 72


def test_binary_weights_with_padding_of_signs_stay_in_float():
    model, x = weights_only(padding_value=1)
    packed = sk.convert(model, verify=x)
    assert set(binary_layers(packed)) == {"2", "5", "6"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_refused(dtype):
    model, _ = committed("mlp")
    with pytest.raises(ValueError, match=f"model must have float32 parameters .* got {dtype}"):
        sk.convert(model.to(dtype))


def test_untraceable_models_are_refused():
    class Branches(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) if x.sum() > 0 else self.net(-x)

    model, x = committed("mlp")
    with pytest.raises(
        ValueError, match=r"cannot be traced by torch\.fx; by_layer=True converts its layers one by one: .*control flow"
    ):
        sk.convert(Branches(model))
    packed = sk.convert(Branches(model), verify=x, by_layer=True)
    assert isinstance(packed, Branches)
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(-x), model(-x) if x.sum() < 0 else model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "mlp", "bireal", "branching"])
def test_layers_converted_one_by_one(name):
    model, x = committed(name)
    packed = sk.convert(model, verify=x, by_layer=True)
    assert type(packed) is type(model)
    assert not binary_layers(packed)
    assert sorted(m.layer.replaces[0] for m in packed.modules() if isinstance(m, PackedOnFloats)) == sorted(
        binary_layers(model)
    )
    state = copy.deepcopy(packed).state_dict()
    torch.testing.assert_close(copy.deepcopy(packed)(x), packed(x))
    packed.load_state_dict(state)
    graph = sk.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), graph(x), rtol=1e-5, atol=1e-5)


def test_verify_names_the_first_layer_converted_by_itself_that_differs():
    model, x = committed("mlp")
    packed = sk.convert(model, by_layer=True)
    packed.fc2.layer.bias += 1
    with pytest.raises(ValueError, match=r"the packed network differs at fc2 by up to 1 where values reach \d"):
        verify_packed(model, packed, x)


def test_signs_are_packed_once_for_one_tensor(monkeypatch):
    calls = []
    monkeypatch.setattr(packed_layers, "pack_signs", lambda x: calls.append(1) or pack_signs(x))
    signs, g = SharedSigns(False), torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, generator=g)
    first = signs(x)
    assert signs(x) is first
    assert len(calls) == 1
    x.neg_()
    assert torch.equal(signs(x), pack_signs(x)), "changed in place"
    assert torch.equal(signs(x.clone()), pack_signs(x))
    assert len(calls) == 3
    with torch.inference_mode():
        y = torch.randn(2, 40, generator=g)
        signs(y)
        y.neg_()
        assert torch.equal(signs(y), pack_signs(y)), "inference tensors change without a trace"
    alive = weakref.ref(x)
    del x
    assert alive() is None, "the floats are not kept"


def test_models_without_binary_layers_are_refused():
    with pytest.raises(ValueError, match="model has no binary layer to convert"):
        sk.convert(nn.Linear(3, 3))


def test_unpack_is_the_inverse_of_pack():
    g = torch.Generator().manual_seed(0)
    for images, shape in ((True, (2, 35, 4, 3)), (False, (2, 3, 35))):
        x = torch.randn(shape, generator=g).sign()
        assert torch.equal(UnpackSigns(35, images)(PackSigns(images)(x)), x)


def test_packed_layers_know_what_they_replace():
    packed = sk.convert(committed("residual")[0])
    replaced = {n: m.replaces for n, m in packed.named_modules() if isinstance(m, (PackedConv2d, PackedLinear))}
    assert replaced == {
        "blocks.0.conv1_fused": ("blocks.0.conv1", "blocks.0.bn1", "blocks.0.relu1"),
        "blocks.0.conv2_fused": ("blocks.0.conv2", "blocks.0.bn2", "blocks.0.relu2"),
        "blocks.1.conv1_fused": ("blocks.1.conv1", "blocks.1.bn1", "blocks.1.relu1"),
        "blocks.1.conv2_affine": ("blocks.1.conv2", "blocks.1.bn2"),
    }


class Viewing(nn.Module):
    """Takes a view of a convolution's output, which only a contiguous one has."""

    def __init__(self):
        super().__init__()
        self.stem, self.act, self.conv = nn.Conv2d(1, 8, 3), nn.Hardtanh(), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x):
        y = self.conv(self.act(self.stem(x)))
        return self.fc(y.view(y.size(0), -1))


def test_a_view_of_a_convolution_survives_commit_and_conversion():
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, _ = sk.prepare(Viewing(), x[:1])
    sk.StoMPP(model, 10, regime="vanilla_ste")
    model(x).sum().backward()
    packed = sk.convert(model)
    with torch.no_grad(), sk.float_simulation():
        expected = model.eval()(x)
    torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
