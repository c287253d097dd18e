"""Models by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from stompp_kernels.models.common import check_sizes
from stompp_kernels.named import is_named, named_function

Inputs: TypeAlias = Tensor | dict[str, Tensor]


def images(in_channels: int = 3, image_size: int = 32) -> Tensor:
    """Makes one image of noise, the same each time: float32 [1, in_channels, image_size, image_size]."""
    check_sizes(in_channels=in_channels, image_size=image_size)
    return torch.randn(1, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        name: what :func:`create` knows it by.
        factory: makes the float model; ``num_classes`` and the model's options are its keyword arguments.
        description: one line.
        example: makes an input for one sample; its keyword arguments are options too, all with defaults.
        prepare_options: arguments that ``sk.prepare`` gets for this model.

    Example:
        >>> found = sk.models.entry("mlp")
        >>> found.name, found.options()["widths"]
        ('mlp', (512, 512, 512))
    """

    name: str
    factory: Callable[..., nn.Module]
    description: str
    example: Callable[..., Inputs]
    prepare_options: Mapping[str, Any]

    def options(self) -> dict[str, Any]:
        """Returns the model's options and their defaults; the factory's count where the example has other ones."""
        return {**_keywords(self.example), **_keywords(self.factory, without=("num_classes",))}


_ENTRIES: dict[str, Entry] = {}
_preparation: Callable[..., tuple[nn.Module, Any]] | None = None


def prepare_models_by(prepare: Callable[..., tuple[nn.Module, Any]]) -> None:
    """Sets what :func:`create` prepares models with: ``sk.prepare``, which lies above this package and imports it not.

    ``stompp_kernels/__init__.py`` calls this, so that no model need import what lies above.
    """
    global _preparation
    _preparation = prepare


def register(
    name: str,
    factory: Callable[..., nn.Module],
    description: str,
    *,
    example: Callable[..., Inputs] = images,
    prepare_options: Mapping[str, Any] | None = None,
) -> None:
    """Adds a model to the registry; the arguments are the attributes of :class:`Entry`.

    Raises:
        ValueError: the name is taken.
        TypeError: ``factory`` has no argument ``num_classes``.

    Example:
        >>> def factory(num_classes=10, width=32):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, num_classes))
        >>> sk.models.register("my_net", factory, "One hidden layer")
        >>> sk.models.create("my_net", 5)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    if name in _ENTRIES:
        raise ValueError(f"name must be new, got {name!r}, which is registered already")
    if "num_classes" not in _keywords(factory):
        raise TypeError(f"factory of model {name!r} must take num_classes, it takes {inspect.signature(factory)}")
    _ENTRIES[name] = Entry(name, factory, description, example, dict(prepare_options or {}))


def list_models() -> list[str]:
    """Lists the names of the registered models, in alphabetical order.

    Example:
        >>> "resnet18" in sk.models.list()
        True
    """
    return sorted(_ENTRIES)


def entry(name: str) -> Entry:
    """Returns what is registered under a name, or makes an entry of a function of yours, named "module:function".

    Raises:
        ValueError: nothing is, or the function takes no ``num_classes``.

    Example:
        >>> sk.models.entry("resnet20").description
        'ResNet-20 for CIFAR: three stages of 16, 32 and 64 channels'
    """
    if is_named(name):
        factory = named_function("model.name", name)
        if "num_classes" not in _keywords(factory):
            raise ValueError(f"{name!r} must take num_classes, it takes {inspect.signature(factory)}")
        return Entry(name, factory, (inspect.getdoc(factory) or name).partition("\n")[0], images, {})
    if name not in _ENTRIES:
        raise ValueError(f"name must be one of {', '.join(list_models())}, got {name!r}")
    return _ENTRIES[name]


def create(
    name: str,
    num_classes: int = 10,
    *,
    binarize: str | None = None,
    prepare_options: Mapping[str, Any] | None = None,
    example: Any = None,
    state_dict: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> nn.Module:
    """Makes a new model of the registry.

    Args:
        name: one of ``sk.models.list()``, or "module:function" for a function of yours.
        num_classes: outputs.
        binarize: None: the float model. "both" or "weights": prepared for StoMPP, as by ``sk.prepare``.
        prepare_options: arguments of ``sk.prepare`` that take the place of the entry's own.
        example: inputs that it is prepared with, which an ``input_scale`` wants to be real ones; None: those of
            :func:`example_inputs`.
        state_dict: weights of the float model, loaded before it is prepared; a prepared model's serve too. Those of
            another shape, as of a classifier for other classes, are left out with a RuntimeWarning.
        options: of the model; ``entry(name).options()`` has their names and defaults.

    Returns:
        A model of images [B, C, H, W], or of token ids and an attention mask given by keyword, that returns logits
        [B, num_classes].

    Raises:
        ValueError: a name, an option or a value is not allowed; the message says what is.

    Example:
        >>> model = sk.models.create("mlp", 10, binarize="both", widths=(32, 32))
        >>> model(torch.randn(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """
    found = entry(name)
    noise = example_inputs(name, **options)
    check_sizes(num_classes=num_classes)
    if binarize is None and prepare_options:
        raise ValueError(f"binarize must be 'both' or 'weights' with prepare_options, got None with {prepare_options}")
    preparation = {**found.prepare_options, **(prepare_options or {})}
    assert _preparation is not None
    known = _keywords(_preparation, without=("model", "example_inputs", "binarize"))
    _check_known("prepare option", preparation, known)
    model = found.factory(num_classes=num_classes, **_accepted(found.factory, options))
    if state_dict is not None:
        _load(model, state_dict)
    if binarize is None:
        return model
    return _preparation(model, noise if example is None else example, binarize=binarize, **preparation)[0]


def _load(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"state_dict must have the weights of the model, it lacks {len(missing)}, such as {missing[0]!r}"
        )
    other = [key for key, value in own.items() if key in given and given[key].shape != value.shape]
    if other:
        warnings.warn(
            f"of state_dict {', '.join(other)} are left out: their shapes are not the model's, such as "
            f"{list(given[other[0]].shape)} for {list(own[other[0]].shape)}",
            RuntimeWarning,
            stacklevel=3,
        )
    model.load_state_dict({key: given[key] for key in own if key in given and key not in other}, strict=False)


def example_inputs(name: str, **options: Any) -> Inputs:
    """Makes an input for one sample of the model with these options: a tensor, or a dict of keyword arguments.

    Raises:
        ValueError: the name or an option is not known.

    Example:
        >>> sk.models.example_inputs("resnet18_cifar").shape
        torch.Size([1, 3, 32, 32])
    """
    found = entry(name)
    known = found.options()
    _check_known(f"option of model {name!r}", options, known)
    return found.example(**_accepted(found.example, {**known, **options}))


def _keywords(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Returns names and defaults of what a function takes by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.items()
    return {key: p.default for key, p in parameters if p.kind in kinds and key not in without}


def _accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in _keywords(function)}


def _check_known(what: str, given: Collection[str], allowed: Collection[str]) -> None:
    for key in given:
        if key not in allowed:
            raise ValueError(f"{key!r} is no {what}; allowed are {', '.join(sorted(allowed))}")
