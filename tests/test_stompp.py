"""The controller: when and where it freezes."""

import copy
import gc
import inspect
import re
import warnings

import pytest
import torch
from models_for_tests import RESIDUAL_LAYERS, binary_layers, make, masked_modules, set_stage, train_steps
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import BinaryLinear, ProgressiveActivation, Stage
from stompp_kernels.ops.checks import SURROGATES
from stompp_kernels.progression.schedule import SHAPES, frozen_probability, reached_fraction

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")


def wide_unit(shape="linear", **options):
    """One linear layer with 40,000 weights and 200 inputs, linked."""
    torch.manual_seed(0)
    model = nn.Sequential(BinaryLinear(200, 200, binarize_input=True))
    sk.link(model, torch.randn(1, 200))
    return sk.StoMPP(model, shape=shape, cooldown=0.0, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_follows_p_with_a_lag_of_r(shape):
    total, r = 300, 20
    progression = wide_unit(shape, total_steps=total, refresh=r, seed=5)
    layer = progression.units[0].layer
    # E[m_t] = m_{t-1} + (p(t) - m_{t-1}) / r: an exponential average of p with a time constant of r steps.
    expected = 0.0
    for step in range(1, total):
        progression.step()
        expected += (frozen_probability(shape, step / total) - expected) / r
        fraction = layer.frozen() / layer.mask_numel
        # The standard deviation of a mean of 40,000 independent entries is at most 0.0025; 5 of them.
        assert abs(fraction - expected) < 0.0125, step
        assert progression.progress().p == frozen_probability(shape, step / total)
    if shape == "linear":
        # A line is followed exactly r steps late, once the start is forgotten (e^-15).
        assert fraction == pytest.approx((total - 1 - r) / total, abs=0.0175)
    progression.step()
    assert layer.frozen() == layer.mask_numel


def test_frozen_entries_thaw_again():
    progression = wide_unit(total_steps=200, refresh=10)
    for _ in range(100):
        progression.step()
    layer = progression.units[0].layer
    before = layer.mask_words.clone()
    progression.step()
    assert (before & ~layer.mask_words).any()
    assert (~before & layer.mask_words).any()


def test_refresh_of_one_draws_every_entry_each_step():
    progression = wide_unit(total_steps=100, refresh=1)
    for _ in range(50):
        progression.step()
    assert progression.frozen_fraction() == pytest.approx(0.5, abs=0.0125)


def test_masks_depend_on_seed_step_and_tensor():
    def masks(seed, steps=20):
        model, _ = make("residual")
        progression = sk.StoMPP(model, 40, order="global", refresh=2, seed=seed)
        for _ in range(steps):
            progression.step()
        return {name: m.mask_words for name, m in masked_modules(model).items()}

    one, same, other = masks(1), masks(1), masks(2)
    assert len(one) == 8
    for name, mask in one.items():
        assert torch.equal(mask, same[name])
        assert not torch.equal(mask, other[name]), name
        assert not torch.equal(mask, masks(1, 21)[name]), name
    first_words = [tuple(mask[:2].tolist()) for mask in one.values()]
    assert len(set(first_words)) == len(first_words), "no two tensors share a stream"
    assert not torch.equal(masks(1 << 40)["blocks.0.conv1"], masks(2 << 40)["blocks.0.conv1"])


CASES = [
    *({"regime": r, "order": o} for r in ("ste_free", "ste") for o in ("forward", "reverse", "global")),
    *({"shape": s} for s in SHAPES),
    *({"regime": "ste", "surrogate": s} for s in ("clip", "approx_sign")),
    {"overlap": 0.5, "warmup": 0.2},
    {"binarize": "weights"},
    {"order": ["blocks.1.conv1", "blocks.0.conv1", "blocks.1.conv2", "blocks.0.conv2"], "clip_latent": False},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_regime_order_and_shape_runs_to_full_commitment(options):
    weights_only = options.get("binarize") == "weights"
    model, _ = make("residual", binarize="weights" if weights_only else "both")
    options = {"refresh": 2, "cooldown": 0.2, **options}
    progression = sk.StoMPP(model, 20, **options)
    assert progression.frozen_fraction() == 0.0
    assert progression.frontier == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    fractions, frontiers = [], []
    for step in range(20):
        losses = train_steps(model, optimizer, progression, 1, step)
        assert losses[0].isfinite()
        fractions.append(progression.frozen_fraction())
        frontiers.append(progression.frontier)
        assert progression.fully_committed == (frontiers[-1] == 4) == (progression.progress().frontier == 4)
    assert frontiers == sorted(frontiers)
    assert frontiers[15:] == [4] * 5, "committed where the cool-down begins"
    assert frontiers[14] < 4
    assert fractions[15:] == [1.0] * 5
    assert 0 < fractions[9] < 1
    activations = [m for m in masked_modules(model).values() if isinstance(m, sk.nn.ProgressiveActivation)]
    assert len(activations) == (0 if weights_only else 4)
    assert all(a.stage is Stage.BINARY for a in activations)


def commit_order(**options):
    model, _ = make("residual")
    progression = sk.StoMPP(model, 40, refresh=1, **options)
    order = []
    for _ in range(40):
        progression.step()
        order += [u.name for u in progression.units if u.layer.stage is Stage.BINARY and u.name not in order]
        for unit in progression.units:
            assert unit.activation.stage == unit.layer.stage, "weights and activation advance together"
    return order


def test_orders():
    assert commit_order(order="forward") == RESIDUAL_LAYERS
    assert commit_order(order="reverse") == RESIDUAL_LAYERS[::-1]
    explicit = [RESIDUAL_LAYERS[i] for i in (2, 0, 3, 1)]
    assert commit_order(order=explicit) == explicit
    assert commit_order(order=tuple(explicit)) == explicit


def test_units_outside_their_window_do_not_change():
    model, _ = make("residual")
    progression = sk.StoMPP(model, 40, refresh=1, warmup=0.2, cooldown=0.2)
    assert [unit.window for unit in progression.units] == [range(8, 14), range(14, 20), range(20, 26), range(26, 32)]
    for step in range(1, 41):
        progression.step()
        for unit in progression.units:
            stage = Stage(0 if step <= unit.window.start else 2 if step >= unit.window.stop else 1)
            assert [m.stage for m, _ in unit.masked()] == [stage, stage], (step, unit.name)
            if stage is Stage.SOFT:
                assert not unit.layer.mask_words.any()


def test_progress_names_what_advances():
    model, _ = make("residual")
    progression = sk.StoMPP(model, 40, cooldown=0.0, shape="linear")
    progress = progression.progress()
    assert (progress.step, progress.frontier, progress.units, progress.active, progress.p) == (0, 0, 4, (), 0.0)
    assert progress.frozen == 0.0
    for _ in range(15):
        progression.step()
    progress = progression.progress()
    assert (progress.step, progress.frontier, progress.active, progress.p) == (15, 1, ("blocks.0.conv2",), 0.5)
    masks = [masked for masked, _ in progression.units[1].masked()]
    assert progress.frozen == sum(m.frozen() for m in masks) / sum(m.mask_numel for m in masks) > 0


def test_progress_tells_the_masks_real_fraction_beside_p():
    progression = wide_unit(total_steps=78, refresh=100)
    for _ in range(77):
        progression.step()
    progress, layer = progression.progress(), progression.units[0].layer
    assert progress.p == pytest.approx(77 / 78)
    counted = layer.frozen() + progression.units[0].activation.frozen()
    assert progress.frozen == counted / (layer.mask_numel + 200)
    assert progress.frozen == pytest.approx(reached_fraction("linear", 78, 100), abs=0.0125)


def test_vanilla_ste_commits_everything_at_step_0():
    model, _ = make("residual")
    progression = sk.StoMPP(model, 100, regime="vanilla_ste")
    assert progression.fully_committed
    assert progression.frozen_fraction() == 1.0
    assert progression.progress().active == ()
    assert all(m.stage is Stage.BINARY and m.surrogate == "clip" for m in masked_modules(model).values())
    losses = train_steps(model, torch.optim.SGD(model.parameters(), lr=0.05), progression, 5)
    assert torch.stack(losses).isfinite().all()
    assert progression.progress().active == ()


@pytest.mark.parametrize(
    ("options", "surrogate"),
    [
        ({"regime": "ste_free"}, "none"),
        ({"regime": "ste_free", "surrogate": "clip"}, "none"),
        ({"regime": "ste"}, "clip"),
        ({"regime": "vanilla_ste"}, "clip"),
        ({"regime": "ste", "surrogate": "approx_sign"}, "approx_sign"),
        ({"regime": "vanilla_ste", "surrogate": "clip"}, "clip"),
    ],
)
def test_regimes_choose_the_surrogate(options, surrogate):
    model, _ = make("residual")
    progression = sk.StoMPP(model, 100, **options)
    assert all(m.surrogate == surrogate for unit in progression.units for m, _ in unit.masked())


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, *SURROGATES[1:]])
@pytest.mark.parametrize("activations", [None, *SURROGATES[1:]])
def test_weights_and_activations_have_surrogates_of_their_own(weights, activations):
    options = {"surrogate_weights": weights, "surrogate_activations": activations}
    for regime in ("ste", "vanilla_ste"):
        model, _ = make("residual")
        progression = sk.StoMPP(model, 100, regime=regime, surrogate="approx_sign", **options)
        assert {unit.layer.surrogate for unit in progression.units} == {weights or "approx_sign"}
        assert {unit.activation.surrogate for unit in progression.units} == {activations or "approx_sign"}
    model, _ = make("residual")
    sk.StoMPP(model, 100, **options)
    assert {m.surrogate for m in masked_modules(model).values()} == {"none"}


