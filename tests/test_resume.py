"""A run that stops, is saved, loaded into fresh objects and goes on gives the bits of the unbroken run."""

import copy
import warnings

import pytest
import torch
from models_for_tests import NETS, assert_same_state, binary_layers, make, masked_modules, snapshot, train_steps

import stompp_kernels as sk

pytestmark = pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")

TOTAL = 20
OPTIONS = {"refresh": 2, "cooldown": 0.2, "warmup": 0.1, "seed": 11}
# Windows: [2, 6, 9 or 10, 12 or 13, 16]. Soft, inside the first, at its commit, right before another, in cool-down.
STOPS = (0, 1, 4, 6, 11, 15, 16, 18)
REGIMES = {
    "ste_free": {"regime": "ste_free"},
    "ste": {"regime": "ste", "surrogate": "clip"},
    "vanilla_ste": {"regime": "vanilla_ste"},
}


def fresh(name, regime, seed=0):
    model, _ = make(name, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return model, optimizer, sk.StoMPP(model, TOTAL, **OPTIONS, **REGIMES[regime])


def shape_of(name):
    return NETS[name][1]


@pytest.fixture(scope="module")
def unbroken():
    """(net, regime) -> the losses and state of a run that never stopped; a checkpoint at each stop."""
    runs = {}

    def run(name, regime, directory):
        if (name, regime) not in runs:
            model, optimizer, progression = fresh(name, regime)
            losses, files = [], {}
            for step in range(TOTAL + 1):
                if step in STOPS:
                    files[step] = directory / f"{name}-{regime}-{step}.pt"
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "progression": progression.state_dict(),
                    }
                    torch.save(state, files[step])
                if step < TOTAL:
                    losses += train_steps(model, optimizer, progression, 1, step, shape_of(name))
            assert progression.fully_committed
            runs[name, regime] = (losses, snapshot(model), copy.deepcopy(optimizer.state_dict()), files)
        return runs[name, regime]

    return run


@pytest.mark.sweep(4)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("name", "regime"), [("residual", "ste_free"), ("residual", "ste"), ("mlp", "ste_free"), ("bireal", "vanilla_ste")]
)
def test_a_resumed_run_repeats_the_unbroken_one(name, regime, stop, unbroken, tmp_path_factory):
    losses, final, final_optimizer, files = unbroken(name, regime, tmp_path_factory.getbasetemp())
    saved = torch.load(files[stop], weights_only=True)
    model, optimizer, progression = fresh(name, regime, seed=99)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    progression.load_state_dict(saved["progression"])
    rest = train_steps(model, optimizer, progression, TOTAL - stop, stop, shape_of(name))
    assert torch.equal(torch.stack(rest), torch.stack(losses[stop:]))
    assert_same_state(snapshot(model), final)
    for index, state in final_optimizer["state"].items():
        assert torch.equal(optimizer.state_dict()["state"][index]["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.parametrize(
    ("regime", "stop", "stage"),
    [("ste_free", 4, "PARTIAL"), ("ste_free", 16, "BINARY"), ("ste", 18, "BINARY"), ("vanilla_ste", 4, "BINARY")],
)
def test_a_model_that_was_not_loaded_is_noticed(regime, stop, stage, unbroken, tmp_path_factory):
    *_, files = unbroken("mlp", regime, tmp_path_factory.getbasetemp())
    saved = torch.load(files[stop], weights_only=True)
    model, _, progression = fresh("mlp", regime)
    model.load_state_dict(make("mlp")[0].state_dict())
    progression.load_state_dict(saved["progression"])
    with pytest.raises(RuntimeError, match=f"unit 'fc2' must be {stage} at step {stop}, got SOFT: load the model's"):
        progression.step()
    assert progression.progress().step == stop
    model.load_state_dict(saved["model"])
    progression.step()
    assert progression.progress().step == stop + 1


def test_the_stops_reach_every_phase():
    _, _, progression = fresh("residual", "ste_free")
    windows = [unit.window for unit in progression.units]
    assert min(STOPS) < windows[0].start
    assert any(window.start < stop < window.stop for window in windows for stop in STOPS)
    assert windows[0].stop in STOPS
    assert windows[-1].stop in STOPS
    assert max(STOPS) > windows[-1].stop


def test_loading_into_a_live_run_goes_back_in_time(unbroken, tmp_path_factory):
    losses, final, _, files = unbroken("mlp", "ste_free", tmp_path_factory.getbasetemp())
    model, optimizer, progression = fresh("mlp", "ste_free", seed=3)
    train_steps(model, optimizer, progression, 3, 0, shape_of("mlp"))
    assert all(layer.weight.grad is not None for layer in binary_layers(model).values())
    saved = torch.load(files[16], weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    progression.load_state_dict(saved["progression"])
    # A gradient left over from before would move committed weights, and what lies behind them, in the next step.
    assert all(parameter.grad is None for parameter in model.parameters())
    rest = train_steps(model, optimizer, progression, TOTAL - 16, 16, shape_of("mlp"))
    assert torch.equal(torch.stack(rest), torch.stack(losses[16:]))
    assert_same_state(snapshot(model), final)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_steps", 21),
        ("shape", "linear"),
        ("order", "reverse"),
        ("refresh", 3),
        ("regime", "vanilla_ste"),
        ("surrogate", "approx_sign"),
        ("surrogate_weights", "identity"),
        ("surrogate_activations", "identity"),
        ("binarize", "weights"),
        ("overlap", 0.25),
        ("warmup", 0.0),
        ("cooldown", 0.1),
        ("seed", 12),
        ("clip_latent", False),
    ],
)
def test_another_configuration_is_refused_by_name(key, value):
    options = {"total_steps": TOTAL, **OPTIONS, "regime": "ste", "surrogate": "clip"}
    model, _ = make("mlp")
    state = sk.StoMPP(model, **options).state_dict()
    other, _ = make("mlp", **{k: v for k, v in [(key, value)] if k == "binarize"})
    progression = sk.StoMPP(other, **{**options, key: value})
    with pytest.raises(ValueError, match=f"^{key} must be what the state was saved with"):
        progression.load_state_dict(state)
    assert progression.progress().step == 0


