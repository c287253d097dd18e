"""Thresholds that learn: what prepare makes of them, how they train, and what they fold into."""

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import binary_layers, randomize_norms, set_stage
from test_default_dtype import default_dtype
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import PackBatchNorm, Stage
from stompp_kernels.nn.packed import PackedLayer


class LearnableBias(nn.Module):
    """RSign's shift as its authors write it, of one of three forms."""

    def __init__(self, channels, form="expand"):
        super().__init__()
        shape = {"expand": (1, channels, 1, 1), "reshape": (channels,), "plain": (channels, 1, 1)}[form]
        self.form, self.bias = form, nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        if self.form == "plain":
            return x - self.bias
        return x + (self.bias.expand_as(x) if self.form == "expand" else self.bias.reshape(-1, 1, 1))


class RPReLU(nn.Module):
    def __init__(self, channels, slope=0.25):
        super().__init__()
        self.before, self.after = LearnableBias(channels), LearnableBias(channels, "reshape")
        self.prelu = nn.PReLU(channels, slope)

    def forward(self, x):
        return self.after(self.prelu(self.before(x)))


class Block(nn.Module):
    """A binarized convolution between a shift and a BatchNorm, with what ``form`` says behind it."""

    def __init__(self, channels, form, slope=0.25):
        super().__init__()
        self.form, self.shift = form, LearnableBias(channels)
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        twice = 2 * channels if form in ("duplicate", "dense") else channels
        self.act = RPReLU(twice, slope)
        if form == "duplicate":
            self.other, self.other_bn = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        if form == "pooled":
            self.pool = nn.AvgPool2d(3, 1, 1)
        if form == "excited":
            self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)
        if form == "scaled":
            self.scale = nn.Parameter(torch.rand(channels, 1, 1) - 0.5)

    def forward(self, x):
        shifted = self.shift(x)
        y = self.bn(self.conv(shifted))
        if self.form == "shortcut":
            y = y + x
        elif self.form == "pooled":
            y = self.pool(x) + y
        elif self.form == "scaled":
            y = y * self.scale + x
        elif self.form == "duplicate":  # ReActNet
            y = torch.cat([y + x, self.other_bn(self.other(shifted)) + x], dim=1)
        elif self.form == "dense":  # BinaryDenseNet
            y = torch.cat([x, y], 1)
        elif self.form == "improved":  # MeliusNet: a part of the channels is improved
            half = x.shape[1] // 2
            y = torch.cat([x[:, :half], x[:, half:] + y[:, half:]], 1)
        elif self.form == "excited":
            y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None] + x
        return self.act(y)


FORMS = ["chain", "shortcut", "pooled", "scaled", "duplicate", "dense", "improved", "excited"]


class Net(nn.Module):
    def __init__(self, form, slope=0.25, channels=32):
        super().__init__()
        twice = 2 * channels if form in ("duplicate", "dense") else channels
        self.stem, self.block = nn.Conv2d(3, channels, 3, padding=1), Block(channels, form, slope)
        self.shift, self.last = LearnableBias(twice, "plain"), nn.Conv2d(twice, 8, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.bn(self.last(self.shift(self.block(self.stem(x))))))


def images(batch=2, seed=0):
    return torch.randn(batch, 3, 7, 6, generator=torch.Generator().manual_seed(seed))


def prepared(model, x=None):
    return sk.prepare(model, images() if x is None else x, keep=("squeeze", "excite"))


def committed(form, slope=0.25, seed=0):
    torch.manual_seed(seed)
    model = Net(form, slope)
    model, _ = prepared(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("shift.bias", "before.bias", "after.bias")):
                parameter.normal_(std=0.5)
    randomize_norms(model, torch.Generator().manual_seed(seed))
    return set_stage(model, Stage.BINARY).eval()


def simulated(model, x):
    with torch.no_grad(), sk.float_simulation():
        return model(x)


def packed_layers(packed):
    return [module for module in packed.modules() if isinstance(module, PackedLayer)]


