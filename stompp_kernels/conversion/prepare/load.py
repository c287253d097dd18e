"""Loads the folders that :mod:`stompp_kernels.conversion.prepare.folder` describes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from stompp_kernels.conversion.prepare.folder import CONFIG, FORMAT, INPUTS, MARK, SETTINGS, VERSION
from stompp_kernels.conversion.prepare.prepare import prepare

_MOST_BYTES = 1 << 20  # of a JSON file


def load_prepared(folder: str | Path) -> nn.Module:
    """Loads the prepared model that ``save_pretrained``, ``Trainer.save_model`` or a Trainer's checkpoint wrote.

    Its masks and stages are those that were saved; go on with ``sk.StoMPP`` and its state dict, or with
    ``sk.convert`` once everything is committed. Nothing in the folder is run: the class is one of transformers' own,
    and the rest are settings, numbers and tensors.

    Args:
        folder: with ``config.json``, weights in safetensors, ``stompp_prepared.json`` and its example inputs.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: a file is missing.
        ValueError: a file does not hold what it must; the message names it.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> inputs = {"input_ids": torch.randint(50, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
        >>> model, _ = sk.prepare(model, inputs, keep=("embeddings", "pooler"))
        >>> model.save_pretrained("prepared")
        >>> loaded = sk.load_prepared("prepared")
        >>> type(loaded.bert.encoder.layer[0].output.dense).__name__
        'BinaryLinear'
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError('load_prepared needs transformers: pip install "stompp_kernels[transformers]"') from error
    folder = Path(folder)
    notes = _checked_notes(folder / SETTINGS)
    kind = _model_class(transformers, notes["class"], folder / SETTINGS)
    config = {k: v for k, v in _read_json(folder / CONFIG).items() if k not in (MARK, "auto_map")}
    if config.get("model_type") != kind.config_class.model_type:
        raise ValueError(f"{folder / CONFIG}: model_type must be {kind.config_class.model_type!r} for {notes['class']}")
    inputs = _read_inputs(folder / INPUTS, notes["inputs"])
    try:
        model, _ = prepare(kind._from_config(kind.config_class.from_dict(config)), inputs, **notes["settings"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no model that can be prepared as it says: {error}") from error
    _load_weights(model, folder)
    return model.eval()


def _model_class(transformers: Any, name: str, path: Path) -> Any:
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"{path}: class must be a model of transformers, got {name!r}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} must be at most {_MOST_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if type(value) is not dict:
        raise ValueError(f"{path} must hold an object")
    return value


def _checked_notes(path: Path) -> dict[str, Any]:
    notes = _read_json(path)
    if set(notes) != {"format", "version", "class", "settings", "inputs"} or notes["format"] != FORMAT:
        raise ValueError(f"{path} must have format, version, class, settings and inputs of {FORMAT}")
    if notes["version"] != VERSION:
        raise ValueError(f"{path}: version must be {VERSION}, got {notes['version']!r}")
    if notes["inputs"] not in ("tensor", "tuple", "dict"):
        raise ValueError(f"{path}: inputs must be tensor, tuple or dict, got {notes['inputs']!r}")
    if type(notes["class"]) is not str or not notes["class"].isidentifier():
        raise ValueError(f"{path}: class must be a name, got {notes['class']!r}")
    known = set(inspect.signature(prepare).parameters) - {"model", "example_inputs"}
    if type(notes["settings"]) is not dict or not set(notes["settings"]) <= known:
        raise ValueError(f"{path}: settings must be among {sorted(known)}, got {notes['settings']!r}")
    for name, value in notes["settings"].items():
        values = value if type(value) is list else [value]
        if not all(v is None or type(v) in (bool, int, float, str) for v in values):
            raise ValueError(f"{path}: {name} must be a number, a text or a list of them, got {value!r}")
    return notes


def _read_inputs(path: Path, kind: str) -> Any:
    tensors = _read_tensors(path)
    if kind == "dict":
        return tensors
    ordered = tuple(tensors[str(i)] for i in range(len(tensors)) if str(i) in tensors)
    if len(ordered) != len(tensors) or not ordered or (kind == "tensor" and len(ordered) != 1):
        raise ValueError(f"{path} must hold the inputs 0, 1, ... of a {kind}, got {sorted(tensors)}")
    return ordered[0] if kind == "tensor" else ordered


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _load_weights(model: nn.Module, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(map(str, dict(_read_json(index).get("weight_map", {})).values())))
    if outside := [name for name in files if Path(name).name != name]:
        raise ValueError(f"{index} must name files of its folder, got {outside[0]!r}")
    state: dict[str, Tensor] = {}
    for name in files:
        state.update(_read_tensors(folder / name))
    own = model.state_dict()
    loaded = {t.data_ptr() for name, t in own.items() if name in state and t.numel()}
    missing = [name for name, t in own.items() if name not in state and t.data_ptr() not in loaded]  # but for ties
    if missing or state.keys() - own.keys():
        raise ValueError(
            f"the weights in {folder} do not fit the model: missing {missing[:3]}, "
            f"unknown {sorted(state.keys() - own.keys())[:3]}"
        )
    try:
        with torch.no_grad():
            model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the model: {error}") from error
