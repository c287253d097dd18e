"""Progressive layers: their formulas at each stage, their packed path, their state."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits, generator
from models_for_tests import binary_layers, make, masked_modules, set_stage, snapshot
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stompp_kernels as sk
from stompp_kernels.nn import BinaryConv2d, BinaryLinear, ProgressiveActivation, Stage
from stompp_kernels.ops.reference import bits_from_words

SURROGATES = ("none", "identity", "clip", "approx_sign")
PRODUCTS = ("bgemm", "bconv2d")

CONVS = [
    {},
    {"kernel_size": 1, "padding": 0},
    {"stride": (2, 1)},
    {"padding": (0, 2)},
    {"dilation": 2, "padding": 2},
    {"groups": 2},
    {"groups": 4, "out_channels": 8},
    {"padding_value": 1},
    {"padding_value": -1, "stride": 2, "padding": (2, 1)},
    {"bias": True},
    {"alpha": "channel"},
    {"alpha": "tensor", "bias": True, "groups": 2, "padding_value": 1},
]
LINEARS = [{}, {"bias": True}, {"alpha": "channel"}, {"alpha": "tensor", "bias": True}]


class Ops(TorchDispatchMode):
    """Counts the package's ops."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "stompp":
            name = func._schema.name.split("::")[1]
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self):
        return sum(n for name, n in self.counts.items() if name.startswith(PRODUCTS))

    @property
    def weight_packs(self):
        return self.counts.get("pack_weight", 0) + self.counts.get("pack_conv_weight", 0)


@contextmanager
def counted():
    with Ops() as ops:
        yield ops


def make_alpha(kind, outputs, g):
    if kind is None:
        return None
    return torch.rand(outputs if kind == "channel" else 1, generator=g) + 0.3


def conv_layer(g, **case):
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, **case}
    options["alpha"] = make_alpha(case.get("alpha"), options["out_channels"], g)
    layer = BinaryConv2d(binarize_input=True, **options)
    layer.input_activation.set_mask_shape((4, 7, 6))
    return fill(layer, g), torch.randn(3, 4, 7, 6, generator=g)


def linear_layer(g, **case):
    alpha = make_alpha(case.get("alpha"), 6, g)
    layer = BinaryLinear(37, 6, bias=case.get("bias", False), binarize_input=True, alpha=alpha)
    layer.input_activation.set_mask_shape((37,))
    return fill(layer, g), torch.randn(3, 37, generator=g)


def fill(layer, g):
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
        layer.weight.view(-1)[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=g))
    return layer


BUILDERS = [(conv_layer, case) for case in CONVS] + [(linear_layer, case) for case in LINEARS]
IDS = [f"{b.__name__.split('_')[0]}-{'-'.join(f'{k}={v}' for k, v in c.items()) or 'plain'}" for b, c in BUILDERS]
every_layer = pytest.mark.parametrize(("build", "case"), BUILDERS, ids=IDS)


def mask_of(module):
    return bits_from_words(module.mask_words, module.mask_numel).reshape(module.mask_shape)


class _Formula(torch.autograd.Function):
    """METHOD.md's rule and gradients, written out: frozen is a bool tensor that broadcasts to u."""

    @staticmethod
    def forward(ctx, u, frozen, surrogate):
        ctx.save_for_backward(u, frozen)
        ctx.surrogate = surrogate
        sign = torch.ones_like(u)
        sign[u < 0] = -1.0
        return torch.where(frozen, sign, torch.clip(u, -1, 1))

    @staticmethod
    def backward(ctx, g):
        u, frozen = ctx.saved_tensors
        inside = (u.abs() <= 1).to(g.dtype)
        surrogate = {
            "none": torch.zeros_like(g),
            "identity": g,
            "clip": g * inside,
            "approx_sign": g * (2 - 2 * u.abs()) * inside,
        }[ctx.surrogate]
        return torch.where(frozen, surrogate, g * inside), None, None