def test_each_surrogate_is_the_gradient_of_what_it_is_chosen_for():
    model = nn.Sequential(BinaryLinear(2, 1, binarize_input=True))
    sk.link(model, torch.randn(1, 2))
    sk.StoMPP(model, 10, regime="vanilla_ste", surrogate_weights="identity", surrogate_activations="clip")
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.5, 0.5]]))
    x = torch.tensor([[0.5, 1.5]], requires_grad=True)
    model(x).sum().backward()
    assert model[0].weight.grad.tolist() == [[1.0, 1.0]], "identity lets the weight beyond 1 learn"
    assert x.grad.tolist() == [[1.0, 0.0]], "clip cuts off the input beyond 1"


@pytest.mark.parametrize(
    ("total_steps", "refresh"), [(40_000, 100.0), (8000, 100.0), (4000, 50.0), (400, 5.0), (40, 1.0)]
)
def test_refresh_by_default_is_a_twentieth_of_a_window(total_steps, refresh):
    model, _ = make("residual")  # 4 windows
    progression = sk.StoMPP(model, total_steps, cooldown=0.0)
    assert progression.refresh == progression.state_dict()["config"]["refresh"] == refresh
    assert sk.StoMPP(make("residual")[0], total_steps, refresh=7, cooldown=0.0).refresh == 7.0


