"""A model that is to be packed holds numbers: NaN has a sign too, and would be packed without a word."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stompp_kernels.nn import BinaryLayer

_NAMED = 5  # of the wrong tensors


def check_finite(model: nn.Module) -> None:
    """Raises ValueError unless parameters, scales and statistics are finite, and scales and variances are no negatives.

    Other buffers are the model's own affair: a mask of an attention holds infinities.
    """
    wrong = [f"{name} {what}" for name, what in _problems(model)]
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ValueError(f"model must hold finite numbers: {', '.join(wrong[:_NAMED])}{more}")


def _problems(model: nn.Module) -> list[tuple[str, str]]:
    problems = []
    for prefix, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False))
        if isinstance(module, (BinaryLayer, _NormBase)):
            tensors.update(module.named_buffers(recurse=False))
        for own, tensor in tensors.items():
            what = _problem(own, tensor)
            if what:
                problems.append((f"{prefix}.{own}" if prefix else own, what))
    return problems


def _problem(name: str, tensor: Tensor) -> str:
    if tensor.is_meta or not tensor.is_floating_point():
        return ""
    for what, wrong in (("NaN", tensor.isnan()), ("inf", tensor.isinf())):
        if bool(wrong.any()):
            return f"has {int(wrong.sum())} {what} of {tensor.numel()}"
    if name == "running_var" and bool((tensor < 0).any()):
        return f"has a negative variance, {float(tensor.min()):.3g}"
    if name in ("alpha", "input_scale") and bool((tensor <= 0).any()):
        return f"has a scale that is not positive, {float(tensor.min()):.3g}"
    return ""
