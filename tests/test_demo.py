"""The demo, shortened: the whole way from scratch to a packed network on real images."""

import json

import pytest
import torch
from rich.console import Console

from stompp_kernels import native
from stompp_kernels.bench.turns import compare
from stompp_kernels.cli import main
from stompp_kernels.conversion import load_packed
from stompp_kernels.training import data as datasets
from stompp_kernels.training import demo, trained
from stompp_kernels.training.data.digits import SmallAffine
from stompp_kernels.training.evaluate import accuracy, predict


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    for module in (demo, trained):
        monkeypatch.setattr(module, "compare", lambda sides, seconds: compare(sides, 0.01))


@pytest.mark.parametrize("regime", ["ste", "ste_free"])
def test_a_short_demo_ends_committed_packed_and_equal(regime, tmp_path):
    output, results = tmp_path / "digits.safetensors", tmp_path / "demo.json"
    console = Console(quiet=True)
    result = demo.run(regime, epochs=4, output=output, results=results, console=console)
    assert result.different_predictions == 0
    assert result.accuracy == result.packed_accuracy
    assert result.accuracy > 40, "four epochs learn something: chance is 10 %"
    assert result.binarized_fp32_bytes >= 20 * result.binarized_packed_bytes
    assert len(result.layers) == 8
    if native.multiplies_bfloat16():
        assert abs(result.fast_accuracy - result.accuracy) < 5, "bfloat16 changes few predictions"
        assert 0 <= result.fast_different_predictions <= result.test_images / 2
    else:
        assert result.fast_accuracy is result.fast_different_predictions is None

    assert accuracy(*predict(load_packed(output), datasets.load("digits"))) == result.packed_accuracy
    assert json.loads(results.read_text())["result"]["accuracy"] == result.accuracy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "digits.safetensors"]


def test_a_packed_network_that_differs_is_an_error(monkeypatch):
    def negate(model, data):
        logits, labels = predict(model, data)
        return (-logits if isinstance(model, torch.fx.GraphModule) else logits), labels

    monkeypatch.setattr(demo, "predict", negate)
    with pytest.raises(RuntimeError, match="differs on"):
        demo.run(epochs=1, console=Console(quiet=True))


def test_digits_are_split_by_class_and_scaled():
    data = datasets.load("digits")
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert (data.train_images.min(), data.train_images.max()) == (0, 16)
    assert data.test_labels.bincount().min() >= 43
    images = torch.cat([x for x, _ in data.test_batches(100)])
    assert abs(float(images.std()) - 1) < 0.02


def test_augmentation_keeps_the_shape_and_follows_its_generator():
    images, small = datasets.load("digits").train_images[:32], SmallAffine()
    one, same, other = (small.apply(images, small.draw(32, torch.Generator().manual_seed(s))) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert 0.05 < float((one - images).abs().mean()) / 16 < 0.3


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys):
    assert main(["demo", "--epochs", "0"]) == 2
    assert capsys.readouterr().err.startswith("stompp: epochs must be positive, got 0")
