"""Activations that run at several places, or are functions: each place gets a module, and nothing else changes."""

import copy
import pickle
import random
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import MLP, BiRealNet, ResidualNet, binary_layers, randomize_norms, seeded, set_stage, train_steps
from torch import Tensor, fx, nn

import stompp_kernels as sk
from stompp_kernels.conversion.prepare.split_activations import RELU_LIKE, split_activations
from stompp_kernels.nn import ProgressiveActivation, Stage
from stompp_kernels.progression import trace_calls

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))


class BasicBlock(nn.Module):
    """As torchvision's: one ReLU in place, at two places."""

    expansion: int = 1

    def __init__(self, channels, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


Unimportable = type("Hidden", (), {})


class FunctionalBlock(nn.Module):
    """Functions only; a parameter, two buffers, dropout by the training flag, and a layer that forward never calls."""

    def __init__(self, channels):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 1.5))
        self.register_buffer("shift", torch.full((channels, 1, 1), 0.1))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: "Tensor", scale: Unimportable = 2.0) -> "Tensor":
        self.steps.add_(1)
        y = F.dropout(F.relu(self.bn1(self.conv1(x))), 0.3, training=self.training)
        y = self.bn2(self.conv2(torch.clamp(y + self.shift, -1.0, 2.0)))
        return torch.relu(x + scale * self.gain * y)


class ReusingNet(nn.Module):
    """Blocks in a sequence in a sequence, and a functional ReLU in the model's own forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6)
        self.layers = nn.Sequential(
            nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 8, 2)), nn.Sequential(FunctionalBlock(8))
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.layers(F.relu(self.bn(self.stem(x))))
        return self.head(x.mean((2, 3)))


LAYERS = [
    "layers.0.0.conv1",
    "layers.0.0.conv2",
    "layers.0.1.conv1",
    "layers.0.1.conv2",
    "layers.1.0.conv1",
    "layers.1.0.conv2",
]


def split(model, x):
    """The float model with a module for each place, as sk.prepare has it before it replaces anything."""
    model = copy.deepcopy(model)
    calls, runs = trace_calls(
        model, x, lambda m: isinstance(m, (nn.Conv2d, nn.Linear)), lambda m: isinstance(m, RELU_LIKE)
    )
    assert split_activations(model, calls, runs, x)
    return model


class Between(nn.Module):
    """stem - a block - head; as example input for a block that does something odd before its layer."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), block, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


class Block(nn.Module):
    """relu - conv - relu - conv with one module, and what the test wants to happen to the input before."""

    def __init__(self, before=lambda block, x: x):
        super().__init__()
        self.before = before
        self.relu, self.first, self.second = nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.before(self, x)
        return self.second(self.relu(self.first(self.relu(x))))


@pytest.mark.parametrize("training", [False, True])
def test_splitting_alone_changes_no_bit(training):
    seeded()
    model = randomize_norms(ReusingNet(), torch.Generator().manual_seed(1)).train(training)
    other = split(model, X)
    results = []
    for net in (model, other):
        torch.manual_seed(2)
        y = net(X)
        y.square().sum().backward()
        results.append((y, {n: p.grad for n, p in net.named_parameters()}, net.state_dict(), net.layers[1][0].steps))
    (y, gradients, state, steps), (y2, gradients2, state2, steps2) = results
    assert torch.equal(y, y2)
    assert list(state) == list(state2)
    assert all(torch.equal(state2[name], value) for name, value in state.items())
    assert gradients.keys() == gradients2.keys()
    assert all(g is gradients2[n] is None or torch.equal(g, gradients2[n]) for n, g in gradients.items())
    assert (steps, steps2) == (1, 1), "the example runs leave no trace"


def test_blocks_stay_what_they_were_but_for_their_forward():
    model = ReusingNet()
    other = split(model, X)
    block, before = other.layers[0][1], model.layers[0][1]
    assert isinstance(block, BasicBlock)
    assert (type(block).__name__, type(block).__module__) == ("BasicBlock", __name__)
    assert (block.stride, block.expansion) == (2, 1)
    assert (block.relu.inplace, block.relu_1.inplace) == (True, True)
    assert str(before).splitlines() == [line for line in str(block).splitlines() if "relu_1" not in line]
    functional = other.layers[1][0]
    assert [(n, type(m)) for n, m in functional.named_children() if "_1" in n or "_2" in n] == [
        ("relu_1", nn.ReLU),
        ("hardtanh_1", nn.Hardtanh),
        ("relu_2", nn.ReLU),
    ]
    assert (functional.hardtanh_1.min_val, functional.hardtanh_1.max_val) == (-1.0, 2.0)
    assert torch.equal(functional(X.new_ones(1, 8, 2, 2), scale=0.0), torch.ones(1, 8, 2, 2)), "default arguments stay"
    assert isinstance(other.relu_1, nn.ReLU)
    assert type(model.layers[0][1]) is BasicBlock
    assert not hasattr(model, "relu_1")