def test_refresh_by_default_brings_masks_near_p():
    progression = wide_unit("cubic", total_steps=400)
    for _ in range(399):
        progression.step()
    assert progression.progress().frozen > 0.85


@pytest.mark.parametrize(
    ("total_steps", "refresh", "warned"), [(200, 40, False), (199, 40, True), (78, 100, True), (2, 1, False)]
)
def test_windows_that_masks_cannot_follow_are_warned_about(total_steps, refresh, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wide_unit("cubic", total_steps=total_steps, refresh=refresh)
    assert len(caught) == warned
    if refresh == 100:
        message = (
            "windows of 78 steps are short for refresh=100: masks reach some 16 % .* refresh='auto' or at most 15.6"
        )
        assert re.match(message, str(caught[0].message))
        assert caught[0].filename == __file__, "the line that made the progression"


def test_vanilla_ste_asks_for_no_room_for_windows_and_warns_of_none():
    model, _ = make("residual")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progression = sk.StoMPP(model, 1, regime="vanilla_ste")
    progression.step()
    assert progression.fully_committed
    with pytest.raises(ValueError, match=r"warmup must be in .* got 1\.5"):
        sk.StoMPP(model, 100, regime="vanilla_ste", warmup=1.5)


def test_an_activation_of_several_layers_advances_with_the_first_only():
    model, _ = make("branching")
    progression = sk.StoMPP(model, 20, refresh=1, cooldown=0.0)
    for _ in range(10):
        progression.step()
    assert [model.left.stage, model.relu.stage, model.right.stage] == [Stage.BINARY, Stage.BINARY, Stage.SOFT]
    assert progression.frozen_fraction() == (144 + 256) / (144 + 16 + 256)


def test_weights_only_leaves_activations_in_float():
    model, x = make("residual", binarize="weights")
    assert not any(isinstance(m, sk.nn.ProgressiveActivation) for m in model.modules())
    progression = sk.StoMPP(model, 8, binarize="weights", cooldown=0.0)
    for _ in range(8):
        progression.step()
    layer = model.blocks[0].conv1
    assert layer.stage is Stage.BINARY
    assert not layer.input_is_binary
    signs = torch.where(layer.weight < 0, -1.0, 1.0)
    x = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), nn.functional.conv2d(x, signs, None, 1, 1))


