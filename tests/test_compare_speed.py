"""sk.convert(compare_speed=True): a warning where the packed network is slower than a float one."""

import warnings

import pytest
import torch
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.packing import speed
from stompp_kernels.nn import BinaryLayer, ProgressiveActivation, Stage


class Layers(nn.Module):
    """A layer of each kind, one of them at two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, 2, 1, groups=2)
        self.up, self.image = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.act, self.shared, self.head = nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
        self.again = self.shared

    def forward(self, x):
        y = self.second(self.first(x)).unflatten(2, (2, -1))
        y = self.act(self.image(self.up(y))).flatten(2).transpose(1, 2)
        return self.head(self.again(self.shared(y)).mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    prepared, _ = sk.prepare(Layers(), torch.randn(2, 4, 16), on_refusal="keep")
    return set_stage(prepared, Stage.BINARY).eval()


X = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("packed_seconds", "warned"), [(1.04, False), (1.06, True), (0.5, False)])
def test_a_slower_network_is_warned_of(model, packed_seconds, warned, monkeypatch):
    monkeypatch.setattr(speed, "_in_turns", lambda *sides: (1e-3, packed_seconds * 1e-3))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sk.convert(model, verify=X, compare_speed=True)
    texts = [str(one.message) for one in found if one.category is RuntimeWarning and one.filename == __file__]
    assert len(texts) == warned
    assert all("slower than a float one: 1.06 ms for these inputs where that takes 1 ms" in text for text in texts)


def test_the_sides_run_in_turns(monkeypatch):
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    calls = []
    first, second = speed._in_turns(lambda: calls.append("float"), lambda: calls.append("packed"))
    assert calls == ["float", "packed"] * (speed._ROUNDS + 1)
    assert first > 0
    assert second > 0


def test_the_float_twin_has_torchs_layers(model):
    twin = speed.float_twin(model)
    assert not any(isinstance(m, (BinaryLayer, ProgressiveActivation)) for m in twin.modules())
    assert any(isinstance(m, BinaryLayer) for m in model.modules()), "the model stays as it is"
    assert twin.again is twin.shared
    expected = {name: (type(m), m.weight.shape) for name, m in Layers().named_modules() if hasattr(m, "weight")}
    assert {name: (type(m), m.weight.shape) for name, m in twin.named_modules() if hasattr(m, "weight")} == expected
    assert twin(X).shape == model(X).shape


def test_without_inputs_there_is_nothing_to_time(model):
    with pytest.raises(ValueError, match="compare_speed=True needs inputs to time: give verify or example_inputs"):
        sk.convert(model, compare_speed=True)
