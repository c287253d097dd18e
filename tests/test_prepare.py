"""prepare: what becomes progressive, what stays and why, and that the function is kept where it should be."""

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import MLP, RESIDUAL_LAYERS, BiRealNet, BranchingNet, ResidualNet, binary_layers, make, snapshot
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryConv2d, BinaryLinear, ProgressiveActivation, Stage

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(1, 7, generator=torch.Generator().manual_seed(0))


def rows_of(report):
    return {row.name: row for row in report.rows}


def middle(layer, before=None):
    """A net whose second of three layers is the one in question."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), before or nn.ReLU(), layer, nn.Conv2d(4, 2, 1))


def test_first_last_and_downsample_layers_stay():
    torch.manual_seed(0)
    model, report = sk.prepare(ResidualNet(), IMAGE)
    rows = rows_of(report)
    assert report.binarized() == RESIDUAL_LAYERS
    assert (rows["conv1"].action, rows["conv1"].reason) == ("kept", "first layer")
    assert (rows["fc"].action, rows["fc"].reason) == ("kept", "last layer")
    downsample = rows["blocks.1.downsample.0"]
    assert (downsample.kind, downsample.action, downsample.reason) == ("Conv2d", "kept", "downsample layer")
    assert isinstance(model.blocks[1].downsample[0], nn.Conv2d)
    assert not isinstance(model.blocks[1].downsample[0], BinaryConv2d)
    assert rows["blocks.0.conv1"].reason == "input binarized by relu"
    assert (rows["relu"].kind, rows["relu"].action, rows["relu"].reason) == (
        "ReLU",
        "progressive",
        "feeds blocks.0.conv1",
    )
    assert (rows["blocks.1.relu2"].action, rows["blocks.1.relu2"].reason) == ("kept", "feeds no binarized layer")
    assert isinstance(model.relu, ProgressiveActivation)
    assert isinstance(model.blocks[1].relu2, nn.ReLU)
    assert set(binary_layers(model)) == set(RESIDUAL_LAYERS)
    assert all(isinstance(layer, BinaryConv2d) for layer in binary_layers(model).values())


def test_the_report_prints_one_line_per_row():
    _, report = sk.prepare(ResidualNet(), IMAGE)
    lines = str(report).splitlines()
    assert len(lines) == len(report.rows) + 2
    assert lines[0].split() == ["layer", "was", "action", "why"]
    for row, line in zip(report.rows, lines[2:], strict=True):
        assert line.startswith(row.name)
        assert line.rstrip().endswith(row.reason)
    layers = [row.name for row in report.rows if row.kind in ("Conv2d", "Linear")]
    assert layers == ["conv1", *RESIDUAL_LAYERS, "blocks.1.downsample.0", "fc"], "in order of execution"


def test_layers_without_an_activation_get_one_of_their_own():
    model, report = sk.prepare(BiRealNet(), IMAGE)
    assert {row.reason for row in report.rows if row.action == "binarized"} == {"binarizes its own input"}
    assert model.conv1.input_activation.mask_shape == (6, 8, 8)


def test_an_activation_that_feeds_two_layers_names_both():
    _, report = sk.prepare(BranchingNet(), IMAGE)
    assert rows_of(report)["relu"].reason == "feeds left, right"


@pytest.mark.parametrize("options", [{}, {"scale": "channel"}, {"binarize": "weights"}])
def test_the_model_given_is_left_as_it_was(options):
    torch.manual_seed(0)
    float_model = ResidualNet().train()
    before, text, y = snapshot(float_model), str(float_model), float_model.eval()(IMAGE)
    float_model.train()
    model, _ = sk.prepare(float_model, IMAGE, **options)
    assert str(float_model) == text
    assert all(torch.equal(value, before[key]) for key, value in float_model.state_dict().items())
    assert all(module.training for module in float_model.modules())
    assert all(module.training for module in model.modules())
    assert torch.equal(float_model.eval()(IMAGE), y)
    assert not any(p is q for p in model.parameters() for q in float_model.parameters())
    assert not any(m.training for m in sk.prepare(float_model, IMAGE, **options)[0].modules())


def test_keep_first_and_last_can_be_off():
    _, report = sk.prepare(MLP(), ROW, keep_first=False, keep_last=False)
    assert report.binarized() == ["fc1", "fc2", "fc3", "fc4"]
    assert rows_of(report)["fc1"].reason == "binarizes its own input"


def test_keep_patterns_are_searched_in_names():
    _, report = sk.prepare(ResidualNet(), IMAGE, keep=(r"0\.conv2$", "downsample"))
    rows = rows_of(report)
    assert report.binarized() == ["blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2"]
    assert rows["blocks.0.conv2"].reason == r"matches keep='0\\.conv2$'"
    assert rows["blocks.0.relu1"].reason == "feeds no binarized layer"
    _, report = sk.prepare(ResidualNet(), IMAGE, keep=())
    assert "blocks.1.downsample.0" in report.binarized()


def test_first_and_last_are_those_that_run():
    class Net(MLP):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)

    _, report = sk.prepare(Net(), ROW)
    assert "unused" not in rows_of(report)
    model, report = make("reversed")
    assert set(binary_layers(model)) == {"a", "b", "c"}


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardtanh])
def test_relu_like_modules_are_replaced(kind):
    model, _ = sk.prepare(middle(nn.Conv2d(4, 4, 3), kind()), IMAGE)
    assert isinstance(model[1], ProgressiveActivation)
    assert model[2].input_activation is None
    assert model[2].activation is model[1]


def test_other_activations_stay_before_an_own_one():
    model, _ = sk.prepare(middle(nn.Conv2d(4, 4, 3), nn.GELU()), IMAGE)
    assert isinstance(model[1], nn.GELU)
    assert isinstance(model[2].input_activation, ProgressiveActivation)


class FunctionalRelu(nn.Module):
    def __init__(self, function=F.relu):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.function = function

    def forward(self, x):
        return self.head(self.body(self.function(self.stem(x))))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.threshold(x, 0.1, 0.0), "threshold"),
        (lambda x: x.clamp(min=0.5), "clamp"),
        (lambda x: x.clamp_min(x.mean().abs()), "clamp_min"),
        (lambda x: F.dropout(F.threshold(x, 0.1, 0.0), 0.5, False), "threshold"),
        (lambda x: F.max_pool2d(x.clamp(max=1.0), 2), "clamp"),
    ],
)
def test_a_function_that_no_activation_module_computes_is_refused(function, name):
    with pytest.raises(ValueError, match=f"layer 'body': its input comes from a functional {name}, .*nn.ReLU module"):
        sk.prepare(FunctionalRelu(function), IMAGE)
    _, report = sk.prepare(FunctionalRelu(function), IMAGE, binarize="weights")
    assert report.binarized() == ["body"]


def test_a_layer_used_at_two_places_has_one_mask():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.twice, self.once, self.head = (nn.Linear(7, 7) for _ in range(4))

        def forward(self, x):
            return self.head(self.once(self.twice(self.twice(self.stem(x)))))

    model, report = sk.prepare(Reused(), ROW)
    assert report.binarized() == ["twice", "once"]
    assert model.twice.input_activation.mask_shape == (7,)


@pytest.mark.parametrize(
    ("conv", "padding"),
    [
        (nn.Conv2d(4, 4, 3, padding="same"), (1, 1)),
        (nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(2, 1)), (2, 2)),
        (nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(2, 1)), (1, 1)),
        (nn.Conv2d(4, 4, 3, padding="valid"), (0, 0)),
        (nn.Conv2d(4, 4, 3, padding=(1, 2)), (1, 2)),
    ],
)
def test_padding_becomes_numbers(conv, padding):
    torch.manual_seed(0)
    float_model = middle(conv)
    model, _ = sk.prepare(float_model, IMAGE)
    assert model[2].padding == padding
    x = torch.rand(2, 4, 8, 8) * 2 - 1
    with torch.no_grad():
        expected = float_model[2](x) * (model[2].weight / float_model[2].weight).mean()
        model[2].weight.mul_(0.2)  # inside [-1, 1], so that clip does nothing
        model[2].bias.mul_(0.2)
        torch.testing.assert_close(model[2](x) * 5, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        pytest.param(
            nn.Conv2d(4, 4, 2, padding="same"),
            "padding='same' is not symmetric for this kernel",
            marks=pytest.mark.filterwarnings("ignore:Using padding:UserWarning"),
        ),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect' has no binary kernel"),
        (
            nn.ConvTranspose2d(4, 4, (1, 3)),
            "kernel_size (1, 3) differs in height and width, for which it has no binary kernel",
        ),
    ],
)
def test_layers_without_a_binary_kernel_stay(layer, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    prepared, report = sk.prepare(model, IMAGE)
    assert report.binarized() == ["4"]
    assert rows_of(report)["2"].reason == reason
    assert type(prepared[2]) is type(layer)
    assert rows_of(report)["1"].reason == "feeds no binarized layer"


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_a_scale_keeps_the_function_while_soft(scale):
    torch.manual_seed(0)
    float_model = nn.Sequential(
        nn.Linear(7, 40), nn.Hardtanh(), nn.Linear(40, 30), nn.Hardtanh(), nn.Linear(30, 20), nn.Linear(20, 3)
    ).eval()
    x = torch.randn(16, 7)
    model, _ = sk.prepare(float_model, x, scale=scale, latent_std=0.15)
    for index in (2, 4):
        layer = model[index]
        assert torch.equal(layer.weight, float_model[index].weight)
        assert torch.equal(layer.bias, float_model[index].bias)
        assert layer.alpha.shape == ((layer.out_features,) if scale == "channel" else (1,))
        latent = layer.latent()
        stds = latent.std(1, correction=0) if scale == "channel" else latent.std(correction=0)
        torch.testing.assert_close(stds, torch.full_like(stds, 0.15))
        assert latent.abs().max() < 1, "a uniform start of standard deviation 0.15 ends at 0.26"
    # Layer 4 has an activation of its own, clip(x, -1, 1) of inputs inside. Rounding of w / alpha * alpha only.
    with torch.no_grad():
        model[4].input_activation = None
        torch.testing.assert_close(model(x), float_model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_without_latent_std_alpha_is_the_mean_magnitude(scale):
    torch.manual_seed(0)
    float_model = middle(nn.Conv2d(4, 4, 3))
    model, _ = sk.prepare(float_model, IMAGE, scale=scale, latent_std=None)
    w = float_model[2].weight.detach()
    expected = w.abs().mean((1, 2, 3)) if scale == "channel" else w.abs().mean().reshape(1)
    torch.testing.assert_close(model[2].alpha, expected)


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_zero_weights_get_a_usable_alpha(scale):
    float_model = middle(nn.Conv2d(4, 4, 3))
    nn.init.zeros_(float_model[2].weight)
    model, _ = sk.prepare(float_model, IMAGE, scale=scale)
    assert (model[2].alpha == 1).all()
    assert model(IMAGE).isfinite().all()


@pytest.mark.parametrize("latent_std", [0.3, 0.05, None])
def test_latent_std_scales_weights_and_bias(latent_std):
    torch.manual_seed(0)
    float_model = MLP()
    model, _ = sk.prepare(float_model, ROW, latent_std=latent_std)
    w, before = model.fc2.weight.detach(), float_model.fc2.weight.detach()
    factor = 1.0 if latent_std is None else latent_std / float(before.std(correction=0))
    torch.testing.assert_close(w, before * factor)
    torch.testing.assert_close(model.fc2.bias.detach(), float_model.fc2.bias.detach() * factor)
    if latent_std is not None:
        assert float(w.std(correction=0)) == pytest.approx(latent_std, rel=1e-4)
    assert torch.equal(torch.sign(w), torch.sign(before))
    assert torch.equal(model.fc1.weight, float_model.fc1.weight)


def test_grouped_and_depthwise_convolutions():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU()
    )
    net.append(nn.Conv2d(4, 2, 1))
    model, report = sk.prepare(net, IMAGE)
    assert report.binarized() == ["2", "4"]
    assert (model[2].groups, model[2].weight.shape) == (8, (8, 1, 3, 3))
    assert (model[4].groups, model[4].weight.shape) == (2, (4, 4, 1, 1))


def test_linear_models():
    model, report = sk.prepare(MLP(), ROW)
    assert report.binarized() == ["fc2", "fc3"]
    assert isinstance(model.fc2, BinaryLinear)
    assert (model.fc2.bias is None, model.fc3.bias is None) == (False, True)
    assert model.relu1.mask_shape == (40,)


@pytest.mark.parametrize("padding_value", [0, 1, -1])
def test_padding_value_reaches_the_convolutions(padding_value):
    model, _ = sk.prepare(ResidualNet(), IMAGE, padding_value=padding_value)
    assert {layer.padding_value for layer in binary_layers(model).values()} == {padding_value}


def test_weights_only():
    model, report = sk.prepare(ResidualNet(), IMAGE, binarize="weights")
    assert report.binarized() == RESIDUAL_LAYERS
    assert not any(isinstance(m, ProgressiveActivation) for m in model.modules())
    assert {row.reason for row in report.rows if row.kind == "ReLU"} == {"weights only"}
    assert all(layer.activation is None for layer in binary_layers(model).values())


def test_everything_starts_soft_and_dtype_is_kept():
    model, _ = sk.prepare(ResidualNet().double(), IMAGE.double())
    assert all(layer.weight.dtype == torch.float64 for layer in binary_layers(model).values())
    assert all(layer.stage is Stage.SOFT for layer in binary_layers(model).values())
    assert model(IMAGE.double()).dtype == torch.float64


def test_frozen_parameters_of_kept_layers_stay_frozen():
    float_model = ResidualNet()
    float_model.conv1.weight.requires_grad_(False)
    model, _ = sk.prepare(float_model, IMAGE)
    assert not model.conv1.weight.requires_grad


def test_frozen_parameters_of_binarized_layers_stay_frozen():
    float_model = MLP()
    float_model.fc2.weight.requires_grad_(False)
    float_model.fc3.weight.requires_grad_(True)
    model, _ = sk.prepare(float_model, ROW)
    assert (model.fc2.weight.requires_grad, model.fc2.bias.requires_grad) == (False, True)
    assert model.fc3.weight.requires_grad
    float_model.fc2.bias.requires_grad_(False)
    assert not sk.prepare(float_model, ROW)[0].fc2.bias.requires_grad


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(register):
    conv = nn.Conv2d(4, 4, 1)
    getattr(conv, register)(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Doubled(4, 4, 1), "is a subclass of Conv2d with code of its own"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "is a subclass of Conv2d with code of its own"),
        (hooked("register_forward_hook"), "has forward hooks of its own"),
        (hooked("register_forward_pre_hook"), "has forward hooks of its own"),
    ],
    ids=["subclass", "parametrized", "hook", "pre-hook"],
)
def test_layers_with_code_of_their_own_stay(layer, reason):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    model, report = sk.prepare(net, IMAGE)
    assert report.binarized() == ["4"]
    assert rows_of(report)["2"].reason == reason
    assert type(model[2]) is type(net[2])
    assert rows_of(report)["1"].reason == "feeds no binarized layer"


class CatWithItself(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


ONLY_POSITIVE = [
    (nn.AvgPool2d(2), 4),
    (nn.ZeroPad2d(1), 4),
    (nn.AdaptiveAvgPool2d(1), 4),
    (CatWithItself(), 8),
]


@pytest.mark.parametrize(("between", "channels"), ONLY_POSITIVE, ids=["avgpool", "pad", "gap", "cat"])
def test_a_layer_whose_signs_would_all_be_positive_is_refused(between, channels):
    def net(*middle):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), *middle, nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 2, 1))

    with pytest.raises(ValueError, match=r"layer '3': the signs of its input would all be \+1, .*BatchNorm.*keep="):
        sk.prepare(net(nn.ReLU(), between), IMAGE)
    _, report = sk.prepare(net(nn.ReLU(), between), IMAGE, binarize="weights")
    assert report.binarized() == ["3"]
    _, report = sk.prepare(net(between, nn.ReLU()), IMAGE)
    assert rows_of(report)["3"].reason == "input binarized by 2"


def test_average_pooling_of_a_replaced_activation_has_both_signs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu, self.pool = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AvgPool2d(2)
            self.conv, self.pooled, self.head = nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.relu(self.stem(x))
            return self.head(self.conv(x) + self.pooled(self.pool(x)))

    torch.manual_seed(0)
    _, report = sk.prepare(Net(), IMAGE)
    assert rows_of(report)["pooled"].reason == "binarizes its own input"


def test_an_activation_in_place_whose_result_is_unused_is_refused():
    class Discarded(MLP):
        def forward(self, x):
            x = self.fc1(x)
            self.relu1(x)
            return self.fc4(self.relu2(self.fc2(x)))

    net = Discarded()
    net.relu1 = nn.ReLU(inplace=True)
    with pytest.raises(ValueError, match="layer 'fc2': its input came from activation 'relu1', not from what replaced"):
        sk.prepare(net, ROW)
    assert sk.prepare(net, ROW, binarize="weights")[1].binarized() == ["fc2"]


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="model is a single layer: wrap it in"):
        sk.prepare(nn.Linear(7, 3), ROW)
    with pytest.raises(ValueError, match="model is a single layer: wrap it in"):
        sk.prepare(nn.Linear(7, 3), ROW, keep_first=False, keep_last=False)


def test_a_prepared_model_is_refused():
    model, _ = sk.prepare(MLP(), ROW)
    with pytest.raises(ValueError, match="model is prepared already"):
        sk.prepare(model, ROW)


def test_a_model_with_nothing_to_binarize_says_what_became_of_each_layer():
    with pytest.raises(ValueError, match="model has no layer to binarize; 0: first layer; 2: last layer"):
        sk.prepare(nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2)), ROW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarize": "none"}, "binarize must be one of 'both', 'weights', got 'none'"),
        ({"scale": "row"}, "scale must be one of None, 'channel', 'tensor', got 'row'"),
        ({"padding_value": 2}, "padding_value must be one of 0, 1, -1, got 2"),
        ({"latent_std": 0.0}, "latent_std must be positive or None, got 0.0"),
        ({"latent_std": -1}, "latent_std must be positive or None, got -1"),
        ({"latent_std": float("nan")}, "latent_std must be positive or None, got nan"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sk.prepare(MLP(), ROW, **options)


def test_an_input_scale_keeps_the_size_of_what_signs_replace():
    torch.manual_seed(0)
    float_model = nn.Sequential(
        nn.Linear(7, 40), nn.LayerNorm(40), nn.Linear(40, 50), nn.GELU(), nn.Linear(50, 20), nn.Linear(20, 3)
    ).eval()
    x = torch.randn(64, 7)
    model, _ = sk.prepare(float_model, x, scale="channel", latent_std=None, input_scale="tensor")
    with torch.no_grad():
        for index in (2, 4):
            seen = float_model[:index](x)
            torch.testing.assert_close(model[index].input_scale, seen.abs().mean().reshape(1))
            before = model[index](seen).std()
            model[index].input_activation.commit()
            model[index].commit()
            assert 0.5 < model[index](seen).std() / before < 2
        # Signs times both scales, which the packed network has in its epilogue.
        u = torch.where(seen < 0, -1.0, 1.0) * seen.abs().mean()
        w = torch.where(float_model[4].weight < 0, -1.0, 1.0) * float_model[4].weight.abs().mean(1, keepdim=True)
        torch.testing.assert_close(model[4](seen), nn.functional.linear(u, w, float_model[4].bias))
        torch.testing.assert_close(sk.convert(model.eval())(x), model(x), rtol=1e-5, atol=1e-5)
    assert "4.input_scale" in model.state_dict()


def test_an_input_scale_needs_an_activation_of_ones_own():
    with pytest.raises(ValueError, match="input_scale must be one of None, 'tensor', got 'channel'"):
        sk.prepare(MLP(), ROW, input_scale="channel")
    with pytest.raises(ValueError, match="input_scale needs binarize_input=True"):
        sk.nn.BinaryLinear(4, 4, input_scale=torch.ones(1))
    for bad in (torch.zeros(1), torch.ones(4)):
        with pytest.raises(ValueError, match="input_scale must be one positive number"):
            sk.nn.BinaryLinear(4, 4, binarize_input=True, input_scale=bad)
    model, _ = sk.prepare(MLP(), ROW, binarize="weights", input_scale="tensor")
    assert all(getattr(module, "input_scale", None) is None for module in model.modules())
