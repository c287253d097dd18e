"""Weights that others read than the layer: fused kernels, user code; and layers that do not run in every mode."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import seeded, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLinear, Stage
from stompp_kernels.progression import link

ROWS = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))


def rows_of(report):
    return {row.name: row for row in report.rows}


class Encoder(nn.Module):
    def __init__(self, layer, layers=2, **options):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 24), nn.Linear(24, 5)
        self.encoder = nn.TransformerEncoder(layer, layers, **options)

    def forward(self, x, padding=None):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding).mean(1))


def encoder(activation="gelu", norm_first=False, batch_first=True):
    seeded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are not for all of these
        layer = nn.TransformerEncoderLayer(24, 4, 32, 0.0, activation, norm_first=norm_first, batch_first=batch_first)
        return Encoder(layer)


def outputs(model, *args):
    """In eval mode without gradients, in inference mode, and with gradients."""
    model.eval()
    with torch.no_grad():
        without = model(*args)
    with torch.inference_mode():
        inference = model(*args).clone()
    return without, inference, model(*args).detach()


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "activation",
    ["relu", "gelu", nn.ReLU(), torch.relu, F.silu],
    ids=["relu", "gelu", "module", "torch.relu", "F.silu"],
)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layers_run_their_binary_layers_in_every_mode(activation, norm_first, batch_first):
    float_model = encoder(activation, norm_first, batch_first)
    before = outputs(float_model, SEQUENCES)
    model, report = sk.prepare(float_model, SEQUENCES)
    layers = [f"encoder.layers.{i}.linear{k}" for i in (0, 1) for k in (1, 2)]
    assert report.binarized() == layers
    for stage in (Stage.SOFT, Stage.BINARY):
        set_stage(model, stage)
        without, inference, with_gradients = outputs(model, SEQUENCES)
        torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inference, with_gradients, rtol=1e-5, atol=1e-5)
    packed = sk.convert(model, by_layer=True, verify=SEQUENCES)
    torch.testing.assert_close(packed(SEQUENCES), model(SEQUENCES), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(float_model, SEQUENCES), strict=True))


def test_an_encoder_gives_its_layers_no_nested_tensors():
    seeded()
    model, report = sk.prepare(Encoder(nn.TransformerEncoderLayer(24, 4, 32, 0.0, "gelu", batch_first=True)), SEQUENCES)
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[1, 5:] = True
    set_stage(model, Stage.BINARY)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        without, _, with_gradients = outputs(other, SEQUENCES, padding)
        torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-5)
    rows = rows_of(report)
    for name in ("encoder", "encoder.layers.0", "encoder.layers.1"):
        assert rows[name].action == "fused kernel off"
        assert rows[name].reason == "its fused kernel for eval mode would read the latent weights of its layers"


def test_an_encoder_layer_without_binary_layers_keeps_its_fused_kernel():
    float_model = encoder()
    model, report = sk.prepare(float_model, SEQUENCES, keep=[r"layers\.1"])
    assert model.encoder.layers[0].activation_relu_or_gelu == 0
    assert model.encoder.layers[1].activation_relu_or_gelu == float_model.encoder.layers[1].activation_relu_or_gelu == 2
    assert "encoder.layers.1" not in {row.name for row in report.rows if row.action == "fused kernel off"}


def test_the_rest_of_attention_is_in_the_report():
    _, report = sk.prepare(encoder(), SEQUENCES)
    rows = rows_of(report)
    attention = rows["encoder.layers.0.self_attn"]
    assert (attention.kind, attention.action) == ("MultiheadAttention", "kept")
    assert attention.reason == "multiplies by its in_proj_weight, but MultiheadAttention has no binary kernel"
    assert rows["encoder.layers.0.self_attn.out_proj"].reason == (
        "its weight is read by the forward of 'encoder.layers.0.self_attn' of type MultiheadAttention "
        "in eval mode without gradients, and its own forward does not run"
    )


def test_transformers_with_a_decoder_agree_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(16, 24), nn.Linear(24, 5)
            self.transformer = nn.Transformer(24, 4, 1, 1, 32, 0.0, batch_first=True)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.transformer(x, x))

    seeded()
    model, report = sk.prepare(Net(), SEQUENCES)
    assert "transformer.decoder.layers.0.linear2" in report.binarized()
    set_stage(model, Stage.BINARY)
    without, inference, with_gradients = outputs(model, SEQUENCES)
    torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inference, with_gradients, rtol=1e-5, atol=1e-5)


class Reading(nn.Module):
    """A forward that reads the weight of a layer as the test wants."""

    def __init__(self, read):
        super().__init__()
        self.first, self.one, self.two, self.last = (nn.Linear(7, 7) for _ in range(4))
        self.read = read

    def forward(self, x):
        return self.last(self.two(torch.tanh(self.read(self, self.first(x)))))


def in_mode(condition):
    return lambda m, x: F.linear(x, m.one.weight, m.one.bias) if condition(m) else m.one(x)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda m, x: F.linear(m.one(x), m.one.weight.t()), "its weight is read by the model's own forward (Reading)"),
        (lambda m, x: m.one(x) * m.one.weight.norm(), "its weight is read by .* in eval mode without gradients"),
        (lambda m, x: m.one(x) + m.one.bias.detach(), "its bias is read by the model's own forward"),
        (in_mode(lambda m: not torch.is_grad_enabled() and not m.training), "in eval mode without gradients"),
        (in_mode(lambda m: torch.is_grad_enabled() and not m.training), "too, in eval mode with gradients"),
        (in_mode(lambda m: torch.is_inference_mode_enabled()), "too, in eval mode in inference mode"),
        (in_mode(lambda m: m.training), "too, in training mode without gradients"),
        (in_mode(lambda m: m.training and torch.is_grad_enabled()), "too, in training mode with gradients"),
    ],
    ids=["transposed", "norm", "bias", "eval", "eval with gradients", "inference", "training", "learning"],
)
def test_a_layer_whose_weight_is_read_elsewhere_stays(read, reason):
    seeded()
    model, report = sk.prepare(Reading(read), ROWS)
    row = rows_of(report)["one"]
    assert (row.action, type(model.one)) == ("kept", nn.Linear)
    assert reason.split(" .* ")[0] in row.reason
    assert reason.split(" .* ")[-1] in row.reason
    assert report.binarized() == ["two"]


def test_a_layer_that_only_lends_its_weight_is_named():
    model, report = sk.prepare(Reading(lambda m, x: F.linear(x, m.one.weight)), ROWS)
    assert rows_of(report)["one"].reason == (
        "its weight is read by the model's own forward (Reading) in eval mode without gradients, "
        "and its own forward does not run"
    )
    assert type(model.one) is nn.Linear


@pytest.mark.parametrize(
    "read",
    [
        lambda m, x: m.one(x.to(m.one.weight.dtype).to(m.one.weight.device)),
        lambda m, x: m.one(x) + torch.zeros_like(m.one.weight)[0] + m.one.bias.new_zeros(7),
        lambda m, x: m.one(x).view(-1, m.one.weight.shape[0]),
        lambda m, x: m.one.forward(x),
    ],
    ids=["dtype", "zeros", "shape", "forward called directly"],
)
def test_shapes_and_types_may_be_read(read):
    _, report = sk.prepare(Reading(read), ROWS)
    assert report.binarized() == ["one", "two"]


def test_a_decoder_that_is_tied_to_an_encoder_by_its_transpose():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.encode, self.body, self.head = (nn.Linear(7, 7) for _ in range(4))

        def forward(self, x):
            x = torch.tanh(self.encode(self.stem(x)))
            return self.head(self.body(F.linear(x, self.encode.weight.t())))

    _, report = sk.prepare(Tied(), ROWS)
    assert report.binarized() == ["body"]
    assert "its weight is read by the model's own forward (Tied) too" in rows_of(report)["encode"].reason


@pytest.mark.parametrize("holder", [lambda layer: [layer], lambda layer: {"a": layer}])
def test_a_layer_held_outside_the_module_tree_is_refused(holder):
    net = Reading(lambda m, x: (m.held["a"] if isinstance(m.held, dict) else m.held[0])(x))
    net.held = holder(net.one)
    with pytest.raises(ValueError, match=r"layer 'one': what replaced it does not run in eval mode .*not in lists"):
        sk.prepare(net, ROWS)
    model, report = sk.prepare(net, ROWS, on_refusal="keep")
    assert report.binarized() == ["two"]
    assert "what replaced it does not run" in rows_of(report)["one"].reason
    torch.testing.assert_close(model.one(ROWS), net.one(ROWS))


def test_a_bound_forward_held_elsewhere_leaves_its_layer_in_float():
    net = Reading(lambda m, x: m.held(x))
    net.held = net.one.forward
    model, report = sk.prepare(net, ROWS)
    assert report.binarized() == ["two"]
    assert "its weight is read by the model's own forward" in rows_of(report)["one"].reason
    torch.testing.assert_close(model.one(ROWS), net.one(ROWS))


def test_layers_that_run_in_training_only_are_named():
    class Auxiliary(Reading):
        def forward(self, x):
            y = super().forward(x)
            return y + self.one(x) if self.training else y

    _, report = sk.prepare(Auxiliary(lambda m, x: x), ROWS)
    assert rows_of(report)["one"].reason == "runs in training mode only"
    _, report = sk.prepare(Reading(lambda m, x: m.one(x) if torch.is_grad_enabled() else x), ROWS)
    assert rows_of(report)["one"].reason == "does not run in eval mode without gradients"


def test_modules_that_are_layers_in_all_but_class_are_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.gain = nn.Parameter(torch.randn(7, 7)), nn.Parameter(torch.ones(7, 1))

        def forward(self, x):
            return F.linear(x, self.kernel * self.gain - self.kernel.mean())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.lstm = nn.Linear(7, 7), nn.Linear(7, 7), nn.LSTM(7, 7, batch_first=True)
            self.scaled, self.last = Scaled(), nn.Linear(7, 7)
            self.mixing, self.shift = nn.Parameter(torch.randn(7, 7)), nn.Parameter(torch.randn(1, 7))

        def forward(self, x):
            x = self.scaled(self.one(self.first(x))) @ self.mixing + self.shift
            return self.last(self.lstm(x[:, None])[0][:, 0])

    _, report = sk.prepare(Net(), ROWS)
    rows = rows_of(report)
    assert rows["scaled"].reason == "multiplies by its kernel, but Scaled has no binary kernel"
    assert "LSTM has no binary kernel" in rows["lstm"].reason
    assert rows["mixing"].reason == "multiplies by its mixing, but Net has no binary kernel"
    assert not any("shift" in row.reason for row in report.rows)
    with pytest.raises(ValueError, match=r"no layer to binarize; 0: multiplies by its kernel, but Scaled"):
        sk.prepare(nn.Sequential(Scaled(), nn.ReLU()), ROWS)


def test_parts_of_a_layer_that_is_named_are_not_named_again():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(7, 7))
    _, report = sk.prepare(nn.Sequential(nn.Linear(7, 7), layer, nn.Linear(7, 7), nn.Linear(7, 7)), ROWS)
    rows = rows_of(report)
    assert rows["1"].reason == "is a subclass of Linear with code of its own"
    assert list(rows) == ["0", "1", "2", "3"]


class ByHand(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.layer, self.read = BinaryLinear(7, 7), read

    def forward(self, x):
        return self.read(self, x)


def test_link_refuses_latent_weights_that_decide_and_warns_of_others():
    with pytest.raises(ValueError, match=r"layer 'layer': the model's own forward \(ByHand\) reads its latent weight"):
        link(ByHand(lambda m, x: F.linear(x, m.layer.weight)), ROWS)
    with pytest.warns(RuntimeWarning, match="layer 'layer': .* reads its latent weight in eval mode"):
        link(ByHand(lambda m, x: m.layer(x) + m.layer.weight.square().mean()), ROWS)
    with pytest.raises(ValueError, match="in training mode with gradients, where the layer itself does not run"):
        link(ByHand(lambda m, x: x @ m.layer.weight if m.training and torch.is_grad_enabled() else m.layer(x)), ROWS)
    layer = nn.TransformerEncoderLayer(24, 4, 32, 0.0, "gelu", batch_first=True)
    layer.linear1 = BinaryLinear(24, 32)
    x = torch.randn(2, 3, 24)
    link(layer, x)
    without, _, with_gradients = outputs(layer, x)
    torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-5)


def test_the_runs_forget_what_the_model_keeps_of_them():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.last = (nn.Linear(7, 7) for _ in range(3))
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = self.first.weight.new_ones(7) * 2.0
            return self.last(self.one(self.first(x) * self.cache))

    model, _ = sk.prepare(Caching(), ROWS)
    model.train()(ROWS).sum().backward()  # a tensor of inference mode cannot be saved for backward
    assert model.one.weight.grad is not None
