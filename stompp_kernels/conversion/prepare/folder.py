"""Folders of prepared transformers models: what ``save_pretrained`` and ``Trainer.save_model`` write.

transformers' ``from_pretrained`` would build the float network and drop what it does not know. So the config of such a
folder refuses it, and a file beside it says how the model was prepared: no code, only settings of ``sk.prepare``.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from stompp_kernels.progression.example_run import as_arguments

SETTINGS, INPUTS, CONFIG = "stompp_prepared.json", "stompp_example_inputs.safetensors", "config.json"
FORMAT, VERSION = "stompp_kernels.prepared", 1
# transformers refuses a config whose entry of this name is no name of a weights file, and shows it.
MARK = "transformers_weights"
_REFUSAL = "none: the model was prepared by stompp_kernels; load it with stompp_kernels.load_prepared(folder)"
_ATTRIBUTE = "_stompp_prepared"


@dataclass(frozen=True)
class Prepared:
    """How a model was prepared: settings of ``sk.prepare`` that JSON holds, and its example inputs."""

    settings: dict[str, Any]
    example_inputs: Any


def remembers_settings(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """``prepare``, whose result writes folders that :func:`load_prepared` reads if it is a model of transformers."""
    signature = inspect.signature(prepare)

    @functools.wraps(prepare)
    def prepare_and_remember(*args: Any, **kwargs: Any) -> Any:
        result = prepare(*args, **kwargs)
        model = result[0]
        if hasattr(model, "save_pretrained") and hasattr(model, "config"):
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            settings = {
                name: value for name, value in given.arguments.items() if name not in ("model", "example_inputs")
            }
            _mark(model, Prepared(settings, given.arguments["example_inputs"]))
        return result

    return prepare_and_remember


def _mark(model: nn.Module, prepared: Prepared) -> None:
    model.__dict__[_ATTRIBUTE] = prepared
    # A bound method: it is copied with the model, and then saves the copy.
    model.__dict__["save_pretrained"] = types.MethodType(save_pretrained, model)


def save_pretrained(model: Any, save_directory: Any, **kwargs: Any) -> None:
    """Saves a prepared model as transformers does, with what :func:`load_prepared` needs.

    Raises:
        ValueError: the model was prepared with inputs other than tensors, or ``push_to_hub`` is given.
    """
    if kwargs.get("push_to_hub"):
        raise ValueError("push_to_hub must be False for a prepared model, got True: save the folder, then upload it")
    prepared: Prepared = model.__dict__[_ATTRIBUTE]
    inputs, kind = _named_tensors(prepared.example_inputs)
    text = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "class": type(model).__name__,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in prepared.settings.items()},
            "inputs": kind,
        },
        indent=2,
    )
    type(model).save_pretrained(model, save_directory, **kwargs)
    folder = Path(save_directory)
    if kwargs.get("is_main_process", True):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, MARK: _REFUSAL}, indent=2) + "\n")
        save_file(inputs, folder / INPUTS)
        (folder / SETTINGS).write_text(text + "\n")


def _named_tensors(example_inputs: Any) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and whether they were a tensor, a tuple or a dict."""
    args, kwargs = as_arguments(example_inputs)
    kind = "dict" if kwargs else "tuple" if isinstance(example_inputs, tuple) else "tensor"
    named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    tensors = {name: value for name, value in named.items() if value is not None}
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"a prepared model can be saved if its example_inputs were tensors, got others for {others}")
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, kind