def frozen_of(module, like):
    if module.stage is Stage.PARTIAL:
        return mask_of(module)
    return torch.tensor(module.stage is Stage.BINARY).expand(like.shape[-len(module.mask_shape) :])


def formula(layer, x, weight, bias):
    """The layer written out with torch's own conv and linear."""
    x = _Formula.apply(x, frozen_of(layer.input_activation, x), layer.input_activation.surrogate)
    alpha = 1.0 if layer.alpha is None else layer.alpha.reshape(-1, *(1,) * (weight.dim() - 1))
    w = _Formula.apply(weight / alpha, frozen_of(layer, weight), layer.surrogate)
    if isinstance(layer, BinaryLinear):
        y = x @ w.T
        spread = (-1,)
    else:
        top, side = layer.padding
        x = F.pad(x, (side, side, top, top), value=layer.padding_value)
        y = F.conv2d(x, w, None, layer.stride, 0, layer.dilation, layer.groups)
        spread = (-1, 1, 1)
    if layer.alpha is not None:
        y = y * layer.alpha.reshape(spread)
    return y if bias is None else y + bias.reshape(spread)


def gradients(output, inputs, seed=5):
    g = torch.randn(output.shape, generator=generator(seed))
    return torch.autograd.grad(output, inputs, g, allow_unused=True)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("stage", Stage)
@every_layer
def test_layers_equal_the_formula(build, case, stage, surrogate, g):
    layer, x = build(g, **case)
    set_stage(layer, stage, surrogate)
    x.requires_grad_(True)
    inputs = [x, layer.weight] + ([] if layer.bias is None else [layer.bias])
    weight, bias = layer.weight, layer.bias
    y, expected = layer(x), formula(layer, x, weight, bias)
    # Sums of at most 64 products of values up to 1 in float32: each rounds by 2^-24 of at most 64.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=2e-5)
    if stage is Stage.BINARY and surrogate == "none" and bias is None:
        assert not y.requires_grad
        return
    grads, expected_grads = gradients(y, inputs), gradients(expected, inputs)
    for actual, wanted in zip(grads, expected_grads, strict=True):
        if actual is None:
            assert stage is Stage.BINARY
            assert surrogate == "none"
            assert not wanted.any()
        else:
            # A weight's gradient sums up to 3 * 7 * 6 products with normal numbers.
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_committed_layers_run_packed_and_equal_the_float_simulation(build, case, training, g):
    layer, x = build(g, **case)
    set_stage(layer, Stage.BINARY, "clip").train(training)
    with counted() as ops:
        y = layer(x)
    assert ops.products == 1
    with sk.float_simulation(), counted() as ops:
        simulated = layer(x)
    assert ops.products == 0
    assert_same_bits(y, simulated)
    with torch.no_grad(), counted() as ops:
        assert_same_bits(layer(x), simulated)
    assert ops.products == 1


@pytest.mark.parametrize("surrogate", SURROGATES[1:])
@every_layer
def test_packed_gradients_equal_the_float_path(build, case, surrogate, g):
    layer, x = build(g, **case)
    set_stage(layer, Stage.BINARY, surrogate)
    x.requires_grad_(True)
    with counted() as ops:
        y = layer(x)
    assert ops.products == 1
    packed = gradients(y, [x, layer.weight])
    with sk.float_simulation():
        simulated = gradients(layer(x), [x, layer.weight])
    for actual, wanted in zip(packed, simulated, strict=True):
        # The same torch kernels on the same +-1 operands; a memory format may change the order of a float sum.
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", [Stage.SOFT, Stage.PARTIAL])
def test_uncommitted_layers_run_in_float(stage, g):
    layer, x = conv_layer(g)
    set_stage(layer, stage)
    with counted() as ops:
        layer(x)
    assert ops.products == 0
    layer.commit()
    with counted() as ops:
        layer(x)
    assert ops.products == 0, "the input is not committed"


