"""Classes of models that a packed file may name, beside those of transformers.

A model that keeps its own forward is saved as the name of its class, arguments of its constructor, and the config of
the transformers model inside it. The module that defines such a class registers it here; the code that writes and
reads files finds it here and imports no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class FileClass:
    """How a file describes a model of one class.

    Attributes:
        kind: the class. Its constructor takes ``config``, a mapping with a ``model_type``, and the arguments.
        config_of: returns the config of the transformers model inside a model of this class.
        arguments: the name of each further argument that a file holds, and a function that reads it from a model.
    """

    kind: type[nn.Module]
    config_of: Callable[[Any], Any]
    arguments: Mapping[str, Callable[[Any], Any]]


_CLASSES: dict[str, FileClass] = {}


def register_file_class(
    kind: type[nn.Module], config_of: Callable[[Any], Any], arguments: Mapping[str, Callable[[Any], Any]]
) -> None:
    """Lets packed files name a class; the arguments are the attributes of :class:`FileClass`.

    Raises:
        ValueError: another class of this name is registered.
    """
    if kind.__name__ in _CLASSES:
        raise ValueError(f"kind must have a new name, got {kind.__name__!r}, which is registered already")
    _CLASSES[kind.__name__] = FileClass(kind, config_of, dict(arguments))


def file_classes() -> Mapping[str, FileClass]:
    """The registered classes by name."""
    return _CLASSES