@pytest.mark.parametrize(
    ("regime", "clip_latent", "clipped"),
    [("ste", True, True), ("ste", False, False), ("ste_free", True, False), ("vanilla_ste", True, True)],
)
def test_latent_weights_are_clipped_while_they_learn(regime, clip_latent, clipped):
    model, _ = make("mlp")
    progression = sk.StoMPP(model, 4, regime=regime, clip_latent=clip_latent, cooldown=0.0)
    for _ in range(4):
        progression.step()
    with torch.no_grad():
        for layer in binary_layers(model).values():
            layer.weight.mul_(10)
    progression.step()
    largest = max(layer.weight.abs().max().item() for layer in binary_layers(model).values())
    assert (largest <= 1) == clipped


def test_uncommitted_latent_weights_are_clipped_in_the_ste_free_regime():
    model, _ = make("mlp")
    progression = sk.StoMPP(model, 40)
    with torch.no_grad():
        model.fc3.weight.mul_(10)
    progression.step()
    assert model.fc3.weight.abs().max() == 1


def drop(holder):
    holder.clear()
    gc.collect()


def test_warns_when_training_ends_before_all_units_are_committed():
    model, _ = make("residual")
    progression = sk.StoMPP(model, 40, cooldown=0.0)
    for _ in range(25):
        progression.step()
    holder = [progression]
    del progression
    with pytest.warns(RuntimeWarning, match="training ended at step 25 of 40 with 2 units not committed"):
        drop(holder)


@pytest.mark.parametrize("steps", [0, 40, 45])
def test_does_not_warn_when_complete_or_never_started(steps):
    model, _ = make("residual")
    progression = sk.StoMPP(model, 40)
    for _ in range(steps):
        progression.step()
    holder = [progression]
    del progression
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drop(holder)
    assert not caught


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"total_steps": 3}, "total_steps must give each of 4 windows at least one step, got 3"),
        ({"shape": "quartic"}, "shape must be one of 'cubic'.* got 'quartic'"),
        ({"order": "sideways"}, "order must be one of 'forward'.* got 'sideways'"),
        ({"order": ["blocks.0.conv1"]}, "order must name every unit once"),
        ({"refresh": 0.5}, "refresh must be at least 1, got 0.5"),
        ({"refresh": float("nan")}, "refresh must be at least 1, got nan"),
        ({"regime": "free"}, "regime must be one of 'ste_free'.* got 'free'"),
        ({"surrogate": "none"}, "surrogate must be one of 'identity'.* got 'none'"),
        ({"binarize": "activations"}, "binarize must be one of 'both'.* got 'activations'"),
        ({"overlap": 1.0}, "overlap must be in .* got 1.0"),
        ({"warmup": -0.1}, "warmup must be in .* got -0.1"),
        ({"cooldown": 1.5}, "cooldown must be in .* got 1.5"),
        ({"warmup": 0.5, "cooldown": 0.5}, "warmup and cooldown must leave room.* got 0.5"),
        ({"refresh": "fast"}, "refresh must be 'auto' or a number of at least 1, got 'fast'"),
        ({"surrogate_weights": "none"}, "surrogate_weights must be one of None, 'identity'.* got 'none'"),
        ({"surrogate_activations": "sign"}, "surrogate_activations must be one of .* got 'sign'"),
        ({"seed": -1}, "seed must be in .* got -1"),
        ({"seed": 1 << 63}, "seed must be in .* got 9223372036854775808"),
    ],
)
def test_bad_arguments_are_named(options, message):
    model, _ = make("residual")
    with pytest.raises(ValueError, match=message):
        sk.StoMPP(model, **{"total_steps": 100, **options})
    assert all(m.stage is Stage.SOFT for m in masked_modules(model).values())


