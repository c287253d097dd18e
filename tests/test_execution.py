"""The order of execution and the provenance of signs."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import BranchingNet, ResidualNet, ReversedRegistration, make, seeded, snapshot
from torch import nn

import stompp_kernels as sk
from stompp_kernels.progression import link, trace_calls


def calls_of(model, x):
    calls, runs = trace_calls(
        model, x, lambda m: isinstance(m, (nn.Conv2d, nn.Linear)), lambda m: isinstance(m, nn.ReLU)
    )
    return {call.name: call for call in calls}, runs


class Between(nn.Module):
    """conv - relu - a function - conv."""

    def __init__(self, function, inplace=False, second=None):
        super().__init__()
        self.function = function
        self.first, self.relu = nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(inplace=inplace)
        self.second = second or nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(self.function(self.relu(self.first(x))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def producer_after(function, second=None, inplace=False):
    return calls_of(Between(function, inplace, second), X)[0]["second"].producer


def add_in_place(x):
    x += torch.ones_like(x)
    return x


def add_to_a_view(x):
    x[:, :, :1].add_(1.0)
    return x


def add_to_the_base(x):
    view = x.flatten(2)
    x += 1.0
    return view.reshape(x.shape)


def test_order_is_of_execution_not_registration():
    model, _ = make("reversed")
    progression = sk.StoMPP(model, 30)
    assert [unit.name for unit in progression.units] == ["a", "b", "c"]
    assert [model.get_submodule(n).execution_index for n in "abc"] == [0, 1, 2]
    assert [name for name, _ in link(model, torch.randn(1, 7))] == ["a", "b", "c"]
    registered = [n for n, m in ReversedRegistration().named_modules() if isinstance(m, nn.Linear)]
    assert registered == ["last", "c", "b", "a", "first"]


def test_an_activation_that_feeds_several_layers_belongs_to_the_first():
    model, _ = make("branching")
    units = sk.StoMPP(model, 30).units
    assert [unit.name for unit in units] == ["left", "right"]
    assert units[0].activation is model.relu
    assert units[1].activation is None
    assert model.left.activation is model.right.activation is model.relu
    registered = [n for n, m in BranchingNet().named_modules() if isinstance(m, nn.Conv2d)]
    assert registered.index("right") < registered.index("left")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        nn.Identity(),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: x.transpose(2, 3),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, 1:],
        lambda x: x.chunk(2, 3)[1],
        lambda x: x.split([3, 5], 2)[0],
        lambda x: x.unbind(0)[1].unsqueeze(0),
        lambda x: F.max_pool2d(x, 2).permute(0, 1, 3, 2).clone(),
        nn.Dropout(0.5),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, 11, mode="nearest-exact"),
        lambda x: F.pad(x, (1, 2, 0, 1), "reflect"),
        lambda x: F.pad(x, (1, 2, 0, 1), "replicate"),
        lambda x: F.pad(x, (0, 0, 0, 0)),
        lambda x: x.repeat(1, 1, 2, 1),
        lambda x: x.roll(1, 2).flip(3),
        lambda x: x[[1, 0, 1]],
        lambda x: x.index_select(2, torch.tensor([0, 0, 3])),
        lambda x: x.gather(3, torch.zeros(2, 4, 8, 1, dtype=torch.long)),
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: x.amax(3, keepdim=True),
        lambda x: x.max(2, keepdim=True).values,
    ],
    ids=[
        *("nothing", "identity", "maxpool", "transpose", "format", "slice", "chunk", "split", "unbind"),
        *("chain", "dropout", "F.dropout", "nearest", "nearest-exact", "reflect", "replicate", "pad of nothing"),
        *("repeat", "roll", "index", "index_select", "gather", "adaptive maxpool", "amax", "max"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_signs_pass(function, inplace):
    assert producer_after(function, inplace=inplace) == "relu"


def test_signs_pass_flatten_to_a_linear_layer():
    assert producer_after(lambda x: torch.flatten(x, 1), nn.Linear(256, 3)) == "relu"
    assert producer_after(lambda x: x.view(x.shape[0], -1), nn.Linear(256, 3)) == "relu"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        lambda x: 0.5 * x,
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: torch.cat([x[:, :2], x[:, 2:]], 1),
        lambda x: x.mean(3, keepdim=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: torch.maximum(x, x.flip(2) - 1),
        add_in_place,
        add_to_a_view,
        add_to_the_base,
        lambda x: x.neg_(),
        lambda x: x.view(2, -1).mul_(2.0).view(x.shape),
    ],
    ids=[
        *("add", "mul", "avgpool", "pad", "cat", "mean", "bilinear", "maximum", "+=", "view +=", "base +=", "neg_"),
        "mul_ of a view",
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_signs_are_cut(function, inplace):
    assert producer_after(function, inplace=inplace) == ""


def test_dropout_between_is_noted_for_this_layer_only():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.drop = nn.Linear(7, 6), nn.ReLU(), nn.Dropout(0.5)
            self.dropped, self.plain, self.functional = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.relu(self.first(x))
            return self.dropped(self.drop(x)) + self.plain(x) + self.functional(F.dropout(x, 0.5, self.training))

    calls, _ = calls_of(Net(), torch.randn(2, 7))
    assert {name: call.dropout for name, call in calls.items()} == {
        "first": False,
        "dropped": True,
        "plain": False,
        "functional": True,
    }
    assert all(calls[name].producer == "relu" for name in ("dropped", "plain", "functional"))


def test_functional_activations_are_named():
    calls, _ = calls_of(Between(F.relu, second=None), X)
    assert (calls["second"].functional, calls["second"].producer) == ("relu", "")
    calls, _ = calls_of(Between(lambda x: F.hardtanh(x - 1)), X)
    assert calls["second"].functional == "hardtanh"


def test_the_module_that_called_the_activation_is_named():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("not for this input")

    class Falling(Between):
        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                self.failing(x)
            return super().forward(x)

    inner = Between(lambda x: x, second=nn.Identity())
    block = Falling(F.relu)
    block.failing = nn.Sequential(Failing())
    net = nn.Sequential(inner, nn.Conv2d(4, 3, 1), block)
    calls, runs = calls_of(net, X)
    assert (calls["1"].producer, calls["1"].place) == ("0.relu", "0")
    assert (calls["2.second"].functional, calls["2.second"].place) == ("relu", "2")
    assert (runs["2.failing.0"], runs["2.second"]) == (1, 1)
    net[2].function = net[0].relu
    calls, runs = calls_of(net, X)
    assert (calls["2.second"].producer, calls["2.second"].place, runs["0.relu"]) == ("0.relu", "2", 2)


def test_runs_of_each_module_are_counted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(7, 7), nn.Linear(7, 7), nn.ReLU()

        def forward(self, x):
            return self.relu(self.b(self.relu(self.a(x))))

    assert calls_of(Twice(), torch.randn(2, 7))[1] == {"": 1, "a": 1, "relu": 2, "b": 1}


@pytest.mark.parametrize("as_type", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "dict"])
def test_example_inputs_may_be_a_tensor_a_tuple_or_a_dict(as_type):
    calls, _ = calls_of(ResidualNet(), as_type(torch.randn(1, 3, 8, 8)))
    assert next(iter(calls)) == "conv1"
    assert list(calls)[-1] == "fc"


class Counting(nn.Module):
    """A buffer that every call changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))
        self.noise = 0.1
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        self.calls.add_(1)
        return self.bn(self.conv(x + self.noise * torch.randn_like(x)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fails", [False, True])
def test_the_example_run_leaves_no_trace(fails):
    seeded()
    model = nn.Sequential(Counting(), Between(lambda x: x), nn.Dropout(0.5))
    model.train()
    model[0].bn.eval()
    model[1].first.weight.requires_grad_(False)
    model[1].second.weight.grad = torch.full_like(model[1].second.weight, 3.0)
    if fails:
        model[1].second.register_forward_pre_hook(lambda *_: 1 / 0)
    flags = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    before = snapshot(model)
    rng = torch.get_rng_state()
    if fails:
        with pytest.raises(ZeroDivisionError):
            calls_of(model, X)
    else:
        calls_of(model, X)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == flags
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model[1].second.weight.grad, torch.full_like(model[1].second.weight, 3.0))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "1.second.weight")
    assert torch.is_grad_enabled()


