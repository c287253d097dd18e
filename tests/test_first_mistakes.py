"""What a new user does wrong first: each mistake is said, in the user's terms."""

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
