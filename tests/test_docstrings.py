"""The docstrings of public names: each has a summary and examples that run, and docs/api lists the name."""

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import nn

import stompp_kernels as sk
from stompp_kernels import torch_release
from stompp_kernels.models import registry

ROOT = Path(__file__).parents[1]
PACKAGES = ("stompp_kernels", *(f"stompp_kernels.{name}" for name in ("ops", "nn", "models", "progression")))

# Methods that torch calls and documents: what each layer makes of them is not for readers of the API.
HOOKS = {"extra_repr", "get_extra_state", "set_extra_state", "__init__"}


def _directives() -> list[str]:
    """Every name that an autodoc directive of docs/api shows, in full."""
    found = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = ""
        for kind, name in re.findall(
            r"^\.\. (currentmodule|autofunction|autoclass|autodata):: (\S+)", page.read_text(), re.M
        ):
            if kind == "currentmodule":
                module = name
            else:
                found.append(name if name.startswith("stompp_kernels.") else f"{module}.{name}")
    return found


LISTED = _directives()


def _object(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _public() -> dict[str, object]:
    """Functions and classes that ``__all__`` or docs/api names, each once, by a name that it can be had by."""
    names = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    found: dict[int, tuple[str, object]] = {}
    for name in dict.fromkeys((*names, *LISTED)):
        thing = _object(name)
        if not inspect.ismodule(thing):
            found.setdefault(id(thing), (name, thing))
    return dict(found.values())


PUBLIC = _public()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_begins_with_a_sentence_and_has_an_example(name):
    text = inspect.cleandoc(PUBLIC[name].__doc__ or "")
    summary = text.partition("\n\n")[0]
    assert re.match(r"[A-Z0-9+`]", summary), summary
    assert summary.endswith("."), summary
    assert "\n" not in summary, f"the first line must be a sentence of its own: {summary}"
    assert ">>> " in text


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if inspect.isclass(thing)])
def test_every_public_method_has_a_docstring(name):
    for key, member in vars(PUBLIC[name]).items():
        documented = member if isinstance(member, property) else getattr(member, "__func__", member)
        if key not in HOOKS and not key.startswith("_") and isinstance(documented, (property, FunctionType)):
            assert (documented.__doc__ or "").partition("\n")[0].endswith("."), f"{name}.{key}"


SLOW = {"stompp_kernels.package_packed"}  # which compiles C++


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PUBLIC]
)
def test_the_examples_run(name, tmp_path, monkeypatch):
    if name == "stompp_kernels.package_packed" and torch_release.torch_is_before(torch_release.PACKAGES):
        pytest.skip("AOTInductor before torch 2.12 changes types")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # an example registers a model
    torch.manual_seed(0)
    names = {"sk": sk, "torch": torch, "nn": nn}  # docs/api/index.md says so, and ops.md the rest
    if PUBLIC[name].__module__.startswith("stompp_kernels.ops"):
        names |= {key: getattr(sk.ops, key) for key in sk.ops.__all__}
    examples = doctest.DocTestParser().get_doctest(PUBLIC[name].__doc__, names, name, None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_api_pages_list_every_public_name():
    listed = {id(_object(name)) for name in LISTED}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            assert inspect.ismodule(thing) or id(thing) in listed, f"{package}.{name}"
    assert len(LISTED) == len(set(LISTED))


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda text: None).failed == 1
