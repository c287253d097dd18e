"""Fake kernels refuse what the compiled ones refuse, and else give results of the same shapes, types and strides."""

import random
import re

import pytest
import torch
from helpers import generator
from test_torch_integration import as_tuple, hostile, sample_arguments

from stompp_kernels import native
from stompp_kernels.ops.schemas import SCHEMAS

ops = torch.ops.stompp

needs_library = pytest.mark.skipif(native.library is None, reason="the compiled kernels' refusals are compared")


def outcome(name, arguments):
    """The results, or the error, of a call."""
    try:
        out = getattr(ops, name)(*arguments)
    except RuntimeError as error:  # also torch's own, of arguments that do not fit the schema
        return str(error)
    return [] if out is None else [t for t in as_tuple(out) if t is not None]


def on_meta(arguments):
    """The same without data; strides as they are."""

    def move(a):
        return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta") if torch.is_tensor(a) else a

    return [move(a) for a in arguments]


def assert_same_outcome(name, arguments):
    real, fake = outcome(name, arguments), outcome(name, on_meta(arguments))
    if isinstance(real, str):
        if re.search(r"packed weight|draw\[", real):  # what only data shows
            return "data"
        assert isinstance(fake, str), f"{name}: the kernel says {real!r}, the fake one gives a result: {arguments}"
        return "refused"
    assert not isinstance(fake, str), f"{name}: the kernel gives a result, the fake one says {fake!r}: {arguments}"
    for a, b in zip(real, fake, strict=True):
        assert a.dtype == b.dtype, name
        if name in ("pack_weight", "pack_conv_weight", "pack_weight_words"):
            continue  # opaque bytes, as many as the device's kernels read
        assert a.shape == b.shape, name
        assert a.numel() == 0 or a.stride() == b.stride(), name
    return "answered"


@needs_library
@pytest.mark.parametrize("name", SCHEMAS)
def test_hostile_arguments_have_the_same_outcome_without_data(implementation, name):
    rng, samples = random.Random(name), sample_arguments(generator(7))[name]
    outcomes = []
    for _ in range(300):
        arguments = [a.detach() if torch.is_tensor(a) else a for a in rng.choice(samples)]
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(arguments))
            arguments[at] = hostile(rng, arguments[at])
        outcomes.append(assert_same_outcome(name, arguments))
    assert "answered" in outcomes
    assert "refused" in outcomes


LISTS = {name for name, schema in SCHEMAS.items() if "int[" in schema}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_of_a_wrong_length_are_named(name, device):
    if device == "cpu" and native.library is None:
        pytest.skip("the compiled kernels' refusals are compared")
    for arguments in sample_arguments(generator(7))[name]:
        arguments = list(arguments) if device == "cpu" else on_meta(arguments)
        for at, value in enumerate(arguments):
            if not isinstance(value, (list, tuple)):
                continue
            for wrong in (value[:-1], [], [*value, 1]):
                changed = [*arguments[:at], list(wrong), *arguments[at + 1 :]]
                with pytest.raises(RuntimeError, match=r"two values|shape|weight must be|strides|expected"):
                    getattr(ops, name)(*changed)


@pytest.mark.parametrize("name", SCHEMAS)
def test_scalars_have_no_last_dimension(name):
    for arguments in sample_arguments(generator(7))[name][:1]:
        fake = on_meta(arguments)
        for at, value in enumerate(fake):
            if torch.is_tensor(value) and value.dim() > 0 and "progressive" not in name:
                scalar = torch.empty((), dtype=value.dtype, device="meta")
                with pytest.raises(RuntimeError, match=name):
                    getattr(ops, name)(*fake[:at], scalar, *fake[at + 1 :])