def test_a_model_without_binary_layers_is_refused():
    with pytest.raises(ValueError, match=r"model has no BinaryLinear or BinaryConv2d.*sk.prepare"):
        sk.StoMPP(nn.Linear(3, 3), 100)


def test_a_committed_model_stays_committed_under_a_new_progression():
    model, x = make("residual")
    set_stage(model, Stage.BINARY).eval()
    before = model(x)
    progression = sk.StoMPP(model, 20, cooldown=0.0)
    for step in range(22):
        assert progression.fully_committed, step
        assert progression.frozen_fraction() == 1.0, step
        assert torch.equal(model(x), before), step
        progression.step()


def test_a_new_ste_free_progression_drops_the_gradients_of_a_committed_model():
    model, _ = make("mlp")
    set_stage(model, Stage.BINARY, "identity")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    sk.StoMPP(model, 20)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("prepared", "given", "message"),
    [
        ("weights", "both", "binarize must be 'weights' for this model, got 'both': .* sk.prepare was given"),
        ("both", "weights", r"binarize must be 'both' for this model, got 'weights': .* feed \['fc2', 'fc3'\]"),
    ],
)
def test_binarize_is_what_the_model_was_prepared_for(prepared, given, message):
    model, _ = make("mlp", binarize=prepared)
    with pytest.raises(ValueError, match=message):
        sk.StoMPP(model, 20, binarize=given)


@pytest.mark.parametrize("total_steps", [100.0, "100", None])
def test_total_steps_is_an_int(total_steps):
    with pytest.raises(TypeError, match=f"total_steps must be an int, got {total_steps!r}"):
        sk.StoMPP(make("mlp")[0], total_steps)


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_nothing_behind_a_commitment_moves_in_the_ste_free_regime(name):
    model, x = make(name)
    progression = sk.StoMPP(model, 40, refresh=2, cooldown=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    first, last = progression.units[0], list(model.parameters())[-1]
    behind = {n: p for n, p in model.named_parameters() if n.split(".")[0] in ("conv1", "fc1", "bn1")}
    assert len(behind) >= 3
    behind[first.name] = first.layer.weight
    g = torch.Generator().manual_seed(0)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            model(torch.randn(x.shape, generator=g)).tanh().square().mean().backward()
            optimizer.step()
            progression.step()

    start = {n: p.detach().clone() for n, p in behind.items()}
    train(first.window.stop)
    assert progression.frontier == 1
    before = {n: p.detach().clone() for n, p in behind.items()}
    assert all(p.isfinite().all() for p in model.parameters())
    assert not any(torch.equal(before[n], start[n]) for n in behind)
    head = last.detach().clone()
    train(40 - first.window.stop)
    for n, p in behind.items():
        assert p.grad is None, n
        assert torch.equal(p, before[n]), n
    assert not torch.equal(last, head)


def per_element_run(stop=None, resume_from=None, steps=30, **options):
    """A run with masks drawn per element, or a part of it: losses, model and progression."""
    torch.manual_seed(0)
    model = prepared_chain()
    progression = sk.StoMPP(model, steps, activation_masks="per_element", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = 0
    if resume_from is not None:
        model.load_state_dict(resume_from[0])
        progression.load_state_dict(resume_from[1])
        first = resume_from[1]["step"]
    losses = []
    for step in range(first, stop or steps):
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progression.step()
        losses.append(loss.detach())
    return losses, model, progression


def prepared_chain():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 3))
    return sk.prepare(net, torch.randn(2, 16))[0]


