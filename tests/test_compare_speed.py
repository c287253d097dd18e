"""sk.convert's comparison of speeds: a warning where the packed network is slower than a float one."""

import sys
import warnings

import pytest
import torch
from models_for_tests import set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.packing import speed
from stompp_kernels.nn import BinaryLayer, ProgressiveActivation, Stage
from stompp_kernels.nn.sign_keeping import SignKeeping


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


convert_module = sys.modules["stompp_kernels.conversion.packing.convert"]  # its package has a function of that name
X = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))


def texts_of(convert):
    """The texts of warnings about speed, which name this file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        convert()
    own = [str(one.message) for one in found if one.category is RuntimeWarning and one.filename == __file__]
    return [text for text in own if "slower than a float one" in text]


def of_these_seconds(monkeypatch, pairs):
    """Lets calls of the float and the packed network take these milliseconds, in turns; the list of those used."""
    waiting, used = iter(pairs), []

    def seconds_of(*sides):
        used.append(next(waiting))
        return tuple(1e-3 * value for value in used[-1])

    monkeypatch.setattr(speed, "_seconds_of", seconds_of)
    return used


@pytest.mark.parametrize(("packed_seconds", "warned"), [(1.04, False), (1.06, True), (0.5, False)])
def test_a_slower_network_is_warned_of(model, packed_seconds, warned, monkeypatch):
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    used = of_these_seconds(monkeypatch, [(9.0, 9.0)] + speed._ROUNDS * [(1.0, packed_seconds)])
    texts = texts_of(lambda: sk.convert(model, verify=X, compare_speed=True))
    assert len(used) == speed._ROUNDS + 1
    assert len(texts) == warned
    assert all("slower than a float one: 1.06 ms for these inputs where that takes 1 ms" in text for text in texts)


SLOWER, FASTER, EVEN = (1.0, 1.2), (1.0, 0.9), (1.0, 1.04)


@pytest.mark.parametrize(
    ("pairs", "compared", "warned"),
    [
        (30 * [SLOWER], 23, True),
        (15 * [SLOWER, SLOWER, SLOWER, FASTER], 58, True),
        (5 * [FASTER], 5, False),
        (5 * [EVEN], 5, False),
        (20 * [FASTER, SLOWER], 23, False),
    ],
)
def test_verified_networks_are_compared_as_long_as_they_seem_slower(model, pairs, compared, warned, monkeypatch):
    monkeypatch.setattr(convert_module, "_SECONDS", 60.0)
    used = of_these_seconds(monkeypatch, [(1.0, 9.0), *pairs])
    texts = texts_of(lambda: sk.convert(model, verify=X))
    assert used[1:] == pairs[:compared]
    assert len(texts) == warned


@pytest.mark.parametrize(
    ("pairs", "warned"), [([*8 * [SLOWER], FASTER], True), ([*7 * [SLOWER], *2 * [FASTER]], False)]
)
def test_when_time_is_out_nine_pairs_are_enough(model, pairs, warned, monkeypatch):
    used = of_these_seconds(monkeypatch, [SLOWER, *pairs])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        speed.warn_if_slower(model, nn.Identity(), X, seconds=0.0)
    assert len(used) == 1 + speed._LEAST_PAIRS
    assert any("slower than a float one" in str(one.message) for one in found) is warned


@pytest.mark.parametrize(("first", "compared"), [((9.0, 8.0), 1), ((8.0, 9.0), 1 + speed._LEAST_PAIRS)])
def test_of_large_networks_the_first_calls_decide_whether_more_are_worth_the_time(model, first, compared, monkeypatch):
    used = of_these_seconds(monkeypatch, [first, *15 * [SLOWER]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        speed.warn_if_slower(model, nn.Identity(), X, seconds=0.0)
    assert len(used) == compared


def test_nothing_is_timed_unless_asked_or_verified(model, monkeypatch):
    used = of_these_seconds(monkeypatch, [])
    sk.convert(model)
    sk.convert(model, example_inputs=X)
    sk.convert(model, verify=X, compare_speed=False)
    assert not used


def test_a_forward_that_needs_binary_layers_is_not_compared(model):
    forward = Layers.forward

    class Asking(Layers):
        def forward(self, x):
            assert self.image.stage is Stage.BINARY
            return forward(self, x)

    model.__class__ = Asking
    with pytest.warns(
        RuntimeWarning, match="speed was not compared .*: with torch's layers .* AttributeError: 'Conv2d'"
    ):
        sk.convert(model, verify=X)
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'stage'"):
        sk.convert(model, verify=X, compare_speed=True)


def test_the_sides_run_in_turns(monkeypatch):
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    calls = []
    sides = lambda: calls.append("float"), lambda: calls.append("packed")
    pairs = speed._pairs(*sides)
    assert calls == ["float", "packed"] * (speed._ROUNDS + 1)
    assert len(pairs) == speed._ROUNDS
    assert all(seconds > 0 for pair in pairs for seconds in pair)


def test_the_float_twin_has_torchs_layers(model):
    twin = speed.float_twin(model)
    assert not any(isinstance(m, (BinaryLayer, ProgressiveActivation)) for m in twin.modules())
    assert any(isinstance(m, BinaryLayer) for m in model.modules()), "the model stays as it is"
    assert twin.again is twin.shared
    expected = {name: (type(m), m.weight.shape) for name, m in Layers().named_modules() if hasattr(m, "weight")}
    assert {name: (type(m), m.weight.shape) for name, m in twin.named_modules() if hasattr(m, "weight")} == expected
    assert twin(X).shape == model(X).shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_float_twin_has_the_models_dtype_whatever_the_default(dtype, model):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert speed.float_twin(model)(X).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_without_inputs_there_is_nothing_to_time(model):
    with pytest.raises(ValueError, match="compare_speed=True needs inputs to time: give verify or example_inputs"):
        sk.convert(model, compare_speed=True)


class NegativeBelow(nn.Module):
    """An activation of a user's, which sk.prepare finds to be one that rounds to zero from below."""

    def forward(self, input):
        return input * torch.sigmoid(1.5 * input)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), NegativeBelow()])
def test_the_float_twin_has_the_activations_of_the_model_that_was_prepared(activation):
    layers = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), activation, nn.Linear(64, 64), nn.Linear(64, 4))
    x = torch.randn(2, 8)
    prepared, _ = sk.prepare(layers, x)
    assert isinstance(prepared[2], SignKeeping)
    twin = speed.float_twin(prepared.eval())
    assert type(twin[2]) is type(activation)
    assert torch.equal(twin[2](x), activation(x))
    assert isinstance(prepared[2], SignKeeping), "the model stays as it is"