def test_link_removes_its_hooks_when_the_model_raises():
    model, x = make("residual")
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with pytest.raises(RuntimeError):
        link(model, torch.randn(2, 5, 8, 8))
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    link(model, x)


def test_link_serves_a_model_built_by_hand():
    seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1),
        sk.nn.ProgressiveActivation(),
        nn.MaxPool2d(2),
        sk.nn.BinaryConv2d(4, 4, 3, padding=1),
        sk.nn.BinaryConv2d(4, 4, 1, binarize_input=True),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    with pytest.raises(ValueError, match=r"model was not run yet.*'3', '4'.*sk.link"):
        sk.StoMPP(model, 100)
    sk.link(model, torch.randn(1, 3, 8, 8))
    assert model[1].mask_shape == (4, 8, 8)
    assert model[3].activation is model[1]
    assert model[4].activation is model[4].input_activation
    assert model[4].input_activation.mask_shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("function", "nonnegative"),
    [
        (lambda x: x, True),
        (lambda x: F.avg_pool2d(x, 2), True),
        (lambda x: x - 0.1, False),
        (lambda x: 0.0 * x, False),
    ],
    ids=["relu", "avgpool", "minus", "zeros"],
)
def test_inputs_that_are_never_negative_are_noted(function, nonnegative):
    calls, _ = calls_of(Between(function), X)
    assert (calls["first"].nonnegative, calls["second"].nonnegative) == (False, nonnegative)