def older(progression):
    """The state as versions wrote it whose defaults were refresh 100 and surrogate identity."""
    state = progression.state_dict()
    del state["config"]["surrogate_weights"], state["config"]["surrogate_activations"]
    return state


@pytest.mark.parametrize("regime", ["ste_free", "ste"])
def test_a_state_of_former_defaults_goes_on_with_them_and_says_so(regime):
    former = sk.StoMPP(make("mlp")[0], 40, regime=regime, refresh=100, surrogate="identity")
    progression = sk.StoMPP(make("mlp")[0], 40, regime=regime)
    assert progression.refresh != 100
    with pytest.warns(RuntimeWarning, match=r"saved by a version with the defaults refresh=100\.0"):
        progression.load_state_dict(older(former))
    assert progression.refresh == 100.0
    surrogate = {"ste": "identity", "ste_free": "none"}[regime]
    assert {masked.surrogate for unit in progression.units for masked, _ in unit.masked()} == {surrogate}
    assert progression.state_dict() == former.state_dict()
    for step in range(3):
        former.step()
        progression.step()
        for one, other in zip(former.units, progression.units, strict=True):
            assert torch.equal(one.layer.mask_words, other.layer.mask_words), step


@pytest.mark.parametrize("given", [{"refresh": 50}, {"regime": "ste", "surrogate": "approx_sign"}], ids=str)
def test_a_state_of_former_defaults_does_not_win_over_what_is_given(given):
    former = sk.StoMPP(make("mlp")[0], 40, **{**given, "refresh": 100, "surrogate": "identity"})
    progression = sk.StoMPP(make("mlp")[0], 40, **given)
    with pytest.raises(ValueError, match=f"^{list(given)[-1]} must be what the state was saved with"):
        progression.load_state_dict(older(former))
    assert progression.progress().step == 0


def test_a_state_of_given_settings_does_not_win_over_today_s_defaults():
    state = sk.StoMPP(make("mlp")[0], 40, refresh=100).state_dict()
    with pytest.raises(ValueError, match=r"^refresh must be what the state was saved with: 100\.0, got 1\.0"):
        sk.StoMPP(make("mlp")[0], 40).load_state_dict(state)


def test_the_state_of_another_model_is_refused():
    state = sk.StoMPP(make("mlp")[0], 20).state_dict()
    with pytest.raises(ValueError, match=r"^units must be what the state was saved with: \['fc2', 'fc3'\]"):
        sk.StoMPP(make("bireal")[0], 20).load_state_dict(state)


def test_a_negative_step_is_refused():
    progression = sk.StoMPP(make("mlp")[0], 20)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        progression.load_state_dict({**progression.state_dict(), "step": -1})


def test_the_state_is_a_copy():
    progression = sk.StoMPP(make("mlp")[0], 20)
    state = progression.state_dict()
    progression.step()
    assert state["step"] == 0
    state["config"]["seed"] = 5
    assert progression.state_dict()["config"]["seed"] == 0


def test_a_loaded_finished_run_does_not_warn(unbroken, tmp_path_factory):
    *_, files = unbroken("mlp", "ste_free", tmp_path_factory.getbasetemp())
    saved = torch.load(files[18], weights_only=True)
    model, _, progression = fresh("mlp", "ste_free")
    model.load_state_dict(saved["model"])
    progression.load_state_dict(saved["progression"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del progression
    assert not caught


@pytest.mark.parametrize("regime", ["ste_free", "ste"])
@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_thread_count_does_not_change_masks_or_packed_results(name, regime, restore_threads):
    # torch's float convolutions and sums may group their terms by thread, so weights learn under one thread count,
    # and masks and packed products are compared under both.
    results = []
    for threads in (1, 2):
        torch.set_num_threads(1)
        model, optimizer, progression = fresh(name, regime)
        words = []
        for step in range(TOTAL):
            torch.set_num_threads(1)
            g = torch.Generator().manual_seed(step)
            x = torch.randn(shape_of(name), generator=g)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            progression.step()
            words += [m.mask_words.clone() for m in masked_modules(model).values()]
        torch.set_num_threads(threads)
        layers = []
        for layer in binary_layers(model).values():
            channels = layer.weight.shape[1]
            shape = (8, channels, 9, 9) if layer.weight.dim() == 4 else (300, channels)
            signs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).sign()
            layers.append(layer(signs).detach())
        results.append((words, layers, snapshot(model)))
    (words, layers, state), (other_words, other_layers, other_state) = results
    assert all(map(torch.equal, words, other_words))
    assert all(map(torch.equal, layers, other_layers))
    assert_same_state(other_state, state)
