"""What a new user does wrong first: each mistake is said, in the user's terms."""

import re
import warnings

import pytest
import torch
from torch import nn

import stompp_kernels as sk

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def network():
    blocks = [nn.Conv2d(3, 8, 3), nn.ReLU()]
    for _ in range(2):
        blocks += [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Dropout2d(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3))


def trained(total_steps, steps):
    model, _ = sk.prepare(network(), X)
    progression = sk.StoMPP(model, total_steps, regime="ste")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        progression.step()
    return model, progression


def test_preparing_tries_no_module_that_complains():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.prepare(network(), X)


def test_a_run_that_ended_early_is_said_when_converted_and_when_saved(tmp_path):
    model, progression = trained(total_steps=20, steps=12)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 binary layers are not committed .*: 9 \(soft\); call progression"):
        packed = sk.convert(model, verify=X)
    with pytest.raises(ValueError, match=r"ProgressiveActivation is not committed, .*: train until"):
        sk.save_packed(packed, tmp_path / "net.safetensors")
    with pytest.warns(RuntimeWarning, match="training ended at step 12 of 20") as told:
        del progression
    assert told[0].filename == __file__


def test_a_run_without_steps_of_the_progression_is_told_what_was_missing():
    model, _ = trained(total_steps=20, steps=0)
    with pytest.raises(ValueError, match=r"got 2 \(soft\), .*: call progression\.step\(\) after each optimizer\.step"):
        sk.convert(model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, path: sk.prepare(X, net), TypeError, "model must be an nn.Module, got Tensor"),
        (lambda net, path: sk.StoMPP(sk.prepare(net, X), 10), TypeError, "got tuple; sk.prepare returns a model and"),
        (lambda net, path: sk.convert(sk.prepare(net, X)), TypeError, "got tuple; sk.prepare returns a model and"),
        (lambda net, path: sk.convert(net), ValueError, "no binary layer to convert: pass it through sk.prepare"),
        (lambda net, path: sk.save_packed(str(path), net), TypeError, "packed must be an nn.Module, got str"),
        (lambda net, path: sk.prepare(net, X, keep=["["]), ValueError, r"regular expressions, got '\['"),
        (lambda net, path: sk.prepare(net, X, keep="2"), ValueError, "got the string '2'"),
    ],
)
def test_wrong_arguments_are_named(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(network(), tmp_path / "net.safetensors")


@pytest.mark.parametrize("verify", [True, X.numpy(), 3])
def test_what_to_verify_must_be_inputs(verify):
    model, _ = trained(total_steps=12, steps=12)
    with pytest.raises(TypeError, match="verify must be a tensor, or a tuple or dict of inputs, got"):
        sk.convert(model, verify=verify)


def test_a_packed_network_is_not_converted_again():
    model, _ = trained(total_steps=12, steps=12)
    with pytest.raises(ValueError, match="it is packed already"):
        sk.convert(sk.convert(model))


def test_a_pattern_that_matches_nothing_is_said():
    with pytest.warns(RuntimeWarning, match="keep='nosuch' matches no module of the model") as told:
        sk.prepare(network(), X, keep=["nosuch"])
    assert told[0].filename == __file__


def sequence_network():
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("make", "prepared_with", "trained_with", "activation", "shapes"),
    [
        (lambda: network()[:-3], (4, 3, 9, 9), (2, 3, 11, 11), "1", ("[2, 8, 7, 7]", "[2, 8, 9, 9]")),
        (sequence_network, (4, 5, 6), (4, 7, 6), "1", ("[4, 5, 8]", "[4, 7, 8]")),
    ],
)
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_inputs_of_another_size_than_those_of_prepare(make, prepared_with, trained_with, activation, shapes, warmup):
    model, _ = sk.prepare(make(), torch.randn(prepared_with))
    progression = sk.StoMPP(model, 20, refresh=1, warmup=warmup)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(trained_with)

    def train(steps=1):
        for _ in range(steps):
            model(x).square().mean().backward()
            optimizer.step()
            progression.step()

    wanted, given = shapes
    says = f"activation {activation!r} must have shape {re.escape(wanted)} while it is partly frozen, got "
    remedy = f"{re.escape(given)}.*sizes of the example_inputs of sk.prepare.*Prepare the model again.*per_element"
    with pytest.warns(RuntimeWarning, match=f"trained with inputs of another size .*{says}{remedy}") as told:
        train()
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.raises(ValueError, match=f"{says}{remedy}"):
        train(steps=12)


@pytest.mark.parametrize("how", ["per_element", "committed", "eval", "no_grad"])
def test_any_size_is_fine_where_no_mask_meets_it(how):
    model, _ = sk.prepare(network()[:-3], X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    masks = "per_element" if how == "per_element" else "shared"
    progression = sk.StoMPP(model, 20, regime="vanilla_ste" if how == "committed" else "ste", activation_masks=masks)
    trains = how in ("per_element", "committed")
    with warnings.catch_warnings(), torch.set_grad_enabled(how != "no_grad"):
        warnings.simplefilter("error")
        model.train(how != "eval")(torch.randn(2, 3, 11, 11))
        for _ in range(20 if trains else 1):
            with torch.enable_grad():
                model.train()(torch.randn(2, 3, 11, 11) if trains else X).square().mean().backward()
            optimizer.step()
            progression.step()
        progression._end_early()
