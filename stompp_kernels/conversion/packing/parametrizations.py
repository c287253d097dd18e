"""Weights that a float layer computes anew at each call, as weight_norm and spectral_norm have it, made constants."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def make_weights_constant(model: nn.Module) -> None:
    """Gives parametrized layers of a model in eval mode, which is changed, the weights that they compute.

    torch's remove_parametrizations would change the class, which copies of a layer share.
    """
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):  # the older kind is a hook
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            weights = {name: getattr(module, name).detach() for name in module.parametrizations}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