def test_a_model_of_such_blocks_is_prepared():
    seeded()
    model, report = sk.prepare(ReusingNet(), X[:1])
    rows = {row.name: row for row in report.rows}
    assert report.binarized() == LAYERS
    assert {name: rows[name].reason for name in LAYERS} == {
        "layers.0.0.conv1": "input binarized by relu_1",
        "layers.0.0.conv2": "input binarized by layers.0.0.relu",
        "layers.0.1.conv1": "input binarized by layers.0.0.relu_1",
        "layers.0.1.conv2": "input binarized by layers.0.1.relu",
        "layers.1.0.conv1": "input binarized by layers.0.1.relu_1",
        "layers.1.0.conv2": "input binarized by layers.1.0.hardtanh_1",
    }
    assert (rows["layers.1.0.relu_2"].action, rows["layers.1.0.relu_2"].reason) == ("kept", "feeds no binarized layer")
    assert sum(isinstance(m, ProgressiveActivation) for m in model.modules()) == 6
    assert set(ReusingNet().state_dict()) <= set(model.state_dict())


def test_models_that_need_no_splitting_keep_their_classes():
    for net, x in ((ResidualNet(), X), (BiRealNet(), X), (MLP(), ROWS)):
        model, _ = sk.prepare(net, x)
        for name, module in net.named_modules():
            new = model.get_submodule(name)
            assert type(new) is type(module) or isinstance(new, (sk.nn.BinaryLayer, ProgressiveActivation)), name
    model, _ = sk.prepare(ReusingNet(), X, binarize="weights")
    assert type(model.layers[0][0]) is BasicBlock
    model, _ = sk.prepare(ReusingNet(), X, keep=(r"layers\.0", "downsample"))
    assert [type(block) is BasicBlock for block in model.layers[0]] == [True, False], "only the last one feeds a layer"


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (F.relu, nn.ReLU),
        (torch.relu, nn.ReLU),
        (lambda x: x.relu(), nn.ReLU),
        (lambda x: F.relu(input=x, inplace=True), nn.ReLU),
        (lambda x: torch.relu_(x), nn.ReLU),
        (F.relu6, nn.ReLU6),
        (F.hardtanh, nn.Hardtanh),
        (lambda x: F.hardtanh(x, -0.5, max_val=0.25), nn.Hardtanh),
        (lambda x: x.clamp(min=0), nn.ReLU),
        (lambda x: x.clamp_(-1, 1), nn.Hardtanh),
        (lambda x: torch.clamp(x, 0, 6), nn.Hardtanh),
        (lambda x: x.clamp_min(0), nn.ReLU),
        (lambda x: F.dropout(F.relu(x), 0.5, False), nn.ReLU),
        (lambda x: F.max_pool2d(F.relu(x), 2), nn.ReLU),
    ],
)
def test_functions_become_modules_that_compute_the_same(function, kind):
    class Functional(Between):
        def forward(self, x):
            return self.head(self.block(function(self.stem(x))))

    seeded()
    net = Functional(nn.Conv2d(4, 4, 1))
    other = split(net, X)
    assert torch.equal(other(X), net(X))
    name = f"{kind.__name__.lower()}_1"
    assert type(other.get_submodule(name)) is kind
    model, report = sk.prepare(net, X)
    assert [(row.name, row.reason) for row in report.rows if row.action == "progressive"] == [(name, "feeds block")]
    assert model.block.activation is model.get_submodule(name)


def test_names_that_are_taken_are_passed_over():
    class Taken(Block):
        def __init__(self):
            super().__init__()
            self.relu_1, self.relu_3 = 3, nn.Identity()

        def forward(self, x):
            return F.relu(super().forward(x))

    block = split(Between(Taken()), X).block
    assert (block.relu_1, type(block.relu_3)) == (3, nn.Identity)
    assert [n for n, m in block.named_children() if isinstance(m, nn.ReLU)] == ["relu", "relu_2", "relu_4"]


