"""Functions of a user's own, named in a recipe as "module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def is_named(name: str) -> bool:
    """Returns whether a name is "module:function", and none of those registered."""
    return ":" in name


def named_function(what: str, name: str) -> Callable[..., Any]:
    """Imports a function; modules in the working folder are found too.

    Args:
        what: the key that holds the name, for errors.
        name: "module:function"; dots lead into packages, and on the right into classes.

    Raises:
        ValueError: there is no such module or function, or it is none.
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{what} must be 'module:function', but {module_name!r} cannot be imported: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} must be 'module:function', but {module_name!r} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{what} must name a function or a class, got {type(found).__name__} for {name!r}")
    return found
