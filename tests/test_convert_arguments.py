"""What a packed network fixes of its arguments is what the model does with them, is said, and anything else refused."""

import pickle

import pytest
import torch
from models_for_tests import randomize_norms, seeded, set_stage
from torch import nn

import stompp_kernels as sk

X = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))


def body():
    return nn.Sequential(
        *(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU()),
        *(nn.Linear(40, 40), nn.BatchNorm1d(40), nn.ReLU()),
        nn.Linear(40, 5),
    )


def committed(forward, *example):
    """A committed model with this forward, given the features of its body and the forward's own arguments."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body()

    Net.forward = forward
    seeded(0)
    model, _ = sk.prepare(Net(), (X, *example))
    return set_stage(randomize_norms(model, torch.Generator().manual_seed(1)), sk.nn.Stage.BINARY).eval()


def assert_equal(packed, model, *args, **kwargs):
    with torch.no_grad():
        torch.testing.assert_close(packed(*args, **kwargs), model(*args, **kwargs), rtol=1e-5, atol=1e-5)


def negated_if_given(self, x, flip=None):
    return self.body(x) if flip is None else -self.body(x)


def negated_if_true(self, x, flip=False):
    return -self.body(x) if flip else self.body(x)


def scaled(self, x, scale=1.0):
    return self.body(x) * scale if scale != 1.0 else self.body(x)


def reduced(self, x, reduction="mean"):
    y = self.body(x)
    return y.mean(1) if reduction == "mean" else y.sum(1)


def keyword_only(self, x, *, flip=None):
    return self.body(x) if flip is None else -self.body(x)


def of_another_type(self, x, dims=(1,)):
    return self.body(x).sum(dims)


def of_a_tensor(self, x, scale=torch.ones(1) * 2):  # noqa: B008
    return self.body(x) * scale


DEFAULTS = {
    negated_if_given: (None, torch.ones(1)),
    negated_if_true: (False, True),
    scaled: (1.0, 2.0),
    reduced: ("mean", "sum"),
    of_another_type: ((1,), (0,)),
    of_a_tensor: (None, torch.ones(1)),
}


@pytest.mark.parametrize("forward", DEFAULTS, ids=lambda f: f.__name__)
def test_optional_arguments_are_their_defaults(forward):
    model, (default, other) = committed(forward), DEFAULTS[forward]
    name = list(forward.__code__.co_varnames)[2]
    packed = sk.convert(model)
    assert_equal(packed, model, X)
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*example_inputs"):
        packed(X, other)
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        packed(X, **{name: other})
    (said,) = sk.explain(packed).arguments
    assert said.startswith(f"{name} is ")
    assert said in str(sk.explain(packed))
    if default is not None and not isinstance(default, tuple):
        assert_equal(packed, model, X, default)
    sk.convert(model, verify=X)


def test_a_keyword_only_argument():
    model = committed(keyword_only)
    packed = sk.convert(model, verify=X)
    assert_equal(packed, model, X)
    with pytest.raises(ValueError, match="flip must be None"):
        packed(X, flip=True)
    packed = sk.convert(model, verify={"x": X, "flip": True})
    assert_equal(packed, model, X, flip=True)
    with pytest.raises(ValueError, match=r"flip must be True, .* got None"):
        packed(X)


@pytest.mark.parametrize(("forward", "value", "other"), [(negated_if_true, True, False), (reduced, "sum", "mean")])
def test_constants_that_example_inputs_give(forward, value, other):
    model = committed(forward)
    for given in ({"example_inputs": (X, value)}, {"verify": (X, value)}):
        packed = sk.convert(model, **given)
        assert_equal(packed, model, X, value)
        for call in (lambda packed=packed: packed(X), lambda packed=packed: packed(X, other)):
            with pytest.raises(ValueError, match=f"must be {value!r}"):
                call()


def test_a_tensor_that_example_inputs_give_is_an_input():
    model = committed(lambda self, x, mask=None: self.body(x) if mask is None else self.body(x) * mask)
    packed = sk.convert(model, example_inputs=(X, torch.ones(5)))
    for mask in (torch.zeros(5), torch.arange(5.0)):
        assert_equal(packed, model, X, mask)
        assert_equal(packed, model, X, mask=mask)
    with pytest.raises(ValueError, match="mask must be given"):
        packed(X)
    assert sk.explain(packed).arguments == ("mask is given",)


def test_a_number_that_example_inputs_give_is_an_input_if_it_can_be():
    model = committed(lambda self, x, scale=1.0: self.body(x) * scale)
    packed = sk.convert(model, example_inputs={"x": X, "scale": 2.0})
    for scale in (2.0, 3.0):
        assert_equal(packed, model, X, scale)
    assert_equal(packed, model, X)
    model = committed(scaled)
    packed = sk.convert(model, example_inputs={"x": X, "scale": 2.0})
    assert_equal(packed, model, X, 2.0)
    for arguments in ((X, 3.0), (X,)):
        with pytest.raises(ValueError, match=r"scale must be 2\.0"):
            packed(*arguments)


def test_arguments_after_optional_ones():
    def forward(self, x, flip=None, shift=None, *, scale):
        y = self.body(x) * scale
        y = y if flip is None else -y
        return y if shift is None else y + shift

    seeded(0)
    model = committed(lambda self, x: self.body(x))
    type(model).forward = forward
    packed = sk.convert(model)
    assert_equal(packed, model, X, scale=torch.ones(1))
    with pytest.raises(ValueError, match="scale must be given"):
        packed(X)
    packed = sk.convert(model, verify={"x": X, "shift": torch.ones(5), "scale": torch.ones(1)})
    assert_equal(packed, model, X, shift=torch.arange(5.0), scale=2 * torch.ones(1))
    with pytest.raises(ValueError, match="flip must be None"):
        packed(X, True, torch.ones(5), scale=torch.ones(1))


def test_any_number_of_arguments():
    model = committed(lambda self, x, *others, **more: self.body(x) + sum(others) + sum(more.values()))
    packed = sk.convert(model, verify=X)
    assert_equal(packed, model, X)
    for args, kwargs in (((X, torch.ones(5)), {}), ((X,), {"more": torch.ones(5)})):
        with pytest.raises(TypeError, match="argument"):
            packed(*args, **kwargs)
    packed = sk.convert(model, verify=(X, torch.ones(5), torch.zeros(5)))
    assert_equal(packed, model, X, torch.arange(5.0), torch.ones(5))
    with pytest.raises(TypeError, match="argument"):
        packed(X, torch.ones(5))
    packed = sk.convert(model, verify={"x": X, "a": torch.ones(5), "b": torch.zeros(5)})
    assert_equal(packed, model, X, b=torch.arange(5.0), a=torch.ones(5))


def test_lists_and_dicts():
    def forward(self, inputs):
        y = self.body(inputs["x"])
        for shift in inputs["shifts"]:
            y = y + shift
        return -y if inputs.get("flip") else y

    seeded(0)
    model = committed(lambda self, x: self.body(x))
    type(model).forward = forward

    def inputs(shifts, flip=True):
        return {"x": X, "shifts": [torch.full((5,), float(shift)) for shift in shifts], "flip": flip}

    packed = sk.convert(model, verify=(inputs([1, 2]),))
    assert_equal(packed, model, inputs([3, 4]))
    for wrong, message in (
        (inputs([1, 2, 3]), r"inputs\['shifts'\] must be a list or tuple of 2, got a list of 3"),
        (inputs([1, 2], False), r"inputs\['flip'\] must be True, .* got False"),
        ({"x": X}, "inputs must be a dict of 'x', 'shifts', 'flip', got a dict of 'x'"),
        (X, "inputs must be a dict of .*, got a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            packed(wrong)
    assert sk.explain(packed).arguments == (
        "inputs is a dict of 'x', 'shifts', 'flip'",
        "inputs['shifts'] is a list of 2",
        "inputs['flip'] is True",
    )


def test_optional_arguments_of_submodules_are_what_they_are_given():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body()

        def forward(self, x, flip=None):
            return negated_if_given(self, x, flip)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.flipped = Block(), Block()

        def forward(self, x):
            return self.plain(x) + 2 * self.flipped(x, True)

    seeded(0)
    model, _ = sk.prepare(Net(), X)
    set_stage(model, sk.nn.Stage.BINARY).eval()
    assert_equal(sk.convert(model, verify=X), model, X)


def test_checks_survive_copies_and_pickles():
    model = committed(negated_if_given)
    packed = pickle.loads(pickle.dumps(sk.convert(model)))
    assert_equal(packed, model, X)
    with pytest.raises(ValueError, match="flip must be None"):
        packed(X, True)
    assert sk.explain(packed).arguments == ("flip is None",)


def test_wrong_example_inputs_are_refused():
    model = committed(negated_if_given)
    with pytest.raises(TypeError, match=r"example_inputs must fit the model's forward: .*'more'"):
        sk.convert(model, example_inputs={"x": X, "more": 1})
    with pytest.raises(ValueError, match=r"example_inputs must be tensors, .* got set for flip"):
        sk.convert(model, example_inputs={"x": X, "flip": {1}})


def test_of_optional_arguments_alone_the_first_is_given():
    model = committed(negated_if_given)
    type(model).forward = lambda self, x=None, flip=None: negated_if_given(self, x, flip)
    for given in (None, X):
        packed = sk.convert(model, verify=given)
        assert_equal(packed, model, X)
        assert sk.explain(packed).arguments == ("x is given", "flip is None")
        with pytest.raises(ValueError, match="x must be given"):
            packed()


def test_the_reason_names_arguments_that_were_left_out():
    model = committed(negated_if_given)
    type(model).forward = lambda self, x, mask=None: self.body(x * mask.sum())
    with pytest.raises(ValueError, match=r"cannot be traced .*\(with the defaults of \['mask'\]; example_inputs can"):
        sk.convert(model)
    assert_equal(sk.convert(model, verify=(X, torch.ones(2))), model, X, torch.ones(3))


def test_a_file_keeps_what_was_fixed(tmp_path):
    """Items of a dict, and checks that stand between inputs: in the file all inputs come first."""
    model = committed(negated_if_given)

    def forward(self, inputs, flip=None, scale=2, name="a"):
        return negated_if_given(self, inputs["x"], flip) * scale

    type(model).forward = forward
    packed = sk.convert(model, verify={"inputs": {"x": X}})
    sk.save_packed(packed, tmp_path / "a.safetensors")
    loaded = sk.load_packed(tmp_path / "a.safetensors")
    assert torch.equal(loaded({"x": X}), packed({"x": X}))
    for other in ({"flip": 1}, {"scale": 3}, {"name": "b"}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} must be"):
            loaded({"x": X}, **other)
    with pytest.raises(ValueError, match="inputs must be a dict of 'x'"):
        loaded({"y": X})
