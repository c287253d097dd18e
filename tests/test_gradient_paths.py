"""Which parameters can get no gradient any more, and the prefix that runs without autograd."""

import copy
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import NETS, RESIDUAL_LAYERS, assert_same_state, make, masked_modules, seeded, set_stage, snapshot
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLinear, ProgressiveActivation, Stage
from stompp_kernels.progression import gradient_paths
from stompp_kernels.progression.schedule import ORDERS

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")


class Chain(nn.Module):
    """Binary linear layers, each fed by an activation, behind a float stem; subclasses connect them otherwise."""

    def __init__(self, layers=3, width=6):
        super().__init__()
        self.stem, self.norm = nn.Linear(7, width), nn.BatchNorm1d(width)
        self.acts = nn.ModuleList(ProgressiveActivation() for _ in range(layers))
        self.layers = nn.ModuleList(BinaryLinear(width, width, bias=True) for _ in range(layers))
        self.last = nn.Linear(width, 4)

    def stage(self, index, x):
        return self.layers[index](self.acts[index](x))

    def forward(self, x):
        x = self.norm(self.stem(x))
        for index in range(len(self.layers)):
            x = self.stage(index, x)
        return self.last(x)


class Concatenated(Chain):
    def forward(self, x):
        x = self.norm(self.stem(x))
        short = self.stage(0, x)
        long = self.stage(1, x + short)
        return self.last(self.stage(2, torch.cat([short[:, :3], long[:, 3:]], 1)))


class Auxiliary(Chain):
    """A head in the middle, in training only; a part that only eval mode uses."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stage(0, self.norm(self.stem(x)))
        y = self.last(self.stage(2, self.stage(1, x)))
        return {"logits": y, "auxiliary": [self.auxiliary(x)]} if self.training else y


class Tied(Chain):
    """One weight in two binary layers, another in a binary layer and a float one."""

    def __init__(self):
        super().__init__(4)
        self.head = nn.Linear(6, 6, bias=False)
        self.layers[2].weight = self.layers[0].weight
        self.head.weight = self.layers[1].weight

    def forward(self, x):
        x = self.stage(1, self.stage(0, self.norm(self.stem(x))))
        return self.last(self.stage(3, self.head(self.stage(2, x))))


class InPlace(Chain):
    def forward(self, x):
        x = self.norm(self.stem(x))
        for act, layer in zip(self.acts, self.layers, strict=True):
            y = act(x)
            y += 0.5
            y[:, :2].mul_(3)
            x = layer(y).relu_()
        return self.last(x)


class Scale(nn.Module):
    def forward(self, w):
        return 0.5 * w


class Parametrized(Chain):
    def __init__(self):
        super().__init__()
        for layer in self.layers:
            register_parametrization(layer, "weight", Scale())


class CalledTwice(Chain):
    """The first layer runs behind two activations."""

    def forward(self, x):
        x = self.stage(0, self.norm(self.stem(x)))
        x = self.layers[1](self.layers[0](self.acts[1](x)))
        return self.last(self.stage(2, x))


class Embedded(Chain):
    """Integer inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.EmbeddingBag(9, 6)

    def forward(self, x):
        return super().forward((10 * x).long().abs() % 9)


class Features(Chain):
    """An object that is no container to torch holds an output from before the last activations."""

    def forward(self, x):
        x = self.stage(0, self.norm(self.stem(x)))
        return SimpleNamespace(features=x, logits=self.last(self.stage(2, self.stage(1, x))), loss=None)


@dataclass
class Output:
    logits: torch.Tensor
    scale: torch.Tensor


class WithScale(Chain):
    """An activation of the input itself; a parameter that is an output."""

    def __init__(self):
        super().__init__()
        self.scale, self.input_act = nn.Parameter(torch.ones(1)), ProgressiveActivation()

    def forward(self, x):
        return Output(super().forward(self.input_act(x)), self.scale)