def test_the_training_flag_is_still_read():
    model = split(ReusingNet(), X)
    block, x = model.layers[1][0], torch.randn(4, 8, 4, 4)
    for bn in (block.bn1, block.bn2):
        bn.eval()
    block.training = True
    assert not torch.equal(block(x), block(x))
    block.training = False
    assert torch.equal(block(x), block(x))


def test_hooks_on_a_block_go_on_running():
    net = Between(Block())
    seen = []
    net.block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    model, _ = sk.prepare(net, X)
    seen.clear()
    model(X)
    assert seen == [(2, 4, 8, 8)]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_split_models_are_copied_and_pickled(again):
    seeded()
    model, _ = sk.prepare(ReusingNet(), X)
    other = again(model.eval())
    assert type(other.layers[0][0]) is type(model.layers[0][0])
    assert torch.equal(other(X), model(X))
    other.layers[0][0].relu_1.commit()
    assert not torch.equal(other(X), model(X)), "a copy calls its own activations"
    assert list(other.state_dict()) == list(model.state_dict())


def test_split_models_train_and_compile():
    seeded()
    model, _ = sk.prepare(ReusingNet(), X)
    progression = sk.StoMPP(model, total_steps=12, refresh=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert [unit.activation.mask_shape for unit in progression.units][:2] == [(6, 8, 8), (6, 8, 8)]
    losses = train_steps(model, optimizer, progression, 14)
    assert all(loss.isfinite() for loss in losses)
    assert all(layer.stage is Stage.BINARY for layer in binary_layers(model).values())
    y = model.eval()(X)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), y)


def test_split_residual_blocks_run_on_bits_and_are_saved(tmp_path):
    seeded()
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), BasicBlock(6, 6), BasicBlock(6, 6), nn.Conv2d(6, 2, 1))
    model, _ = sk.prepare(net, X)
    set_stage(randomize_norms(model, torch.Generator().manual_seed(1)), Stage.BINARY).eval()
    packed = sk.convert(model)
    torch.testing.assert_close(packed(X), model(X))  # the last layer, in float, may be given another memory format
    sk.save_packed(packed, tmp_path / "net.safetensors")
    assert torch.equal(sk.load_packed(tmp_path / "net.safetensors")(X), packed(X))


def test_a_block_may_hold_compiled_torchscript():
    block = Block(lambda block, x: block.scripted(x))
    block.scripted = torch.jit.script(nn.Softsign())
    _, report = sk.prepare(Between(block), X)
    assert [row.name for row in report.rows if row.action == "progressive"] == ["block.relu", "block.relu_1"]


def test_a_traced_model_is_split_in_its_graph():
    seeded()
    net = Between(Block())
    traced = fx.symbolic_trace(net)
    model, report = sk.prepare(traced, X)
    assert isinstance(model, fx.GraphModule)
    assert report.binarized() == ["block.first", "block.second"]
    assert model.block.second.activation is model.block_relu_1
    other = copy.deepcopy(model)
    other.block_relu_1.commit()
    assert not torch.equal(other(X), model(X)), "a copy calls its own activations"
    assert [str(node.target) for node in traced.graph.nodes].count("block.relu") == 2, "the given model is left alone"


def shared_in_a_sequence():
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Conv2d(4, 2, 1)
    )


def shared_between_blocks():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), nn.Conv2d(4, 2, 1))
    net[2].relu = net[1].relu
    return net


class Aliased(MLP):
    def __init__(self):
        super().__init__()
        self.alias = self.relu1

    def forward(self, x):
        return self.fc4(self.relu2(self.fc2(self.alias(self.fc1(x)))))


@pytest.mark.parametrize(
    ("net", "x", "activations"),
    [
        (shared_in_a_sequence, X, ["1", "3"]),
        (shared_between_blocks, X, ["1.relu", "1.relu_1", "2.relu", "2.relu_1"]),
        (Aliased, ROWS, ["alias"]),
    ],
)
def test_an_activation_under_several_names_gets_a_copy_for_each(net, x, activations):
    net = net()
    model, report = sk.prepare(net, x)
    assert [row.name for row in report.rows if row.action == "progressive"] == activations
    assert [name for name, m in model.named_modules() if isinstance(m, ProgressiveActivation)] == activations
    assert [type(m) for m in net] == [type(m) for m in shared_in_a_sequence()] if len(activations) == 2 else True


