"""The nested values of a recipe's file and of those it extends, not checked beyond their types."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stompp_kernels.files import read_text

_VALUES = 100_000  # in a file


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the nested values of a recipe's file and of those it extends, not checked.

    ``name`` is the file's, unless it has another.
    """
    values = _read(Path(path))
    values.setdefault("name", Path(path).stem)
    return values


def _read(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    name = os.fspath(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {name!r}")
    if path.resolve() in below:
        raise ValueError(f"{name!r} extends itself")
    try:
        values = _parse(path)
    except RecursionError as error:
        raise ValueError(f"{name!r} is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name!r} must hold keys and values, got {type(values).__name__}")
    _check_plain(values, name, "", itertools.count(1))
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{name!r} must extend a file, got {base!r}")
    try:
        return _merge(_read(path.parent / base, (*below, path.resolve())), values)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{error}; {name!r} extends {base!r}") from error


def _check_plain(value: Any, name: str, key: str, count: Iterator[int]) -> None:
    """Checks that a file holds values of a recipe's types, and as many as one may: YAML's aliases multiply."""
    if next(count) > _VALUES:
        raise ValueError(f"{name!r} must hold at most {_VALUES} values, it has more")
    if isinstance(value, dict):
        for inner, item in value.items():
            if not isinstance(inner, str):
                raise ValueError(f"{name!r} must have strings as keys, got {inner!r} in {key or 'the file'!r}")
            _check_plain(item, name, f"{key}.{inner}" if key else inner, count)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, name, key, count)
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{name!r} must hold strings, numbers and booleans, got {key} = {value!r}")


def _parse(path: Path) -> Any:
    if path.suffix not in (".toml", ".json", ".yaml", ".yml"):
        raise ValueError(f"a recipe must be a .toml, .yaml, .yml or .json file, got {os.fspath(path)!r}")
    text = read_text(path)
    try:
        if path.suffix == ".toml":
            return toml().loads(text)
        if path.suffix == ".json":
            return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is no valid {path.suffix[1:].upper()}: {error}") from error
    try:
        import yaml
    except ImportError as error:
        raise ImportError('recipes in YAML need PyYAML: pip install "stompp_kernels[train]"') from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date that is none
        raise ValueError(f"{os.fspath(path)!r} is no valid YAML: {error}") from error


def toml() -> Any:
    """Returns the module that reads TOML."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    return tomllib


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