class Checkpointed(Chain):
    def stage(self, index, x):
        return checkpoint(super().stage, index, x, use_reentrant=False)


HAND_BUILT = {
    kind.__name__: kind
    for kind in (
        Chain,
        Concatenated,
        Auxiliary,
        Tied,
        InPlace,
        Parametrized,
        CalledTwice,
        Embedded,
        Features,
        WithScale,
        Checkpointed,
    )
}


def build(name, seed=0, **options):
    """A linked model in training mode and a batch for it."""
    if name in NETS:
        return make(name, seed, **options)
    seeded(seed)
    model = HAND_BUILT[name]()
    sk.link(model, torch.randn(1, 7))
    return model, torch.randn(5, 7)


def total(output):
    """A loss of everything in an output."""
    if isinstance(output, torch.Tensor):
        return output.square().sum()
    if not isinstance(output, (dict, list)):
        output = vars(output)
    values = output.values() if isinstance(output, dict) else output
    return sum(total(value) for value in values if value is not None)


def backward(model, x):
    """The names of the parameters without a gradient."""
    model.zero_grad()
    loss = total(model(x))
    if loss.requires_grad:
        loss.backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def frozen(model):
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*NETS, *HAND_BUILT])
def test_what_is_said_to_get_no_gradient_is_what_gets_none(name, seed):
    model, x = build(name)
    assert not list(gradient_paths.without_gradient(model))
    modules = list(masked_modules(model).values())
    random.Random(seed).shuffle(modules)
    counts = []
    for module in modules:
        module.commit()
        without = backward(model, x)
        assert list(gradient_paths.without_gradient(model)) == without
        counts.append(len(without))
    assert counts[-1] > 0
    assert counts == sorted(counts)


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_weights_only_cuts_off_the_weights_only(name):
    model, x = build(name, binarize="weights")
    set_stage(model, Stage.BINARY)
    without = backward(model, x)
    assert list(gradient_paths.without_gradient(model)) == without
    assert without == [f"{key}.weight" for key in masked_modules(model)]


def test_a_shortcut_of_real_values_keeps_what_is_before_it():
    model, _ = build("bireal")
    progression = sk.StoMPP(model, 20, cooldown=0.0)
    for _ in range(20):
        progression.step()
    assert progression.fully_committed
    assert progression.without_gradient() == frozen(model) == ["conv1.weight", "conv2.weight"]


def test_the_prefix_of_a_residual_network_ends_where_a_shortcut_bypasses_the_commitment():
    model, _ = build("residual")
    progression = sk.StoMPP(model, 20, cooldown=0.0)
    without = []
    for _ in range(20):
        progression.step()
        if progression.without_gradient() != (without[-1] if without else []):
            without.append(progression.without_gradient())
    stem = ["conv1.weight", "bn1.weight", "bn1.bias"]
    block = [f"blocks.0.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight")]
    assert without[0] == [*stem, "blocks.0.conv1.weight"]
    assert without[1] == [*stem, *block]
    assert without[2] == [*stem, *block, "blocks.0.bn2.weight", "blocks.0.bn2.bias", "blocks.1.conv1.weight"]
    assert not [name for name in without[-1] if "downsample" in name or name.startswith(("blocks.1.bn2", "fc"))]


def test_no_parameter_is_cut_off_in_the_ste_regimes():
    for regime in ("ste", "vanilla_ste"):
        model, _ = build("residual")
        progression = sk.StoMPP(model, 8, regime=regime, cooldown=0.0)
        for _ in range(8):
            progression.step()
        assert progression.fully_committed
        assert progression.without_gradient() == frozen(model) == []


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
}


def train(model, x, progression, optimizer, steps, start=0):
    """Steps on batches that depend on their number only; losses and the names without a gradient in each."""
    losses, without = [], []
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(1000 + step)
        optimizer.zero_grad()
        loss = total(model(torch.randn(x.shape, generator=g))).log1p()
        loss.backward()
        without.append([name for name, p in model.named_parameters() if p.grad is None])
        optimizer.step()
        progression.step()
        losses.append(loss.detach().clone())
    return losses, without