@pytest.mark.parametrize("regime", ["ste_free", "ste"])
def test_per_element_masks_train_to_the_end_and_resume_to_the_same_bits(regime):
    losses, model, progression = per_element_run(regime=regime)
    assert progression.fully_committed
    for stop in (5, 12, 20):
        before, half, state = per_element_run(stop, regime=regime)
        saved = (copy.deepcopy(half.state_dict()), state.state_dict())
        after, resumed, _ = per_element_run(resume_from=saved, regime=regime)
        assert torch.equal(torch.stack(before + after), torch.stack(losses))
        for name, value in model.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name


def test_per_element_masks_differ_between_samples_and_steps_and_follow_p():
    activation = ProgressiveActivation((1000,))
    activation.draw_per_element()
    x = torch.full((4, 1000), 0.5)
    assert torch.equal(activation(x), x)
    frozen = []
    for step in (1, 2):
        activation.refresh(0.3, 100, seed=0, tensor_id=1, step=step)
        out = activation(x)
        assert torch.equal(out, activation(x))
        frozen.append(out == 1)
    assert activation.frozen() == 300
    assert abs(float(frozen[0].float().mean()) - 0.3) < 0.03
    assert not torch.equal(frozen[0][0], frozen[0][1])
    assert not torch.equal(frozen[0], frozen[1])
    assert activation(torch.full((2, 70), 0.5)).shape == (2, 70)  # no mask, no shape to keep to
    activation.soften()
    assert torch.equal(activation(x), x)
    activation.commit()
    assert bool((activation(x) == 1).all())


def test_the_kind_of_activation_masks_is_checked_saved_and_kept():
    model = prepared_chain()
    with pytest.raises(ValueError, match="activation_masks must be one of 'shared', 'per_element', got 'all'"):
        sk.StoMPP(model, 100, activation_masks="all")
    progression = sk.StoMPP(model, 100, activation_masks="per_element")
    draws = {name for name in model.state_dict() if name.endswith(".draw")}
    assert len(draws) == sum(unit.activation is not None for unit in progression.units) > 0
    other = sk.StoMPP(prepared_chain(), 100)
    with pytest.raises(ValueError, match="activation_masks must be what the state was saved with"):
        other.load_state_dict(progression.state_dict())
    sk.StoMPP(model, 100)
    assert not [name for name in model.state_dict() if name.endswith(".draw")]


def test_every_argument_is_saved_but_what_a_run_may_be_resumed_with():
    model = prepared_chain()
    names = [unit.name for unit in sk.StoMPP(model, 100).units]
    values = {
        "shape": "linear",
        "order": names[::-1],
        "refresh": 7,
        "regime": "ste",
        "surrogate": "clip",
        "surrogate_weights": "identity",
        "surrogate_activations": "approx_sign",
        "binarize": "both",
        "overlap": 0.25,
        "warmup": 0.125,
        "cooldown": 0.5,
        "seed": 3,
        "clip_latent": False,
        "activation_masks": "per_element",
    }
    config = sk.StoMPP(model, 100, freeze_prefix=False, **values).state_dict()["config"]
    assert config == {"total_steps": 100, **values, "units": names}
    assert set(inspect.signature(sk.StoMPP).parameters) == {"model", "total_steps", "freeze_prefix", *values}


@pytest.mark.parametrize("regime", ["ste_free", "vanilla_ste"])
def test_what_is_reported_before_and_after_the_windows(regime):
    model, _ = make("residual")
    progression = sk.StoMPP(model, 20, regime=regime, refresh=2, warmup=0.2, order="reverse")
    assert repr(progression).startswith(f"StoMPP(regime={regime!r}, order='reverse', step 0 of 20, ")
    for _ in range(20):
        progress = progression.progress()
        if not progress.active:
            assert progress.p == progress.frozen == (1.0 if progression.fully_committed else 0.0)
        progression.step()
    progress = progression.progress()
    assert (progress.frontier, progress.active, progress.p, progress.frozen) == (progress.units, (), 1.0, 1.0)
    assert repr(progression).endswith("step 20 of 20, 4 of 4 layers committed)")
