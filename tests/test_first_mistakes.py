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


@pytest.fixture(scope="module")
def packed_network():
    model, _ = sk.prepare(network(), X)
    sk.StoMPP(model, 4, regime="vanilla_ste")
    return sk.convert(model)


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


WRONG_INPUTS = [
    (True, TypeError, "got bool"),
    (3, TypeError, "got int"),
    (X.numpy(), TypeError, "got ndarray; torch.from_numpy makes a tensor of it"),
    ((X.numpy(),), TypeError, "got one that holds a numpy array; torch.from_numpy"),
    ([X, torch.zeros(4)], TypeError, r"got list of 2: give .* the tensor alone where a batch is \[inputs, labels\]"),
    ((4, 3, 9, 9), TypeError, r"got the numbers \(4, 3, 9, 9\): for a shape give .* torch.randn\(4, 3, 9, 9\)"),
    ((X, X), TypeError, "{} must fit the model's forward: too many positional arguments"),
    ({"nosuch": X}, TypeError, "{} must fit the model's forward: got an unexpected keyword argument 'nosuch'"),
    (X[:, :1], ValueError, r"the model fails on {}, float32 of shape \[4, 1, 9, 9\]; RuntimeError: .*3 channels"),
    (X.double(), ValueError, r"the model fails on {}, float64 of shape \[4, 3, 9, 9\]; RuntimeError: "),
]


@pytest.mark.parametrize(("inputs", "error", "message"), WRONG_INPUTS)
def test_inputs_that_are_none_are_named(inputs, error, message):
    with pytest.raises(error, match=f"{message.format('example_inputs')}") as told:
        sk.prepare(network(), inputs)
    assert "example_inputs" in str(told.value)
    model, _ = sk.prepare(network(), X)
    sk.StoMPP(model, 4, regime="vanilla_ste")
    with pytest.raises(error, match=message.format("verify")) as told:
        sk.convert(model, verify=inputs)
    assert "verify" in str(told.value)
    if error is TypeError:
        with pytest.raises(error, match=message.format("example_inputs")):
            sk.link(model, inputs)
        with pytest.raises(error, match=message.format("example_inputs")):
            sk.convert(model, example_inputs=inputs)
    else:
        assert isinstance(told.value.__cause__, RuntimeError), "torch's own error is kept"


@pytest.mark.parametrize(("inputs", "error", "message"), [case for case in WRONG_INPUTS if case[1] is TypeError])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("inputs", sk.explain),
        ("example_inputs", sk.capture_packed),
        ("example_inputs", lambda packed, inputs: sk.save_packed(packed, "net.safetensors", inputs)),
        ("example_inputs", lambda packed, inputs: sk.export_packed(packed, "net.pt2", inputs)),
        ("example_inputs", lambda packed, inputs: sk.package_packed(packed, "net.pt2", inputs)),
    ],
    ids=["explain", "capture", "save", "export", "package"],
)
def test_inputs_that_a_packed_network_cannot_take_are_named(
    name, call, inputs, error, message, tmp_path, monkeypatch, packed_network
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message.format(name)) as told:
        call(packed_network, inputs)
    assert name in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (network(), X[0]),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3)), X[0, :, 0]),
        (nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)), X[0, 0, 0]),
    ],
)
def test_inputs_without_a_batch_dimension(model, x):
    shape = re.escape(str(list(x.shape)))
    with pytest.raises(ValueError, match=f"example_inputs must have a batch dimension: layer '0' .* shape {shape}"):
        sk.prepare(model, x)
    sk.prepare(model, x.unsqueeze(0))


def test_inputs_that_tell_nothing():
    with pytest.warns(RuntimeWarning, match="example_inputs holds zeros only") as told:
        sk.prepare(network(), torch.zeros_like(X))
    assert told[0].filename == __file__
    with pytest.raises(ValueError, match="example_inputs must hold no NaN, got 1 in 972 entries"):
        sk.prepare(network(), torch.where(X.max() == X, torch.nan, X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_type_that_convert_refuses_is_said_before_training(dtype):
    with pytest.warns(RuntimeWarning, match=f"model has {dtype} parameters, and sk.convert takes float32") as told:
        sk.prepare(network().to(dtype), X.to(dtype))
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({}, "give keep_first=False to binarize the first layer, keep_last=False to binarize the last layer"),
        ({"keep_first": False, "keep": ["0"]}, "give keep_last=False to binarize the last layer"),
    ],
)
def test_what_keeps_every_layer_is_said(options, hint):
    with pytest.raises(ValueError, match=f"model has no layer to binarize; .*; {hint}$"):
        sk.prepare(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), X[0, 0], **options)


def test_files_of_other_kinds_are_recognized(tmp_path):
    path = tmp_path / "s.pt"
    for zipped, what in ((True, "a zip archive, as torch.save writes"), (False, "a pickle, as torch.save wrote")):
        torch.save({"weight": X}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"is no safetensors file but {what}.*sk.save_packed writes packed"):
            sk.load_packed(path)


def test_a_folder_that_is_missing_is_said(tmp_path):
    model, _ = sk.prepare(network(), X)
    sk.StoMPP(model, 4, regime="vanilla_ste")
    path = tmp_path / "nosuch" / "net.safetensors"
    with pytest.raises(FileNotFoundError, match=f"its folder {str(path.parent)!r} is missing, make it first"):
        sk.save_packed(sk.convert(model), path)


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