@pytest.mark.sweep(3)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("name", "order"),
    [
        *((name, o) for name in ("residual", "bireal", "mlp", "Auxiliary", "Tied") for o in ORDERS),
        ("residual", [RESIDUAL_LAYERS[i] for i in (2, 0, 3, 1)]),
        ("Auxiliary", ["layers.1", "layers.2", "layers.0"]),
    ],
    ids=str,
)
def test_freezing_the_prefix_changes_no_bit_of_a_run(name, order, kind):
    results = []
    for freeze in (False, True):
        model, x = build(name)
        progression = sk.StoMPP(model, 20, order=order, refresh=2, cooldown=0.2, freeze_prefix=freeze)
        optimizer = OPTIMIZERS[kind](model.parameters())
        losses, said, seen = [], [], []
        for step in range(20):
            said.append(progression.without_gradient())
            assert frozen(model) == (said[-1] if freeze else [])
            loss, without = train(model, x, progression, optimizer, 1, step)
            losses += loss
            seen += without
        assert said == seen
        results.append((losses, said, snapshot(model), optimizer.state_dict()["state"]))
    plain, prefix = results
    assert plain[1] == prefix[1]
    assert torch.equal(torch.stack(plain[0]), torch.stack(prefix[0]))
    assert_same_state(prefix[2], plain[2])
    assert plain[3].keys() == prefix[3].keys()
    for index, state in plain[3].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(prefix[3][index][key]), torch.as_tensor(value)), (index, key)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nothing_of_a_dead_parameter_changes_but_batchnorm_goes_on(kind):
    model, x = build("residual")
    progression = sk.StoMPP(model, 20, refresh=2, cooldown=0.2)
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, x, progression, optimizer, 12)
    dead = {name: p for name, p in model.named_parameters() if name in progression.without_gradient()}
    assert len(dead) >= 8
    state = {n: copy.deepcopy(optimizer.state[p]) for n, p in dead.items()}
    values = {name: parameter.detach().clone() for name, parameter in dead.items()}
    statistics = model.bn1.running_mean.clone()
    train(model, x, progression, optimizer, 3, 12)
    for name, parameter in dead.items():
        assert torch.equal(parameter, values[name]), name
        assert state[name]
        for key, value in state[name].items():
            assert torch.equal(torch.as_tensor(optimizer.state[parameter][key]), torch.as_tensor(value)), (name, key)
    assert model.bn1.training
    assert not torch.equal(model.bn1.running_mean, statistics)


def saved_by_modules(model, x):
    """Whether each module's output requires grad, and how many tensors autograd kept while each leaf module ran."""
    requires, saved, running = {}, {}, []

    def pack(tensor):
        saved[running[-1] if running else ""] += 1
        return tensor

    handles = []
    for name, module in model.named_modules():
        saved[name] = 0

        def before(module, inputs, name=name):
            running.append(name)

        def after(module, inputs, output, name=name):
            running.pop()
            requires[name] = output.requires_grad

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    for handle in handles:
        handle.remove()
    return requires, saved


