"""torch's decoder layers, which lose their activation where it is a module and the layer is copied or pickled.

``nn.TransformerDecoderLayer.__setstate__`` looks for the activation among the plain attributes, where no module is, and
sets ``F.relu`` there, which then runs in the module's place. A module that is a plain attribute too is left alone.
"""

from __future__ import annotations

from torch import nn

_KINDS = (nn.TransformerDecoderLayer, nn.TransformerEncoderLayer)


def keep_activations(model: nn.Module) -> None:
    """Lets the activations of such layers in a model be what runs, in this model and in copies of it."""
    for module in model.modules():
        if isinstance(module, _KINDS) and "activation" in module._modules:
            vars(module)["activation"] = module._modules["activation"]