class Calls(nn.Module):
    """Three progressive layers on one input, called as the test wants."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.second, self.third = (sk.nn.BinaryLinear(6, 6) for _ in range(3))
        self.act, self.other_act = sk.nn.ProgressiveActivation(), sk.nn.ProgressiveActivation()
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("forward", "source"),
    [
        (lambda m, x: m.first(m.act(x)) + m.first(x), None),
        (lambda m, x: m.first(m.act(x)) + m.first(m.other_act(-x)), None),
        (lambda m, x: m.first(x) + m.first(m.act(x)), None),
        (lambda m, x: (lambda y: m.first(y) + m.first(y))(m.act(x)), "act"),
    ],
    ids=["activation and none", "two activations", "none and activation", "the same twice"],
)
def test_a_layer_called_twice_has_a_source_only_if_it_is_the_same(forward, source):
    model = Calls(forward)
    link(model, torch.randn(2, 6))
    assert model.first.activation is (None if source is None else model.get_submodule(source))
    assert model.first.execution_index == 0


def test_linking_again_forgets_what_no_longer_holds():
    model = Calls(lambda m, x: m.second(m.first(m.act(x))))
    link(model, torch.randn(2, 6))
    assert (model.first.activation, model.second.execution_index) == (model.act, 1)
    model.run = lambda m, x: m.first(x)
    link(model, torch.randn(2, 6))
    assert (model.first.activation, model.second.execution_index) == (None, None)


def test_a_progressive_activation_at_two_places_is_refused():
    model = Calls(lambda m, x: m.second(m.act(m.first(m.act(x)))))
    with pytest.raises(ValueError, match="activation 'act' runs at 2 places"):
        link(model, torch.randn(2, 6))
    assert model.act.mask_shape is None


def test_layers_that_did_not_run_are_named():
    model = Calls(lambda m, x: m.third(m.first(m.act(x))))
    assert [name for name, _ in link(model, torch.randn(2, 6))] == ["first", "third"]
    assert model.second.execution_index is None
    with pytest.raises(ValueError, match=r"layers \['second'\] did not run on the example inputs"):
        sk.StoMPP(model, 100)


def test_modules_may_be_called_with_keywords():
    model = Calls(lambda m, x: m.first(x=m.act(x=x)))
    link(model, torch.randn(2, 6))
    assert model.act.mask_shape == (6,)
    assert model.first.activation is model.act