@pytest.mark.parametrize("form", FORMS)
def test_the_default_type_changes_no_network(form, tmp_path):
    model, x, path = committed(form), images(3, seed=1), tmp_path / "net.safetensors"
    packed = sk.convert(model, verify=x)
    wanted = packed(x)
    sk.save_packed(packed, path)
    with default_dtype(torch.float64):
        assert torch.equal(sk.convert(model, verify=x)(x), wanted)
        assert torch.equal(sk.load_packed(path)(x), wanted)


@pytest.mark.parametrize("form", ["expand", "reshape", "plain"])
def test_prepare_says_which_parameter_shifts_a_layers_signs(form):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), LearnableBias(8, form), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    )
    _, report = prepared(net)
    assert {row.name: row.reason for row in report.rows}["3"] == "binarizes its own input, shifted by 2.bias"


def test_only_one_number_for_each_channel_is_a_shift():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(7, 16), nn.Linear(16, 16), nn.Linear(16, 2)
            self.positions, self.bias = nn.Parameter(torch.zeros(5, 16)), nn.Parameter(torch.zeros(16))

        def forward(self, x):
            y = self.layer(self.first(x) + self.bias)
            return self.last(y + self.positions)

    _, report = sk.prepare(Positions(), torch.randn(2, 5, 7), keep_last=False)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["layer"] == "binarizes its own input, shifted by bias"
    assert reasons["last"] == "binarizes its own input"


def test_a_shift_behind_a_relu_is_no_dead_end():
    def net(*between):
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *between, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))

    model, report = prepared(net(LearnableBias(8)))
    reason = {row.name: row.reason for row in report.rows}["3"]
    assert reason == "binarizes its own input, shifted by 2.bias (all signs are +1 until that moves)"
    model(images()).square().sum().backward()
    assert model[2].bias.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="the signs of its input would all be \\+1"):
        prepared(net(nn.AvgPool2d(2)))


@pytest.mark.parametrize("regime", ["ste_free", "ste"])
def test_a_shift_learns_until_its_signs_are_committed(regime):
    torch.manual_seed(0)
    model, _ = prepared(Net("shortcut"))
    progression = sk.StoMPP(model, total_steps=8, regime=regime, order="global", refresh=1, cooldown=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    shift, seen = model.block.shift.bias, []
    for step in range(8):
        optimizer.zero_grad()
        model(images(4, step)).square().mean().backward()
        optimizer.step()
        progression.step()
        seen.append(shift.detach().clone())
    assert shift.detach().abs().sum() > 0
    assert not torch.equal(seen[0], seen[1])
    assert all(layer.committed for layer in binary_layers(model).values())
    assert torch.equal(seen[-2], seen[-1]) == (regime == "ste_free"), "what is cut off stays as it was"


def test_soft_values_are_clipped_behind_the_shift():
    layer = nn.Conv2d(4, 4, 1, bias=False)
    model, _ = prepared(nn.Sequential(nn.Conv2d(3, 4, 1), LearnableBias(4), layer, nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, -2.0, 0.0, 3.0]).reshape(1, 4, 1, 1))
        x = torch.randn(2, 4, 5, 5)
        expected = F.conv2d((x + model[1].bias).clamp(-1, 1), model[2].weight)
        torch.testing.assert_close(model[2](model[1](x)), expected)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 1.5])
@pytest.mark.parametrize("form", FORMS)
def test_packed_networks_equal_the_float_simulation(form, slope):
    model, x = committed(form, slope), images(3, 1)
    packed = sk.convert(model, verify=x)
    torch.testing.assert_close(packed(x), simulated(model, x), rtol=1e-5, atol=1e-5)
    names = {str(node.target) for node in packed.graph.nodes}
    if form in ("chain", "shortcut", "pooled", "duplicate"):
        assert not [name for name in names if "shift" in name or "before" in name or "after" in name], "all folded"
        assert not any(isinstance(module, nn.PReLU) for module in packed.modules())
    assert not any(isinstance(module, sk.nn.PackSigns) for module in packed.modules()), "each shift is a limit"


