"""What the checkpoint of a run must hold, checked against the run that takes it over.

A checkpoint may come from a stranger, or from another run: whatever does not fit is named before any of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn import Stage
from stompp_kernels.ops.checks import SURROGATES
from stompp_kernels.training.checkpoint import BEST

_EXTRA_STATE = "_extra_state"  # of a masked module: stage, surrogate, sizes of its mask
_OPTIMIZER_VALUES = {"SGD": ("momentum_buffer",), "Adam": ("step", "exp_avg", "exp_avg_sq")}
_OPTIMIZER_VALUES["AdamW"] = _OPTIMIZER_VALUES["Adam"]


class RunState:
    """A loaded checkpoint of a run; every method raises a ValueError that names the file and the key.

    Args:
        content: what ``load_checkpoint`` returned.
        path: of the file, for errors.
        file: the name that it had when it was written: a best checkpoint is no last one.
    """

    def __init__(self, content: Mapping[str, Any], path: str, file: str) -> None:
        self.content, self._path = content, path
        written_as = self.get("file", str, file)
        if written_as != file:
            raise self._error("file", f"must be {file!r}, got {written_as!r}: checkpoints were swapped")
        self.recipe = self.get("recipe", dict)
        if file != BEST:
            for key in ("optimizer", "progression", "diagnostics"):
                self.get(key, dict)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Returns the value of a key, of a type; ``default`` if there is none."""
        value = self.content.get(key, default)
        if value is None:
            raise self._error(key, "is missing")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self._error(key, f"must be of type {kind.__name__}, got {_said(value)}")
        return value

    def step(self, total_steps: int) -> int:
        """The step after which the checkpoint was written."""
        step = self.get("step", int)
        if not 0 <= step <= total_steps:
            raise self._error("step", f"must be in [0, {total_steps}], got {step}")
        progression = self.content["progression"]
        if progression.get("step") != step or not isinstance(progression.get("config"), dict):
            raise self._error("progression", f"must be the state of a progression at step {step}")
        return step

    def figures(self) -> tuple[float, float, tuple[int, float]]:
        """Seconds, accuracy of the last evaluation (NaN before the first), and frontier and accuracy of the best."""
        best = self.get("best", list)
        if len(best) != 2 or not isinstance(best[0], int) or not isinstance(best[1], float):
            raise self._error("best", f"must be a frontier and an accuracy, got {_said(best)}")
        seconds = self.get("seconds", float)
        if not math.isfinite(seconds) or seconds < 0:
            raise self._error("seconds", f"must be finite and not negative, got {seconds}")
        return seconds, self.get("accuracy", float), (best[0], best[1])

    def model(self, model: nn.Module, name: str = "model") -> dict[str, Any]:
        """Returns the state dict of a name, which fits ``model`` in names, shapes and types."""
        saved, own = self.get(name, dict), model.state_dict()
        for key in own.keys() - saved.keys():
            raise self._error(f"{name}.{key}", "is missing")
        for key in saved.keys() - own.keys():
            raise self._error(f"{name}.{key}", "is unknown to the recipe's model")
        for key, tensor in own.items():
            if not isinstance(tensor, Tensor):
                continue  # state of a module's own, which its set_extra_state checks
            self._check_tensor(f"{name}.{key}", saved[key], tensor)
            if key.rpartition(".")[2] == _EXTRA_STATE:
                self._check_extra_state(f"{name}.{key}", saved[key], tensor)
        return saved

    def network(self, model: nn.Module) -> dict[str, Any]:
        """Returns the state dict of what the run trained: the average of its weights where it has one."""
        return self.model(model, "average" if "average" in self.content else "model")

    def optimizer(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Returns the state dict, which fits ``optimizer``."""
        saved, own = self.content["optimizer"], optimizer.state_dict()
        groups, states = saved.get("param_groups"), saved.get("state")
        if not isinstance(groups, list) or not isinstance(states, dict):
            raise self._error("optimizer", "must have 'param_groups' and 'state'")
        if len(groups) != len(own["param_groups"]) or not all(map(_same_settings, groups, own["param_groups"])):
            raise self._error(
                "optimizer.param_groups", "must have the parameters and settings of the recipe's optimizer"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        allowed = _OPTIMIZER_VALUES[type(optimizer).__name__]
        for index, values in states.items():
            key = f"optimizer.state.{index}"
            if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(values, dict):
                raise self._error(key, "belongs to no parameter")
            for name, value in values.items():
                if name not in allowed:
                    raise self._error(f"{key}.{name}", f"must be one of {', '.join(allowed)}")
                if value is not None:
                    expected = torch.zeros((), dtype=torch.float32) if name == "step" else parameters[index]
                    self._check_tensor(f"{key}.{name}", value, expected)
        return saved

    def signs(self, own: list[Tensor]) -> dict[str, Any]:
        """Returns the state of the diagnostics, which fits their signs ``own``."""
        saved = self.content["diagnostics"]
        signs = saved.get("signs")
        if not isinstance(signs, list) or len(signs) != len(own):
            raise self._error("diagnostics.signs", f"must be a list of {len(own)} tensors")
        for index, (given, expected) in enumerate(zip(signs, own, strict=True)):
            self._check_tensor(f"diagnostics.signs.{index}", given, expected)
        return saved

    def _check_tensor(self, key: str, given: Any, expected: Any) -> None:
        if not isinstance(given, Tensor):
            raise self._error(key, f"must be a tensor, got {_said(given)}")
        if (given.shape, given.dtype) != (expected.shape, expected.dtype):
            raise self._error(
                key,
                f"must be {expected.dtype} of shape {list(expected.shape)}, got {given.dtype} of {list(given.shape)}",
            )

    def _check_extra_state(self, key: str, given: Tensor, expected: Tensor) -> None:
        stage, surrogate, *sizes = given.tolist()
        if not (0 <= stage < len(Stage) and 0 <= surrogate < len(SURROGATES) and sizes == expected.tolist()[2:]):
            raise self._error(key, f"must be a stage, a surrogate and {expected.tolist()[2:]}, got {given.tolist()}")

    def _error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self._path!r} does not fit this run: {key!r} {problem}")


def _same_settings(given: Any, own: dict[str, Any]) -> bool:
    """Returns whether groups of parameters agree, but for the learning rate, which is set at each step.

    Optimizers of another torch may have further settings.
    """
    if not isinstance(given, dict) or given.get("params") != own["params"]:
        return False
    return all(given[key] == own[key] for key in given.keys() & own.keys() - {"lr"})


def _said(value: Any) -> str:
    """Shows a value in a message: a tensor or a container by its kind, for it may be large."""
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"