def test_the_prefix_runs_without_autograd():
    model, x = build("residual")
    progression = sk.StoMPP(model, 20, refresh=2, cooldown=0.2)
    before = saved_by_modules(model, x)
    while progression.frontier < 3:
        progression.step()
    prefix = ["conv1", "bn1", "relu", "blocks.0"]
    prefix += [f"blocks.0.{name}" for name in ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2")]
    after = saved_by_modules(model, x)
    for name in [*prefix, "blocks.1.conv1"]:
        assert before[0][name], name
        assert before[1][name] or name == "blocks.0", name
        assert not after[0][name], name
        assert after[1][name] == 0, name
    assert after[0]["blocks.1.bn1"]
    assert after[1]["blocks.1.bn1"]
    unfrozen, _ = build("residual")
    sk.StoMPP(set_stage(unfrozen, Stage.BINARY), 20, freeze_prefix=False)
    assert saved_by_modules(unfrozen, x)[0]["bn1"]


def test_what_the_user_froze_stays_as_it_is():
    seeded()
    model = Chain()
    own = ["stem.weight", "stem.bias", "norm.weight", "norm.bias", "layers.1.bias", "last.bias"]
    for name in own:
        model.get_parameter(name).requires_grad_(False)
    sk.link(model, torch.randn(1, 7))
    assert frozen(model) == own
    progression = sk.StoMPP(model, 12, cooldown=0.0)
    for _ in range(12):
        progression.step()
    assert set(own) < {*frozen(model), "last.bias"}
    assert set(progression.without_gradient()) == {*frozen(model)} - {"last.bias"}
    set_stage(model, Stage.SOFT)
    progression.load_state_dict({**progression.state_dict(), "step": 0})
    assert frozen(model) == own


def wrapped(model):
    return nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": model}))


def through_a_file(model, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    return torch.load(tmp_path / "model.pt", weights_only=False)


def new_parameters(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return model


@pytest.mark.parametrize(
    ("change", "prefix"),
    [
        (lambda model, _: wrapped(model), "1.inner."),
        (lambda model, _: torch.compile(model), "_orig_mod."),
        (lambda model, _: copy.deepcopy(model), ""),
        (lambda model, _: copy.deepcopy(wrapped(model)), "1.inner."),
        (through_a_file, ""),
        (lambda model, _: model.double(), ""),
        (lambda model, _: new_parameters(model), ""),
    ],
    ids=["nested", "compiled", "deepcopy", "nested copy", "file", "double", "new parameters"],
)
def test_the_paths_go_with_the_model(change, prefix, tmp_path):
    reference, _ = build("residual")
    original, _ = build("residual")
    other = change(original, tmp_path)
    for model in (reference, other):
        progression = sk.StoMPP(model, 20)
        for _ in range(12):
            progression.step()
    expected = [prefix + name for name in gradient_paths.without_gradient(reference)]
    assert len(expected) == 7
    assert progression.without_gradient() == frozen(other) == expected
    if other is not original and next(other.parameters()) is not next(original.parameters()):
        assert frozen(original) == []


def test_a_copy_of_a_part_does_not_drag_the_model_along():
    model, _ = build("residual")
    part = copy.deepcopy(model.blocks[1].relu1)
    assert not part.__dict__.keys() & {gradient_paths._ATTRIBUTE}
    assert gradient_paths.without_gradient(set_stage(copy.deepcopy(model.blocks), Stage.BINARY)) == {}


def test_weights_tied_later_are_alive_while_one_of_them_is():
    model, x = build("Chain")
    model.layers[0].weight = model.layers[2].weight
    for index in (0, 1):
        model.acts[index].commit()
        model.layers[index].commit()
        assert list(gradient_paths.without_gradient(model)) == backward(model, x)
    assert model.layers[0].weight.grad is not None
    outer = nn.ModuleList([model, nn.Linear(6, 6)])
    outer[1].weight = model.layers[1].weight
    without = gradient_paths.without_gradient(outer)
    assert "0.layers.0.bias" in without
    assert "layers.1.weight" in gradient_paths.without_gradient(model)
    assert "0.layers.1.weight" not in without


def test_a_gate_that_is_gone_is_open_and_linking_again_finds_the_new_paths():
    model, x = build("Chain")
    set_stage(model, Stage.BINARY)
    assert "stem.weight" in gradient_paths.without_gradient(model)
    model.acts[0] = nn.Identity()
    model.acts[1] = nn.Identity()
    sk.StoMPP(model, 20, freeze_prefix=False)
    model.acts[2] = nn.Identity()
    assert "stem.weight" not in gradient_paths.without_gradient(model)
    assert list(gradient_paths.without_gradient(model)) == backward(model, x)
    sk.link(model, x)
    assert list(gradient_paths.without_gradient(model)) == backward(model, x)


def test_linking_again_gives_back_what_was_frozen():
    model, x = build("mlp")
    sk.StoMPP(set_stage(model, Stage.BINARY), 20)
    assert frozen(model)
    outer = nn.Sequential(model)
    sk.link(outer, x)
    assert frozen(outer) == []
    assert gradient_paths._ATTRIBUTE not in model.__dict__
    assert list(gradient_paths.without_gradient(outer)) == backward(outer, x)


def test_a_model_that_is_committed_already_is_frozen_at_once():
    model, x = build("residual")
    set_stage(model, Stage.BINARY)
    without = backward(model, x)
    progression = sk.StoMPP(model, 20)
    assert progression.without_gradient() == frozen(model) == without
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("regime", ["ste", "vanilla_ste", "ste_free"])
def test_the_next_progression_gives_back_what_the_last_one_froze(regime, freeze, tmp_path):
    model, _ = build("residual")
    sk.StoMPP(set_stage(model, Stage.BINARY), 20)
    model = through_a_file(model, tmp_path)
    dead = frozen(model)
    assert dead
    progression = sk.StoMPP(model, 20, regime=regime, freeze_prefix=freeze)
    assert frozen(model) == (dead if regime == "ste_free" and freeze else [])
    assert progression.without_gradient() == (dead if regime == "ste_free" else [])


def test_softened_tensors_learn_again_from_the_next_step():
    model, x = build("mlp")
    progression = sk.StoMPP(model, 40)
    set_stage(model, Stage.BINARY)
    progression.step()
    assert frozen(model)
    set_stage(model, Stage.SOFT)
    progression.step()
    assert frozen(model) == backward(model, x) == []


def checkpoint_of(model, progression, optimizer):
    state = {"model": model.state_dict(), "progression": progression.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state)


def start(freeze=True, seed=0):
    model, x = build("residual", seed)
    progression = sk.StoMPP(model, 20, refresh=2, cooldown=0.2, freeze_prefix=freeze)
    return model, x, progression, OPTIMIZERS["sgd"](model.parameters())


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("live", [0, 7, 18])
def test_a_resumed_run_freezes_as_soon_as_the_model_is_loaded(live, model_first, freeze):
    """The run that loads may be younger or older than what it loads, and may have chosen otherwise."""
    unbroken = start()
    train(*unbroken, 12)
    state, dead = checkpoint_of(unbroken[0], *unbroken[2:]), frozen(unbroken[0])
    assert dead
    losses, _ = train(*unbroken, 8, 12)
    model, x, progression, optimizer = start(freeze, seed=5)
    train(model, x, progression, optimizer, live)
    optimizer.load_state_dict(state["optimizer"])
    order = ["model", "progression"] if model_first else ["progression", "model"]
    for part in order:
        {"model": model, "progression": progression}[part].load_state_dict(state[part])
    assert frozen(model) == (dead if freeze and model_first else [])
    assert progression.without_gradient() == dead
    first, _ = train(model, x, progression, optimizer, 1, 12)
    assert frozen(model) == (progression.without_gradient() if freeze else [])
    rest, _ = train(model, x, progression, optimizer, 7, 13)
    assert torch.equal(torch.stack(first + rest), torch.stack(losses))
    assert_same_state(snapshot(model), snapshot(unbroken[0]))


def test_a_branch_that_training_drops_at_random_is_seen_in_eval_mode():
    class Dropped(Chain):
        dropped = True

        def forward(self, x):
            x = self.stage(0, self.norm(self.stem(x)))
            if not (self.training and self.dropped):
                x = x + self.stage(1, x)
            return self.last(self.stage(2, x))

    seeded()
    model, x = Dropped(), torch.randn(5, 7)
    sk.link(model, x)
    model.dropped = False
    for index in (1, 0, 2):
        model.acts[index].commit()
        model.layers[index].commit()
        assert list(gradient_paths.without_gradient(model)) == backward(model, x)


def test_a_hook_after_an_activation_lies_before_its_gate():
    seeded()
    model, scale = Chain(), nn.Parameter(torch.ones(6))
    model.scale = scale
    model.acts[1].register_forward_hook(lambda module, inputs, output: output * scale)
    x = torch.randn(5, 7)
    sk.link(model, x)
    model.acts[1].commit()
    without = backward(model, x)
    assert list(gradient_paths.without_gradient(model)) == without
    assert "scale" not in without


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_what_the_example_run_cannot_see_counts_as_alive():
    class Reentrant(Chain):
        def stage(self, index, x):
            return checkpoint(super().stage, index, x, use_reentrant=True) if index == 1 else super().stage(index, x)

    seeded()
    model, x = Reentrant(), torch.randn(5, 7)
    sk.link(model, x)
    set_stage(model, Stage.BINARY)
    said = set(gradient_paths.without_gradient(model))
    assert "stem.weight" in said
    assert not {name for name in said if name.startswith("layers.1")}
    assert said < set(backward(model, x))


class Disturbing(Chain):
    """Random numbers of both kinds, buffers changed in place and replaced, tensors kept, statistics."""

    def __init__(self):
        super().__init__()
        self.drop, self.feature = nn.Dropout(0.5), None
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        x = self.drop(self.norm(self.stem(x)))
        self.calls += x.sum() * random.random()
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.feature = x
        return self.last(self.stage(2, self.stage(1, self.stage(0, x))))


@pytest.mark.parametrize("stage", Stage)
def test_the_runs_leave_no_trace(stage):
    seeded()
    model, x = Disturbing(), torch.randn(5, 7)
    sk.link(model, x)
    set_stage(model, stage)
    model.norm.eval()
    model.last.weight.requires_grad_(False)
    model.last.weight.grad = torch.ones(4, 6)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    flags = [module.training for module in model.modules()]
    addresses, before = [buffer.data_ptr() for buffer in model.buffers()], snapshot(model)
    states = random.getstate(), torch.get_rng_state()
    sk.link(model, x)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert [module.training for module in model.modules()] == flags
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert frozen(model) == ["last.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["last.weight"]
    assert [m.stage for m in masked_modules(model).values()] == [stage] * 6
    assert [buffer.data_ptr() for buffer in model.buffers()] == addresses
    assert not any(buffer.requires_grad for buffer in model.buffers())
    assert_same_state(snapshot(model), before)
    copy.deepcopy(model)  # it keeps a tensor of its last run, which holds no graph


def test_linking_works_without_gradient_and_in_inference_mode():
    for context in (torch.no_grad, torch.inference_mode):
        seeded()
        model = Chain()
        sk.link(model, torch.randn(1, 7))
        with context():
            sk.link(model, torch.randn(1, 7))
        set_stage(model, Stage.BINARY)
        assert list(gradient_paths.without_gradient(model)) == backward(model, torch.randn(5, 7))


def test_a_compiled_part_shows_its_paths():
    seeded()
    model, x = Chain(), torch.randn(5, 7)
    torch._dynamo.reset()
    model.layers[1].compile(backend="eager")
    model.acts[1].compile(backend="eager")
    sk.link(model, x)
    for index in (1, 0, 2):
        model.acts[index].commit()
        model.layers[index].commit()
        assert list(gradient_paths.without_gradient(model)) == backward(model, x)


def test_a_model_that_cannot_run_in_training_mode_is_linked_with_a_warning():
    class NeedsTargets(Chain):
        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets are missing")
            return super().forward(x)

    seeded()
    model = NeedsTargets()
    with pytest.warns(RuntimeWarning, match="not run with gradient in training mode.* ValueError: targets are missing"):
        sk.link(model, torch.randn(1, 7))
    assert model.training
    set_stage(model, Stage.BINARY)
    assert sk.StoMPP(model, 20).without_gradient() == frozen(model) == []
