"""Every public name of stompp_kernels.ops is documented, and the examples of its docstrings run."""

import dataclasses
import doctest
import inspect
import re

import pytest
import torch

from stompp_kernels import ops

# As in torch's docs, `...` stands for anything, and spaces may differ.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names():
    """Names of functions, classes and their public methods and properties, with what is documented."""
    for name in ops.__all__:
        value = getattr(ops, name)
        yield name, value
        if not inspect.isclass(value):
            continue
        for member, attribute in vars(value).items():
            is_code = isinstance(attribute, (classmethod, staticmethod, property)) or inspect.isfunction(attribute)
            if is_code and not member.startswith("_"):
                yield f"{name}.{member}", getattr(value, member)


NAMES = dict(public_names())


def test_methods_are_among_the_names():
    assert {"PackedWeight.words", "PackedWeight.from_words", "PackedWeight.nbytes", "Affine.check"} <= NAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_an_example(name):
    text = inspect.getdoc(NAMES[name])
    assert text is not None, f"{name} has no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"the first line of {name} must be a sentence, got {first!r}"
    assert not re.match(r"(Of|That|Whether)\b", first), first
    assert re.search(r"^Example:\n    >>> ", text, flags=re.MULTILINE), f"{name} has no example"


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name):
    torch.manual_seed(0)
    names = {"torch": torch, **{public: getattr(ops, public) for public in ops.__all__}}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]), names, name, None, None)
    report = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", [name for name in ops.__all__ if dataclasses.is_dataclass(getattr(ops, name))])
def test_fields_are_documented(name):
    text = inspect.getdoc(getattr(ops, name))
    for field in dataclasses.fields(getattr(ops, name)):
        assert re.search(rf"\b{field.name}\b.*:", text) or name == "BinaryWeight", f"{name}.{field.name}"


@pytest.mark.parametrize("name", [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))])
def test_arguments_are_documented(name):
    text = inspect.getdoc(getattr(ops, name))
    for argument in inspect.signature(getattr(ops, name)).parameters:
        assert re.search(rf"\b{argument}\b", text), f"{name} says nothing about {argument}"
