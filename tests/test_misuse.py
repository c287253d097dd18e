"""Training loops that go wrong without an error: each is warned about once, with the fix; right ones are not."""

import copy
import gc
import warnings

import pytest
import torch
from models_for_tests import MLP, make, seeded
from torch import nn

import stompp_kernels as sk
from stompp_kernels.progression.guards import _ordinal


@pytest.fixture(autouse=True)
def no_progression_of_another_test():
    gc.collect()


def quiet():
    """Turns any warning into an error, but the one about a run that a test cuts short."""
    context = warnings.catch_warnings()
    context.__enter__()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="training ended at step")
    return context


@pytest.fixture
def no_warning():
    context = quiet()
    yield
    context.__exit__(None, None, None)


def prepared(total_steps=8, **options):
    model, x = make("mlp")
    return model, x, sk.StoMPP(model, total_steps, **options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def messages(caught):
    return [str(w.message) for w in caught if "training ended" not in str(w.message)]


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        yield records


def train_steps(model, optimizer, progression, steps):
    x = torch.randn(5, 7)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        progression.step()


def backward(model, x):
    model(x).square().sum().backward()


@pytest.mark.parametrize("first", ["gradient", "nothing"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_before_the_optimizers(first, set_to_none, caught):
    model, x, progression = prepared()
    optimizer = sgd(model)
    for _ in range(8):
        if first == "nothing":
            progression.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        backward(model, x)
        if first == "gradient":
            progression.step()
        optimizer.step()
    (message,) = messages(caught)
    assert "progression.step() ran before optimizer.step()" in message
    assert "once after each optimizer.step()" in message


def test_a_step_for_each_batch_of_an_accumulated_gradient(caught):
    model, x, progression = prepared(16)
    optimizer = sgd(model)
    for _ in range(4):
        for _ in range(3):
            backward(model, x)
            progression.step()
        optimizer.step()
        optimizer.zero_grad()
    assert len(messages(caught)) == 1
    assert "once after each optimizer.step()" in messages(caught)[0]


def test_a_second_progression(caught):
    model, _, progression = prepared()
    second = sk.StoMPP(model, 8)
    progression.step()
    second.step()
    assert [m for m in messages(caught) if "the model has a StoMPP already" in m] == messages(caught)[:1]


def test_one_progression_after_the_other(no_warning):
    model, _, progression = prepared()
    del progression
    first = sk.StoMPP(model, 8)
    kept = [first]
    kept.append(kept)  # only a cycle holds it
    del first, kept
    sk.StoMPP(model, 8)
    other, _, _ = prepared()
    assert other is not model


def test_an_optimizer_of_the_model_before_prepare(caught):
    seeded(0)
    model, x = MLP(), torch.randn(16, 7)
    optimizer = sgd(model)
    model, _ = sk.prepare(model, x)
    progression = sk.StoMPP(model, 8)
    for _ in range(8):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        progression.step()
    (message,) = messages(caught)
    assert "SGD steps, but holds none of the model's parameters" in message
    assert "parameters of the model that sk.prepare returned" in message


def test_a_copy_that_is_trained_in_the_models_place(caught):
    model, _, progression = prepared()
    twin = copy.deepcopy(model)
    train_steps(twin, sgd(twin), progression, 4)
    assert len(messages(caught)) == 1
    assert "of another copy" in messages(caught)[0]


def test_latent_weights_that_no_optimizer_holds(caught):
    model, _, progression = prepared()
    train_steps(model, torch.optim.SGD(model.fc4.parameters(), lr=0.05), progression, 8)
    (message,) = messages(caught)
    assert "no optimizer that stepped holds the latent weights of 'fc3'" in message


def test_more_steps_than_total_steps(caught):
    model, _, progression = prepared(8)
    train_steps(model, sgd(model), progression, 12)
    (message,) = messages(caught)
    assert "9th time" in message
    assert "total_steps=8" in message


@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize("before", [True, False])
def test_a_models_state_without_the_progressions(steps, before, caught):
    model, _, progression = prepared()
    train_steps(model, sgd(model), progression, steps)
    state = model.state_dict()
    resumed, _ = make("mlp")
    if before:
        resumed.load_state_dict(state)
    second = sk.StoMPP(resumed, 8)
    if not before:
        resumed.load_state_dict(state)
    train_steps(resumed, sgd(resumed), second, 3)
    (message,) = messages(caught)
    assert "call progression.load_state_dict too" in message


def test_an_earlier_state_without_the_progressions(caught):
    model, _, progression = prepared()
    state = copy.deepcopy(model.state_dict())
    train_steps(model, sgd(model), progression, 6)
    model.load_state_dict(state)
    progression.step()
    progression.step()
    assert len(messages(caught)) == 1
    assert "'fc2'" in messages(caught)[0]


@pytest.mark.parametrize("model_first", [True, False])
def test_a_run_that_is_resumed_in_full(model_first, no_warning):
    model, _, progression = prepared()
    train_steps(model, sgd(model), progression, 5)
    states = model.state_dict(), progression.state_dict()
    resumed, _, second = prepared()
    for load, state in [(resumed.load_state_dict, states[0]), (second.load_state_dict, states[1])][
        :: 1 if model_first else -1
    ]:
        load(state)
    train_steps(resumed, sgd(resumed), second, 3)
    assert second.fully_committed


@pytest.mark.parametrize("options", [{}, {"regime": "ste", "surrogate": "clip"}, {"regime": "vanilla_ste"}], ids=str)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Muon", "two", "scheduled", "hook", "none"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_right_loops_are_not_warned_about(options, optimizer, set_to_none, no_warning):
    model, x, progression = prepared(8, **options)
    other = nn.Linear(3, 3)
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)  # of a model that is trained beside this one
    parameters = list(model.parameters())
    if optimizer == "two":
        optimizers = [torch.optim.SGD(parameters[:3], lr=0.05), torch.optim.Adam(parameters[3:])]
    elif optimizer == "Muon":
        matrices = [p for p in parameters if p.dim() == 2]
        optimizers = [torch.optim.Muon(matrices), torch.optim.Adam([p for p in parameters if p.dim() != 2])]
    else:
        optimizers = [getattr(torch.optim, optimizer if optimizer.startswith("A") else "SGD")(parameters, lr=0.05)]
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizers[0]) if optimizer == "scheduled" else None
    if optimizer == "hook":
        optimizers[0].register_step_post_hook(lambda *_: progression.step())
    for _ in range(8):
        other(torch.randn(2, 3)).sum().backward()
        stranger.step()
        for _ in range(2):
            backward(model, x)
        if optimizer == "none":  # an update by hand
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p -= 0.01 * p.grad
            model.zero_grad(set_to_none)
        else:
            for one in optimizers:
                one.step()
            for one in optimizers:
                one.zero_grad(set_to_none)
        if optimizer != "hook":
            progression.step()
        if scheduler is not None:
            scheduler.step()
    assert progression.fully_committed


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zeroed_first", [True, False])
def test_steps_that_a_grad_scaler_skips(set_to_none, zeroed_first, no_warning):
    model, x, progression = prepared(8)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-40)
    for _ in range(8):
        scaler.scale(model(x).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if zeroed_first:
            optimizer.zero_grad(set_to_none)
        progression.step()
        optimizer.zero_grad(set_to_none)
    assert scaler.get_scale() < 2.0**126, "no step was skipped"


def test_compiled_optimizers_step(caught):
    model, x, progression = prepared(8)
    optimizer = sgd(model)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        backward(model, x)
        step()
        progression.step()
        optimizer.zero_grad()
    assert not [message for message in messages(caught) if "progression" in message or "StoMPP" in message]


def train_without_progression(model, optimizer, steps, x):
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()


@pytest.mark.parametrize("called", [0, 1])
def test_steps_of_the_progression_that_are_missing(called, caught):
    model, x, progression = prepared(40)
    optimizer = sgd(model)
    train_steps(model, optimizer, progression, called)
    train_without_progression(model, optimizer, 9, x)
    assert messages(caught) == []
    train_without_progression(model, optimizer, 20, x)
    (message,) = messages(caught)
    assert f"progression.step() has not been called {'again ' * called}after 10 optimizer steps" in message
    assert "once after each optimizer.step(), 40 times in all" in message
    caught.clear()
    del progression
    (ended,) = (str(w.message) for w in caught)
    assert f"training ended at step {called} of 40" in ended
    assert ("progression.step() was never called" in ended) == (called == 0)


def test_training_goes_on_once_all_is_committed(no_warning):
    model, x, progression = prepared(8)
    optimizer = sgd(model)
    train_steps(model, optimizer, progression, 8)
    train_without_progression(model, optimizer, 20, x)


def test_a_progression_that_no_training_followed(caught):
    _, _, progression = prepared()
    del progression
    assert caught == []


def test_several_optimizers_count_one_step_each(no_warning):
    model, x, progression = prepared(40)
    parameters = list(model.parameters())
    optimizers = [torch.optim.SGD([parameter], lr=0.01) for parameter in parameters]
    for _ in range(8):
        backward(model, x)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert len(optimizers) * 8 > 10
    progression.step()


@pytest.mark.parametrize("order", [1, -1])
def test_a_second_progression_is_one_mistake(order, caught):
    model, x, progression = prepared()
    both = [progression, sk.StoMPP(model, 8)]
    optimizer = sgd(model)
    for _ in range(3):
        train_without_progression(model, optimizer, 1, x)
        for one in both:
            one.step()
    del progression, one
    both = both[::order]
    while both:
        both.pop()
    said = [str(w.message) for w in caught]
    assert len(said) == 2, said
    assert "the model has a StoMPP already" in said[0]
    assert "training ended at step 3 of 8" in said[1]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (13, "13th"),
        (51, "51st"),
        (112, "112th"),
        (122, "122nd"),
    ],
)
def test_ordinals(number, text):
    assert _ordinal(number) == text
