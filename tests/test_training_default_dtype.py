"""Recipes, runs and data are in float32, whatever torch's default type is."""

import pytest
import torch
from helpers import assert_same_bits
from test_data import make_cifar, make_image_folder
from test_training import run, small

from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.training import data as data_sets
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.trained import evaluate_trained, load_trained

DTYPES = [torch.float64, torch.bfloat16, torch.float16]


def test_the_default_comes_back_after_an_error():
    @default_dtype(torch.float64)
    def fail():
        assert torch.get_default_dtype() is torch.float64
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagenet"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_are_the_same_bits_under_another_default(name, dtype, tmp_path):
    if name == "cifar10":
        make_cifar(tmp_path)
    if name == "imagenet":
        make_image_folder(tmp_path)
    options = {"digits": {}, "cifar10": {"image_size": 16}, "imagenet": {"image_size": 16, "workers": 0}}[name]
    path = None if name == "digits" else tmp_path

    def batches():
        data = data_sets.load(name, path, train_limit=16, test_limit=8, **options)
        return [*data.train_batches(0, 8, 0), *data.test_batches(8), (data.example_inputs(), torch.zeros(1))]

    expected = batches()
    with default_dtype(dtype):
        given = batches()
    for (inputs, labels), (expected_inputs, expected_labels) in zip(given, expected, strict=True):
        assert inputs.dtype == torch.float32
        assert_same_bits(inputs, expected_inputs)
        assert torch.equal(labels, expected_labels)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_and_its_evaluation_are_the_same_bits_under_another_default(dtype, optimizer, tmp_path, restore_threads):
    torch.set_num_threads(1)
    recipe = small(epochs=1, optimizer={"name": optimizer, "lr": 0.01})
    result = run(recipe, tmp_path / "a")
    with default_dtype(dtype):
        again = run(recipe, tmp_path / "b")
        run(recipe, tmp_path / "b", resume=True)
        model, data, loaded = load_trained(tmp_path / "b")
        accuracy, _ = evaluate_trained(model, data, loaded, packed=False)
        assert torch.get_default_dtype() is dtype
    assert again["accuracy"] == result["accuracy"] == accuracy
    a, b = (load_checkpoint(tmp_path / name / LAST)["model"] for name in "ab")
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    assert {value.dtype for value in b.values()} == {value.dtype for value in a.values()}