def test_one_threshold_for_each_channel_is_one():
    """A slope that is not negative keeps the order of sums; a negative one keeps it only where no sum is there."""
    rising, bent = (packed_layers(sk.convert(committed("chain", slope)))[0] for slope in (0.25, -0.5))
    assert rising.has_thresholds
    assert not bent.has_thresholds
    assert bent.writes == "bits"
    assert bent.rprelu.shape == (3, 32)
    assert bent.limits.shape == (2, 32)
    model = committed("chain", -0.5)
    with torch.no_grad():
        model.block.act.before.bias.fill_(1000.0)  # no sum reaches the slope
    layer = packed_layers(sk.convert(model, verify=images()))[0]
    assert layer.has_thresholds


def test_a_shift_alone_is_the_limits_of_one_pass():
    for slope in (0.25, -0.5):
        model = committed("shortcut", slope)
        packed = sk.convert(model)
        packers = [module for module in packed.modules() if isinstance(module, PackBatchNorm)]
        assert len(packers) == 1, "the stem's output is packed by a pass, the block's by its kernel"
        first, second = packed_layers(packed)
        assert (first.writes, second.writes) == ("bits", "floats")
        assert first.limits is not None
        if slope > 0:  # the limits are those of the sum, whatever follows
            assert first.rprelu is None
        else:
            assert torch.equal(first.rprelu[1], model.block.act.prelu.weight)


def test_signs_at_the_boundary_are_the_float_networks():
    """Sums of integers and shifts in halves meet the threshold exactly, where sign(0) is +1."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 1),
        LearnableBias(32),
        nn.Conv2d(32, 64, 1, bias=False),
        RPReLU(64),
        LearnableBias(64, "plain"),
        nn.Conv2d(64, 4, 1),
        nn.Conv2d(4, 2, 1),
    )
    model, _ = prepared(net)
    with torch.no_grad():
        for shift in (model[3].before, model[3].after, model[4]):
            shift.bias.copy_(torch.randint(-4, 5, shift.bias.shape))
        model[3].prelu.weight.copy_(2.0 ** -torch.randint(0, 3, (64,)))
    set_stage(model, Stage.BINARY).eval()
    x = torch.randn(4, 3, 20, 20)
    packed = sk.convert(model, verify=x)
    assert packed_layers(packed)[0].has_thresholds
    values = []
    model[4].register_forward_hook(lambda module, inputs, output: values.append(output))
    expected = simulated(model, x)
    assert int((values[0] == 0).sum()) > 100
    assert torch.equal(packed(x), expected)


@pytest.mark.parametrize("form", ["shortcut", "duplicate", "excited"])
def test_files_and_exports_hold_them(form, tmp_path):
    packed, x = sk.convert(committed(form, -0.5)), images()
    sk.save_packed(packed, tmp_path / "packed.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "packed.safetensors")(x), packed(x))
    sk.export_packed(packed, tmp_path / "packed.pt2", x)
    torch.testing.assert_close(sk.load_exported(tmp_path / "packed.pt2")(x), packed(x))


def test_a_shift_that_makes_many_channels_of_one_is_not_folded():
    class Widened(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 1, 1), nn.Conv2d(8, 1, 1)
            self.first, self.second = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))
            self.wide, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(self.wide(self.inner(self.stem(x) + self.first) + self.second))

    torch.manual_seed(0)
    model, _ = prepared(Widened())
    set_stage(model, Stage.BINARY).eval()
    packed = sk.convert(model, verify=images())
    torch.testing.assert_close(packed(images()), simulated(model, images()))


def test_tokens_are_shifted_in_their_last_dimension():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Linear(7, 40), nn.Linear(40, 40), nn.Linear(40, 40)
            self.shift, self.other, self.last = *(nn.Parameter(torch.randn(40)) for _ in range(2)), nn.Linear(40, 3)

        def forward(self, x):
            return self.last(self.b(self.a(self.first(x) + self.shift) + self.other))

    torch.manual_seed(0)
    x = torch.randn(2, 5, 7)
    model, _ = sk.prepare(Tokens(), x)
    set_stage(model, Stage.BINARY).eval()
    packed = sk.convert(model, verify=x)
    torch.testing.assert_close(packed(x), simulated(model, x))
    first, _ = packed_layers(packed)
    assert first.has_thresholds