def test_float_simulation_ends_with_its_block_and_nests(g):
    layer, x = conv_layer(g)
    set_stage(layer, Stage.BINARY)

    def products():
        with counted() as ops:
            layer(x)
        return ops.products

    def fail():
        with sk.float_simulation():
            with sk.float_simulation():
                assert products() == 0
            assert products() == 0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert products() == 1


def test_float64_stays_in_float(g):
    layer, x = conv_layer(g)
    set_stage(layer.double(), Stage.BINARY)
    with counted() as ops:
        y = layer(x.double())
    assert ops.products == 0
    assert y.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [conv_layer, linear_layer])
@pytest.mark.parametrize("stage", Stage)
def test_short_floats(build, dtype, stage, g):
    layer, x = build(g)
    set_stage(layer.to(dtype), stage, "clip")
    x = x.to(dtype).requires_grad_(True)
    with counted() as ops:
        y = layer(x)
    assert ops.products == (stage is Stage.BINARY)
    assert y.dtype == dtype
    with sk.float_simulation():
        simulated = layer(x)
    assert_same_bits(y, simulated)  # |sums| <= 37 are integers that either type holds
    grads = gradients(y.float(), [x, layer.weight])
    assert [t.dtype for t in grads] == [dtype, dtype]
    with sk.float_simulation():
        for actual, wanted in zip(grads, gradients(simulated.float(), [x, layer.weight]), strict=True):
            # One rounding of bfloat16 is 2^-8 of the value; sums of both signs may lose one place more.
            torch.testing.assert_close(actual.float(), wanted.float(), rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize("build", [conv_layer, linear_layer])
@pytest.mark.parametrize("surrogate", ["none", "identity"])
def test_weights_are_packed_again_exactly_when_they_changed(build, surrogate, g):
    layer, x = build(g)
    set_stage(layer, Stage.BINARY, surrogate).eval()

    @torch.no_grad()
    def check(packs, what):
        with counted() as ops:
            y = layer(x)
        assert ops.products == 1, what
        assert ops.weight_packs == packs, what
        with sk.float_simulation():
            assert_same_bits(y, layer(x), what)

    check(1, "first call")
    check(0, "nothing changed")
    with torch.no_grad():
        layer.weight.neg_()
    check(1, "changed in place")
    optimizer = torch.optim.SGD([layer.weight], lr=1.0)
    layer.weight.grad = 2 * layer.weight.detach()
    optimizer.step()
    check(1, "optimizer step")
    layer.load_state_dict({**layer.state_dict(), "weight": -layer.weight.detach()})
    check(1, "load_state_dict")
    layer.weight.data = -layer.weight.data
    check(1, "another .data")
    layer.weight = nn.Parameter(-layer.weight.detach())
    check(1, "another parameter")
    check(0, "nothing changed")


def test_inference_mode_and_weights_made_in_it(g):
    layer, x = linear_layer(g)
    set_stage(layer, Stage.BINARY)
    with sk.float_simulation():
        expected = layer(x)
    with torch.inference_mode():
        assert_same_bits(layer(x), expected)
        copied = copy.deepcopy(layer)
        copied.weight = nn.Parameter(-layer.weight.detach().clone(), requires_grad=False)
        copied.weight.neg_()
        assert_same_bits(copied(x), expected)
        copied.weight.neg_()
        assert not torch.equal(copied(x), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", ["residual", "bireal", "mlp"])
def test_copies_compute_the_same_and_are_independent(name, stage, duplicate):
    model, x = make(name)
    set_stage(model, stage, "clip").eval()
    with torch.no_grad():
        y = model(x)
    assert all((layer._packed is not None) == (stage is Stage.BINARY) for layer in binary_layers(model).values())
    other = duplicate(model)
    # Words in this machine's order do not travel.
    assert all(layer._packed is None for layer in binary_layers(other).values())
    assert [m.stage for m in masked_modules(other).values()] == [m.stage for m in masked_modules(model).values()]
    with counted() as ops:
        assert_same_bits(other(x), y)
    assert ops.products == (len(binary_layers(model)) if stage is Stage.BINARY else 0)
    for key, layer in binary_layers(other).items():
        activation = layer.activation
        assert any(activation is m for m in other.modules())
        assert activation is not binary_layers(model)[key].activation
        with torch.no_grad():
            layer.weight.neg_()
    set_stage(other, Stage.SOFT)
    assert_same_bits(model(x), y)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("name", ["residual", "bireal", "mlp", "branching"])
def test_state_dict_round_trip(name, stage, tmp_path):
    model, x = make(name, seed=1)
    set_stage(model, stage, "approx_sign").eval()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other, _ = make(name, seed=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.eval()
    for key, module in masked_modules(other).items():
        original = masked_modules(model)[key]
        assert (module.stage, module.surrogate, module.mask_shape) == (stage, "approx_sign", original.mask_shape), key
        assert torch.equal(module.mask_words, original.mask_words), key
    assert_same_bits(other(x), model(x))


def test_activation_masks_without_a_shape_take_it_from_the_state_dict(g):
    layer, x = conv_layer(g)
    set_stage(layer, Stage.PARTIAL)
    fresh = BinaryConv2d(4, 6, 3, padding=1, binarize_input=True)
    assert fresh.input_activation.mask_shape is None
    assert fresh.input_activation.mask_numel == 0
    fresh.load_state_dict(layer.state_dict())
    assert fresh.input_activation.mask_shape == (4, 7, 6)
    assert_same_bits(fresh(x), layer(x))


def test_an_activation_mask_is_shared_by_the_batch(g):
    activation = ProgressiveActivation((5, 3))
    activation.refresh(0.5, 1.0, 3, 0, 1)
    frozen = mask_of(activation)
    assert 0 < int(frozen.sum()) == activation.frozen() < 15
    x = torch.randn(4, 5, 3, generator=g) * 2
    y = activation(x)
    assert torch.equal(y[:, frozen].abs(), torch.ones(4, int(frozen.sum())))
    assert torch.equal(y[:, ~frozen], x[:, ~frozen].clamp(-1, 1))


def test_stages_count_their_frozen_entries():
    activation = ProgressiveActivation((7, 5))
    assert activation.frozen() == 0
    activation.commit()
    assert activation.frozen() == activation.mask_numel == 35
    assert int(bits_from_words(activation.mask_words, 64).sum()) == 35
    activation.set_mask_shape((7, 5))
    assert int(bits_from_words(activation.mask_words, 64).sum()) == 35, "the same shape keeps the mask"
    activation.soften()
    assert activation.frozen() == 0
    assert not activation.mask_words.any()


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("name", "stage", "surrogate"),
    [
        ("mlp", Stage.SOFT, "none"),
        ("mlp", Stage.PARTIAL, "none"),
        ("mlp", Stage.BINARY, "none"),
        ("mlp", Stage.PARTIAL, "clip"),
        ("mlp", Stage.BINARY, "approx_sign"),
        ("bireal", Stage.PARTIAL, "clip"),
        ("residual", Stage.BINARY, "clip"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_compiled_without_graph_breaks(name, stage, training, surrogate):
    torch._dynamo.reset()
    model, x = make(name)
    set_stage(model, stage, surrogate).train(training)
    state = snapshot(model)
    y = model(x)
    eager = gradients(y, list(model.parameters())) if training else ()
    model.load_state_dict(state)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        z = compiled(x)
    # aot_eager decomposes BatchNorm: the same values up to float rounding.
    torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-4)
    if training:
        for actual, wanted in zip(gradients(z, list(model.parameters())), eager, strict=True):
            assert (actual is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


def test_compiled_packed_layer_equals_eager_bit_for_bit(g):
    torch._dynamo.reset()
    layer, x = conv_layer(g, bias=True, groups=2)
    set_stage(layer, Stage.BINARY).eval()
    with torch.no_grad():
        expected = layer(x)
        assert_same_bits(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("name", ["residual", "mlp"])
@pytest.mark.parametrize("surrogate", ["none", "identity"])
def test_one_committed_activation_and_the_gradient_upstream(name, surrogate):
    model, x = make(name)
    set_stage(model, Stage.SOFT, surrogate)
    activation = {"residual": "blocks.0.relu2", "mlp": "relu2"}[name]
    model.get_submodule(activation).commit()
    order = [n for n, p in model.named_parameters() if p.requires_grad]
    model(x).square().sum().backward()
    upstream = {
        "residual": lambda n: n.startswith(("conv1", "bn1", "blocks.0")),
        "mlp": lambda n: n.startswith(("fc1", "bn1", "fc2", "bn2")),
    }[name]
    for parameter_name in order:
        grad = model.get_parameter(parameter_name).grad
        blocked = surrogate == "none" and upstream(parameter_name)
        # A bias before a BatchNorm has a gradient of zero up to rounding: not evidence either way.
        if blocked:
            assert grad is None or not grad.any(), parameter_name
        elif not parameter_name.endswith("bias"):
            assert grad is not None, parameter_name
            assert grad.any(), parameter_name


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer_kind", ["sgd", "adamw"])
def test_a_committed_ste_free_layer_does_not_move(set_to_none, optimizer_kind):
    model, x = make("residual")
    progression = sk.StoMPP(model, 8, refresh=1, cooldown=0.0)
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    }[optimizer_kind](model.parameters())
    kept = {}
    for _ in range(14):
        optimizer.zero_grad(set_to_none=set_to_none)
        model(x).square().sum().backward()
        optimizer.step()
        progression.step()
        for name, layer in binary_layers(model).items():
            if layer.stage is Stage.BINARY:
                assert layer.weight.grad is None
                kept.setdefault(name, layer.weight.detach().clone())
                assert torch.equal(layer.weight, kept[name]), name
    assert len(kept) == 4


def test_a_committed_ste_layer_goes_on_learning():
    model, x = make("residual")
    sk.StoMPP(model, 8, regime="vanilla_ste")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: layer.weight.detach().clone() for name, layer in binary_layers(model).items()}
    model(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in binary_layers(model).items())


def test_dropout_before_a_committed_layer_is_honoured_in_training():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.drop = nn.Linear(7, 40), nn.ReLU(), nn.Dropout(0.5)
            self.fc, self.last = nn.Linear(40, 40), nn.Linear(40, 3)

        def forward(self, x):
            return self.last(self.fc(self.drop(self.relu(self.first(x)))))

    torch.manual_seed(0)
    x = torch.randn(4, 7)
    model, _ = sk.prepare(Net(), x)
    set_stage(model, Stage.BINARY)

    def run():
        torch.manual_seed(1)
        with counted() as ops:
            return model(x), ops.products

    for training in (True, False):
        model.train(training)
        y, products = run()
        assert products == (not training)
        with sk.float_simulation():
            assert_same_bits(y, run()[0])


def test_clip_latent_uses_the_units_of_alpha(g):
    layer, _ = linear_layer(g, alpha="channel")
    original = layer.weight.detach().clone()
    layer.clip_latent_()
    bound = layer.alpha.unsqueeze(1)
    assert torch.equal(layer.weight, torch.max(torch.min(original, bound), -bound))
    assert (layer.weight != original).any()
    plain, _ = linear_layer(g)
    with torch.no_grad():
        plain.weight.mul_(3)
    original = plain.weight.detach().clone()
    plain.clip_latent_()
    assert torch.equal(plain.weight, original.clamp(-1, 1))


def test_a_partly_frozen_activation_refuses_another_shape(g):
    layer, x = conv_layer(g)
    set_stage(layer, Stage.PARTIAL)
    with pytest.raises(ValueError, match=r"ProgressiveActivation, must have shape \[3, 4, 7, 6\].*\[3, 4, 7, 5\]"):
        layer(x[..., :5])


def test_an_activation_without_a_shape_refuses_to_refresh():
    with pytest.raises(ValueError, match="mask has no shape"):
        ProgressiveActivation().refresh(0.5, 10, 0, 0, 1)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (BinaryLinear, (0, 3), "in_features must be at least 1, got 0"),
        (BinaryLinear, (3, -1), "out_features must be at least 1, got -1"),
        (BinaryConv2d, (0, 3, 3), "in_channels must be at least 1, got 0"),
        (BinaryConv2d, (3, 0, 3), "out_channels must be at least 1, got 0"),
        (BinaryConv2d, (3, 3, 0), "kernel_size must be at least 1, got 0"),
        (BinaryConv2d, (3, 3, (1, 2, 3)), "kernel_size must be an int or two"),
        (BinaryConv2d, (3, 3, 3, 0), "stride must be at least 1, got 0"),
        (BinaryConv2d, (3, 3, 3, 1, -1), "padding must be at least 0, got -1"),
        (BinaryConv2d, (3, 3, 3, 1, "same"), "padding must be an int or two ints, got 'same'"),
        (BinaryConv2d, (3, 3, 3, 1, 0, 0), "dilation must be at least 1, got 0"),
        (BinaryConv2d, (4, 6, 3, 1, 0, 1, 4), "groups must divide in_channels 4 and out_channels 6, got 4"),
        (BinaryConv2d, (4, 6, 3, 1, 0, 1, 0), "groups must be at least 1, got 0"),
        (BinaryConv2d, (4, 6, 3, 1, 0, 1, 1, False, 2), "padding_value must be one of 0, 1, -1, got 2"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


def test_unknown_surrogate_is_named():
    with pytest.raises(ValueError, match=r"surrogate must be one of .* got 'ste'"):
        ProgressiveActivation().set_surrogate("ste")


def test_weights_changed_behind_autograd_are_seen_from_the_next_eval():
    layer = BinaryLinear(40, 5, binarize_input=True)
    x = torch.randn(3, 40, generator=generator(0))
    set_stage(layer, Stage.BINARY)
    layer.eval()
    with torch.no_grad():
        before = layer(x)
        layer.weight.data.neg_()
        layer.eval()
        assert torch.equal(layer(x), -before)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_fused_optimizer_leaves_no_stale_bits(mode, g):
    """Fused optimizers do not raise a tensor's version."""
    layer, x = conv_layer(g)
    set_stage(layer, Stage.BINARY, "identity").train(mode == "train")
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0, fused=True)
    for _ in range(3):
        with torch.no_grad():
            y = layer(x)
            with sk.float_simulation():
                assert_same_bits(y, layer(x))
        layer(x).square().sum().backward()
        optimizer.step()


def test_contiguous_images_stay_contiguous_when_a_layer_commits(g):
    layer, x = conv_layer(g)
    set_stage(layer, Stage.BINARY, "clip")
    assert layer(x.contiguous()).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)


def test_a_committed_linear_layer_learns_from_a_single_row():
    layer = BinaryLinear(40, 5, binarize_input=False)
    source = ProgressiveActivation((40,))
    layer.set_source(source)
    set_stage(layer, Stage.BINARY, "identity")
    set_stage(source, Stage.BINARY, "identity")
    x = torch.randn(40, generator=generator(0)).sign()
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, x.expand(5, 40))


def test_bad_layer_arguments_are_named():
    with pytest.raises(ValueError, match=r"alpha must have shape \[1\] or \[5\], got \[4\]"):
        BinaryLinear(40, 5, alpha=torch.ones(4))
    with pytest.raises(ValueError, match=r"alpha must be positive, got a smallest value of 0.0"):
        BinaryLinear(40, 5, alpha=torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"x must be \[B, C, H, W\], got shape \[3, 4, 4\]"):
        BinaryConv2d(3, 4, 3)(torch.zeros(3, 4, 4))


def test_packed_constants_keep_their_type_when_a_network_is_cast(g):
    model, _ = make("residual")
    set_stage(model, Stage.BINARY)
    packed = sk.convert(model)
    layer = next(m for m in packed.modules() if isinstance(m, sk.nn.PackedConv2d) and m.writes == "floats")
    before = layer.scale.clone()
    layer.half()
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.scale, before)