class Optional(nn.Module):
    """As timm's: what is None or a flag decides over the path."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x, shortcut=None, preactivated: bool = False, mode="add"):
        if shortcut is None:
            shortcut = x
        x = self.relu(self.conv1(x if preactivated else self.relu(x)))
        return self.conv2(x) + shortcut if mode == "add" else self.conv2(x)


def test_arguments_that_decide_over_the_path_keep_their_values():
    seeded()
    net = Between(Optional())
    model = split(net, X)
    assert torch.equal(model(X), net(X))
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(model.block(x, None, mode="add"), net.block(x))
    for arguments in ({"shortcut": x}, {"preactivated": True}, {"mode": "none"}):
        with pytest.raises(AssertionError, match=f"{next(iter(arguments))} must be .*, as in the example inputs"):
            model.block(x, **arguments)


def draw_from_numpy():
    return np.random.rand()  # noqa: NPY002 (what models do)


def branch_on_values(block, x):
    return x if x.sum() > 0 else -x


def branch_on_mode(block, x):
    return x + 1 if block.training else x


def read_submodule_mode(block, x):
    return F.dropout(x, 0.5, block.drop.training)


def keep_an_attribute(block, x):
    block.last = x
    return x


def make_a_tensor(block, x):
    return x * torch.tensor(2.0)


def without_gradient(block, x):
    with torch.no_grad():
        return x * 2


def autocast(block, x):
    with torch.autocast("cpu", enabled=False):
        return x * 2


def as_a_list(block, x):
    return torch.stack(list(x))


def tell_types_apart(block, x):
    return x if isinstance(x, Tensor) else -x


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (branch_on_values, "torch.fx cannot follow it: TraceError: symbolically traced variables"),
        (branch_on_mode, "TraceError: it branches on self.training"),
        (read_submodule_mode, "depends on the training flags of its submodules"),
        (keep_an_attribute, r"sets attributes, .*\['last'\]"),
        (make_a_tensor, r"makes tensors that do not depend on its input: \['_tensor_constant0'\]"),
        (lambda block, x: x * (random.random() > 2), "draws random numbers"),
        (lambda block, x: x * (draw_from_numpy() > 2), "draws random numbers"),
        (lambda block, x: x * bool(torch.rand(()) > 2), "draws random numbers"),
        (without_gradient, "switches gradients or autocast for a part of it"),
        (autocast, "switches gradients or autocast for a part of it"),
        (as_a_list, "TraceError: Proxy object cannot be iterated"),
    ],
)
def test_forwards_that_cannot_be_followed_are_refused_with_the_reason(before, reason):
    with pytest.raises(
        ValueError,
        match=f"layer 'block.first': its input comes from activation 'block.relu', .*'block' of type Block, .*{reason}",
    ):
        sk.prepare(Between(Block(before)), X)
    _, report = sk.prepare(Between(Block(before)), X, binarize="weights")
    assert report.binarized() == ["block.first", "block.second"]


def test_a_forward_that_torch_fx_misreads_is_refused():
    with pytest.raises(ValueError, match=r"misread the forward of one of \['block'\].*: the outputs differ"):
        sk.prepare(Between(Block(tell_types_apart)), X)
    with pytest.raises(ValueError, match=r"misread the forward of one of \['block'\].*: takes tensors"):
        sk.prepare(Between(Block(refuse_tensors)), X)


def refuse_tensors(block, x):
    return x if isinstance(x, Tensor) else takes_no_tensor(x)


@fx.wrap
def takes_no_tensor(x):
    raise ValueError("takes tensors")


def test_blocks_that_cannot_be_split_are_refused():
    class Any(Block):
        def forward(self, *args):
            return super().forward(*args)

    with pytest.raises(ValueError, match=r"'block' of type Any, .*torch.fx cannot follow it: TraceError: Proxy object"):
        sk.prepare(Between(Any()), X)
    net = Between(Block())
    net.block.forward = types.MethodType(Block.forward, net.block)
    with pytest.raises(ValueError, match=r"'block' of type Block, .*its forward is not that of its class"):
        sk.prepare(net, X)
    twice = Between(nn.Identity())
    inner = nn.Sequential(FunctionalBlock(4), nn.Conv2d(4, 4, 1))
    twice.block = nn.Sequential(inner, inner[0], nn.Conv2d(4, 4, 1))
    _, report = sk.prepare(twice, X)
    assert "block.0.1" in report.binarized(), "one mask serves both runs of the block"


def test_an_activation_of_another_module_is_refused():
    class Borrowing(Block):
        def forward(self, x):
            return self.inner.relu(self.inner(x))

    block = Borrowing()
    block.inner = Block()
    net = nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        ValueError, match=r"layer '1.inner.first': .* activation '1.inner.relu', which runs at 2 places"
    ):
        sk.prepare(net, X)
