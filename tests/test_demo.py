"""The demo, shortened: the whole way from scratch to a packed network on real images."""

import json

import pytest
import torch
from rich.console import Console

from stompp_kernels.cli import main
from stompp_kernels.conversion import load_packed
from stompp_kernels.training import demo
from stompp_kernels.training.digits import augment, load_digits
from stompp_kernels.training.loop import Recipe, accuracy, predict


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

    data = load_digits()
    logits = predict(load_packed(output), data.normalize(data.test_images))
    assert accuracy(logits, data.test_labels) == result.packed_accuracy
    assert json.loads(results.read_text())["result"]["accuracy"] == result.accuracy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "digits.safetensors"]


def test_a_packed_network_that_differs_is_an_error(monkeypatch):
    def negate(model, images, batch_size=256):
        logits = predict(model, images, batch_size)
        return -logits if isinstance(model, torch.fx.GraphModule) else logits

    monkeypatch.setattr(demo, "predict", negate)
    with pytest.raises(RuntimeError, match="differs on"):
        demo.run(epochs=1, console=Console(quiet=True))


def test_digits_are_split_by_class_and_scaled():
    data = load_digits()
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    assert data.test_labels.bincount().min() >= 43
    assert abs(float(data.normalize(data.train_images).std()) - 1) < 1e-5


def test_augmentation_keeps_the_shape_and_follows_its_generator():
    images = load_digits().train_images[:32]
    one, same, other = (augment(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert 0.05 < float((one - images).abs().mean()) < 0.3


def test_the_learning_rate_rises_then_falls_to_zero():
    recipe = Recipe(epochs=10, lr_warmup_epochs=2)
    factors = [recipe.lr_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == factors[19]
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert recipe.lr_factor(100, 100) == pytest.approx(0)


def test_info_lists_the_implementations(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "active" in out
    assert "reference" in out


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys):
    assert main(["demo", "--epochs", "0"]) == 2
    assert capsys.readouterr().err.startswith("stompp: total_steps must be at least 1, got 0")
